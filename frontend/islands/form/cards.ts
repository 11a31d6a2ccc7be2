/** A list of unions, such as the components of a reward: a card each, added from a picker, moved and removed by buttons or keys. */
import { glyph, h, one } from "../lib/dom.ts";
import { linked, row, type Form } from "./fields.ts";
import { at, type Node, type Value } from "./schema.ts";
import { CHOICES, idOf, label, short } from "./words.ts";

/** Fields that few people change; they are folded. */
const RARE = new Set(["normalize", "only_if"]);

export function cards(form: Form, node: Node): HTMLElement {
  const id = idOf(node.path);
  const items = form.value(node.path) as Value[];
  const focus = (index: number, name: string): void => one<HTMLElement>(`[data-card="${node.path}.${index}"] [data-does="${name}"]:not(:disabled), [data-card="${node.path}.${index}"]`)?.focus();
  const put = (next: Value[], said: string): void => {
    form.set(node.path, next, true);
    form.say(said);
  };
  const title = (index: number): string => {
    const item = (form.value(node.path) as Value[])[index];
    const kind = String(at(item, "kind"));
    return String(at(item, "name") || CHOICES[kind] || kind);
  };
  const move = (index: number, by: number, does: string): void => {
    const next = [...(form.value(node.path) as Value[])];
    const to = index + by;
    if (to < 0 || to >= next.length) return;
    [next[index], next[to]] = [next[to] as Value, next[index] as Value];
    put(next, `${title(index)} is now number ${to + 1} of ${next.length}.`);
    focus(to, does);
  };
  const card = (item: Value, index: number): HTMLElement => {
    const kind = String(at(item, "kind"));
    const path = `${node.path}.${index}`;
    const fields = form.below(path);
    const rare = fields.filter((field) => RARE.has(field.name));
    const button = (does: string, text: string, name: string, act: () => void, disabled = false): HTMLElement =>
      h("button", { type: "button", class: "btn small", "data-does": does, "aria-label": `${name} ${title(index)}`, disabled, onclick: act }, text);
    const isRare = rare.some((field) => form.value(field.path) !== field.initial);
    const made = h(
      "div",
      { class: "card", "data-card": path, tabindex: "-1", role: "group", "aria-label": `${index + 1}. ${CHOICES[kind] ?? kind}` },
      h(
        "div",
        { class: "card-head" },
        h("h3", {}, CHOICES[kind] ?? kind),
        h(
          "span",
          { class: "btn-row" },
          button("up", "↑", "Move up:", () => move(index, -1, "up"), index === 0),
          button("down", "↓", "Move down:", () => move(index, 1, "down"), index === items.length - 1),
          button("remove", "Remove", "Remove", () => {
            const said = `${title(index)} is removed.`;
            put((form.value(node.path) as Value[]).filter((_, place) => place !== index), said);
            const left = (form.value(node.path) as Value[]).length;
            if (left) focus(Math.min(index, left - 1), "remove");
            else one(`#${id}`)?.focus();
          }),
        ),
      ),
      h("p", { class: "help" }, ...linked(node.variants?.get(kind)?.description ?? "")),
      h("div", { class: "card-fields" }, ...fields.filter((field) => !RARE.has(field.name)).sort((a, b) => Number(a.name === "name" || a.name === "weight") - Number(b.name === "name" || b.name === "weight")).map((field) => row(form, field))),
      rare.length ? h("details", { class: "fold", open: isRare, "data-group": path }, h("summary", {}, "Gate and normalization", h("span", { class: "tag push", hidden: true })), h("div", { class: "card-fields" }, ...rare.map((field) => row(form, field)))) : null,
    );
    made.addEventListener("keydown", (event) => {
      const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!event.altKey || by === undefined) return;
      event.preventDefault();
      move(index, by, by < 0 ? "up" : "down");
    });
    return h("li", {}, made);
  };
  const add = (kind: string): void => {
    const next = [...(form.value(node.path) as Value[]), form.item(node, kind)];
    put(next, `${CHOICES[kind] ?? kind} is added as number ${next.length}.`);
    focus(next.length - 1, "first");
  };
  const picker = h(
    "details",
    { class: "picker", "data-group": `${node.path} add` },
    h("summary", { class: "btn small", id }, glyph("plus"), " Add a reward"),
    h("ul", {}, ...[...(node.variants ?? [])].map(([kind, schema]) => h("li", {}, h("button", { type: "button", onclick: () => add(kind) }, h("b", {}, CHOICES[kind] ?? kind), " ", h("span", {}, short(schema.description ?? "")))))),
  );
  picker.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !picker.open) return;
    picker.open = false;
    one("summary", picker)?.focus();
  });
  one("summary", picker)?.setAttribute("aria-describedby", `${id}-error`);
  const button = one("summary", picker);
  if (button) button.dataset.path = node.path;
  return h(
    "div",
    { class: "field whole", "data-field": node.path },
    h("span", { class: "label", id: `${id}-label` }, label(node.path.split(".")[0] ?? ""), " ", h("span", { class: "help" }, "the sum of weight × score; Alt ↑ and Alt ↓ move a card")),
    h("div", {}, h("ol", { class: "cards", "aria-labelledby": `${id}-label` }, ...items.map(card)), picker, h("p", { class: "bounds" }, ...form.bounds(node)), h("p", { class: "error", id: `${id}-error`, hidden: true })),
  );
}
