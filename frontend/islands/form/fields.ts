/** One row of the form for each kind of field: label, control, help, bounds, what is wrong. */
import { glyph, h, type Child } from "../lib/dom.ts";
import { cards } from "./cards.ts";
import { at, escaped, plain, unescaped, type Node, type Value } from "./schema.ts";
import { AFTER, CHOICES, idOf, label } from "./words.ts";

export interface ModelOption {
  id: number;
  label: string;
}

export interface ScoringOption extends ModelOption {
  /** Which method makes its kind: "reward", "attribute_reward" or "process_reward". */
  method: string;
}

export interface VersionOption extends ModelOption {
  rows: number;
  row_type: string;
  columns: string[];
  attributes: string[];
}

export interface Options {
  models: ModelOption[];
  reward_models: ScoringOption[];
  versions: VersionOption[];
  /** Seconds a step took in the last finished run of this method, and that run. */
  pace: { run: number; seconds: number } | null;
}

/** What a row needs of the form. */
export interface Form {
  readonly method: string;
  readonly options: Options;
  value(path: string): Value;
  /** Put a value in; *rebuild* where other fields come or go with it. */
  set(path: string, value: Value, rebuild?: boolean): void;
  bounds(node: Node): Child[];
  version(): VersionOption | undefined;
  /** A new item of a list of unions. */
  item(node: Node, kind: string): Value;
  below(path: string): Node[];
  say(text: string): void;
}

/** Text with its arXiv numbers as links. */
export function linked(text: string): Child[] {
  return text
    .replaceAll("``", "")
    .split(/(arXiv:\d{4}\.\d{4,5})/)
    .map((part) => (part.startsWith("arXiv:") ? h("a", { href: `https://arxiv.org/abs/${part.slice(6)}`, rel: "noreferrer external" }, part) : part));
}

/** The reward models that a field can take: one of steps for a process score, the others for a reward model's. */
export function fitting(options: Options, kind: "models" | "scorer"): ScoringOption[] {
  return options.reward_models.filter((model) => (model.method === "process_reward") === (kind === "scorer"));
}

function offered(value: string, options: [string, string][]): HTMLOptionElement[] {
  return options.map(([name, text]) => h("option", { value: name, selected: name === value }, text));
}

/** A picker shows what is chosen even where it is no longer offered. */
function select(id: string, value: string, options: [string, string][], set: (value: string) => void): HTMLSelectElement {
  const made = h("select", { class: "select", id }, ...offered(value, options));
  made.addEventListener("change", () => set(made.value));
  return made;
}

function typed(node: Node, id: string, value: string, set: (value: string) => void): HTMLInputElement | HTMLTextAreaElement {
  const isNumber = node.kind === "number" || node.kind === "integer";
  const made =
    node.kind === "long"
      ? h("textarea", { class: "input wide", id, rows: "3", spellcheck: "false" }, value)
      : h("input", { class: isNumber ? "input number" : "input", id, inputmode: node.kind === "integer" ? "numeric" : isNumber ? "decimal" : "text", autocomplete: "off", spellcheck: "false", value });
  made.addEventListener("input", () => set(made.value));
  return made;
}

function chosenModels(form: Form, node: Node, id: string): Child[] {
  const models = fitting(form.options, "models");
  const now = form.value(node.path) as Value[];
  if (!models.length) return [h("p", { class: "quiet small", id, tabindex: "-1" }, "The project has no reward model yet. ", h("a", { href: "?method=reward" }, "Train one"), ".")];
  return models.map((model, index) => {
    const box = h("input", { type: "checkbox", id: index ? null : id, checked: now.includes(String(model.id)) });
    box.addEventListener("change", () => {
      const rest = (form.value(node.path) as Value[]).filter((one) => one !== String(model.id));
      form.set(node.path, box.checked ? [...rest, String(model.id)] : rest);
    });
    return h("label", { class: "check" }, box, " ", model.label);
  });
}

/** A dictionary of numbers: one row for each name. */
function dictionary(form: Form, node: Node, id: string): Child[] {
  const rows = form.value(node.path) as Value[];
  const known = form.version()?.attributes ?? [];
  const used = rows.map((row) => String(at(row, "name")));
  const free = known.filter((name) => !used.includes(name));
  const change = (index: number, part: "name" | "value", to: string, rebuild = false): void => {
    const next = (form.value(node.path) as Value[]).map((row, place) => (place === index ? { ...(row as { [name: string]: Value }), [part]: to } : row));
    form.set(node.path, next, rebuild);
  };
  return [
    ...rows.map((row, index) => {
      const name = String(at(row, "name"));
      const weight = h("input", { class: "input number", inputmode: "decimal", autocomplete: "off", value: String(at(row, "value")), "aria-label": `Weight of ${name}`, id: `${id}-${index}-weight` });
      weight.addEventListener("input", () => change(index, "value", weight.value));
      const names = select(index ? `${id}-${index}` : id, name, [name, ...free].map((one) => [one, one]), (to) => change(index, "name", to, true));
      names.setAttribute("aria-label", `Attribute ${index + 1}`);
      const remove = h("button", { type: "button", class: "btn small", "aria-label": `Remove ${name}`, onclick: () => form.set(node.path, (form.value(node.path) as Value[]).filter((_, place) => place !== index), true) }, "Remove");
      return h("div", { class: "controls pair" }, names, weight, remove);
    }),
    h(
      "div",
      { class: "btn-row" },
      free.length || !rows.length
        ? h("button", { type: "button", class: "btn small", id: rows.length ? `${id}-add` : id, disabled: !free.length, onclick: () => form.set(node.path, [...(form.value(node.path) as Value[]), { name: free[0] ?? "", value: "1" }], true) }, glyph("plus"), " Add an attribute")
        : null,
    ),
  ];
}

