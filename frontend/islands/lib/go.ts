/** Go anywhere: the pages of the rail, then what the project holds, filtered as one types. */

import { api, meta } from "./api.ts";
import { all, h } from "./dom.ts";

interface Place {
  href: string;
  name: string;
  kind: string;
}

interface Listed {
  id: number;
  name: string;
}

async function places(): Promise<Place[]> {
  const project = meta("project");
  const views = document.querySelector<HTMLMetaElement>('meta[name="project"]')?.dataset.views === "yes";
  if (!project || !views) return [];
  const kinds: [string, string, (item: Listed) => Place][] = [
    ["runs", "run", (item) => ({ href: `/runs/${item.id}`, name: `#${item.id} ${item.name}`, kind: "run" })],
    ["datasets", "dataset", (item) => ({ href: `/datasets/${item.id}`, name: item.name, kind: "dataset" })],
    ["models", "model", (item) => ({ href: `/models/${item.id}`, name: item.name, kind: "model" })],
    ["labeling-sessions", "labeling session", (item) => ({ href: `/labeling/${item.id}`, name: item.name, kind: "labeling session" })],
  ];
  const lists = await Promise.all(kinds.map(([path, , place]) => api<{ items: Listed[] }>(`/api/v1/projects/${project}/${path}?limit=50`).then((list) => list.items.map(place)).catch(() => [])));
  return lists.flat();
}

export function openGo(): void {
  let known: Place[] = all<HTMLAnchorElement>(".rail nav a[href]").map((link) => ({
    href: link.href,
    name: [...link.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.textContent).join("").trim(),
    kind: "page",
  }));
  let shown: Place[] = [];
  let current = 0;

  const input = h("input", { class: "input wide", type: "search", placeholder: "A page, a run, a dataset …", "aria-label": "Go to", role: "combobox", "aria-expanded": "true", "aria-controls": "go-list", autocomplete: "off" });
  const list = h("ul", { id: "go-list", class: "go-list", role: "listbox", "aria-label": "Places" });
  const dialog = h("dialog", { class: "sheet go", "aria-label": "Go anywhere" }, input, list);

  const draw = (): void => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = known.filter((place) => wanted.every((word) => `${place.name} ${place.kind}`.toLowerCase().includes(word))).slice(0, 12);
    current = Math.min(current, Math.max(0, shown.length - 1));
    list.replaceChildren(
      ...shown.map((place, index) => h("li", { id: `go-${index}`, role: "option", "aria-selected": index === current ? "true" : "false", onclick: () => location.assign(place.href) }, h("span", {}, place.name), h("span", { class: "faint small" }, place.kind))),
    );
    if (!shown.length) list.replaceChildren(h("li", { class: "faint", role: "option", "aria-disabled": "true", "aria-selected": "false" }, "Nothing of that name."));
    input.setAttribute("aria-activedescendant", shown.length ? `go-${current}` : "");
  };

  input.addEventListener("input", () => {
    current = 0;
    draw();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") current = Math.min(current + 1, shown.length - 1);
    else if (event.key === "ArrowUp") current = Math.max(current - 1, 0);
    else if (event.key === "Enter") {
      const place = shown[current];
      if (place) location.assign(place.href);
    } else return;
    event.preventDefault();
    draw();
  });
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  draw();
  void places().then((more) => {
    known = [...known, ...more];
    draw();
  });
}