/** Names of the components that come before the one at *path*: a gate can only wait for those. */
function before(form: Form, path: string): string[] {
  const [, list = "", index = "0"] = /^(.*)\.(\d+)\.[^.]+$/.exec(path) ?? [];
  return (form.value(list) as Value[]).slice(0, Number(index)).map((item) => String(at(item, "name") || at(item, "kind")));
}

function gates(form: Form, node: Node): [string, string][] {
  const text = String(form.value(node.path));
  const names = before(form, node.path);
  return [["", "always"], ...(text && !names.includes(text) ? [text] : []).concat(names).map((name): [string, string] => [name, `${name} scored 1`])];
}

/** What a gate offers after another component got another name. */
export function offerGates(form: Form, node: Node, picker: HTMLSelectElement): void {
  picker.replaceChildren(...offered(String(form.value(node.path)), gates(form, node)));
}

function control(form: Form, node: Node, id: string): Child[] {
  const value = form.value(node.path);
  const text = String(value);
  const set = (to: Value): void => form.set(node.path, to);
  const rebuild = (to: Value): void => form.set(node.path, to, true);
  const look = (kind: string): Child => (text ? h("a", { class: "small", href: `/${kind}/${text}` }, "look") : null);
  switch (node.kind) {
    case "union": {
      const kinds = [...(node.variants?.keys() ?? [])];
      return [select(id, String(at(value, "kind")), kinds.map((kind) => [kind, CHOICES[kind] ?? kind]), rebuild)];
    }
    case "enum":
      return [select(id, text, (node.schema.enum ?? []).map((entry) => [String(entry), String(entry).replaceAll("_", " ")]), set)];
    case "boolean": {
      const box = h("input", { type: "checkbox", id, checked: value === true });
      box.addEventListener("change", () => set(box.checked));
      return [box];
    }
    case "base":
      return [select(id, text, form.options.models.map((model) => [String(model.id), model.label]), rebuild), look("models")];
    case "version":
      return [select(id, text, form.options.versions.map((version) => [String(version.id), version.label]), rebuild), look("versions")];
    case "scorer": {
      const models = fitting(form.options, "scorer");
      if (!models.length) return [h("p", { class: "quiet small", id, tabindex: "-1" }, "The project has no process reward model yet. ", h("a", { href: "?method=process_reward" }, "Train one"), ".")];
      return [select(id, text, models.map((model) => [String(model.id), model.label]), rebuild), look("models")];
    }
    case "column": {
      const columns = form.version()?.columns ?? [];
      return [select(id, text, [...(columns.includes(text) ? [] : [[text, `${text} (not there)`] as [string, string]]), ...columns.map((column): [string, string] => [column, column])], set)];
    }
    case "gate":
      return [select(id, text, gates(form, node), set)];
    case "models":
      return chosenModels(form, node, id);
    case "map":
      return dictionary(form, node, id);
    case "strings": {
      const input = h("input", { class: "input", id, autocomplete: "off", spellcheck: "false", value: (value as Value[]).join(", ") });
      input.addEventListener("input", () => set(input.value.split(",").map((part) => part.trim()).filter(Boolean)));
      return [input, h("span", { class: "after" }, "separated by commas")];
    }
    case "escaped":
      return [typed(node, id, escaped(text), (to) => set(unescaped(to)))];
    default:
      return [typed(node, id, text, set)];
  }
}

/** One row: several controls of one field form a group with the label as its name. */
export function row(form: Form, node: Node): HTMLElement {
  const id = idOf(node.path);
  if (node.kind === "cards") return cards(form, node);
  const several = node.kind === "models" || node.kind === "map";
  const sentence = node.kind === "union" ? node.variants?.get(String(at(form.value(node.path), "kind")))?.description : node.schema.description;
  const controls = control(form, node, id);
  for (const one of controls) {
    if (!(one instanceof HTMLElement) || one.id !== id) continue;
    if (!several) one.setAttribute("aria-describedby", `${id}-help ${id}-error`);
    one.dataset.path = node.path;
  }
  const name = label(node.path, form.method);
  const title = several ? h("span", { class: "label", id: `${id}-label` }, name, " ") : h("label", { for: id }, name, " ", h("code", {}, node.name));
  return h(
    "div",
    { class: "field", "data-field": node.path },
    title,
    h(
      "div",
      several ? { role: "group", "aria-labelledby": `${id}-label`, "aria-describedby": `${id}-help ${id}-error` } : {},
      h("div", { class: several ? "controls stacked" : "controls" }, ...controls, AFTER[node.path] ? h("span", { class: "after" }, AFTER[node.path] as string) : null),
      h("p", { class: "help", id: `${id}-help` }, ...linked(sentence ?? "")),
      h("p", { class: "bounds" }, ...form.bounds(node)),
      h("p", { class: "error", id: `${id}-error`, hidden: true }),
    ),
  );
}

export { plain };
