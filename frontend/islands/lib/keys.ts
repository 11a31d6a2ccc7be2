/**
 * The keys of a page. Buttons and links say theirs in the template with `data-key="n"` (the key clicks them);
 * islands register others with `keys()`. `?` lists both.
 */

import { all, isTyping } from "./dom.ts";

export interface Key {
  /** As `KeyboardEvent.key` says it, letters in lower case; `Ctrl+K` style names are only listed. */
  key: string;
  /** What it does, as the help says it. */
  does: string;
  run?: (event: KeyboardEvent) => void;
}

const registered = new Set<Key[]>();

/** Register *list* until the returned function is called. */
export function keys(list: Key[]): () => void {
  registered.add(list);
  return () => registered.delete(list);
}

/** All keys that work now, the page's own first. */
export function known(): Key[] {
  const marked = all("[data-key]")
    .filter((element) => element.checkVisibility())
    .map((element) => ({ key: element.dataset.key ?? "", does: element.dataset.keyDoes ?? (element.getAttribute("aria-label") || [...element.childNodes].filter((node) => !(node instanceof Element && node.matches("kbd"))).map((node) => node.textContent).join("").trim()) }));
  return [...marked, ...[...registered].flat()];
}

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isTyping(event)) return;
  if (document.querySelector("dialog:modal")) return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  for (const key of [...registered].flat())
    if (key.run && key.key === pressed) {
      event.preventDefault();
      key.run(event);
      return;
    }
  const target = all("[data-key]").find((element) => element.dataset.key === pressed && element.checkVisibility());
  if (target && !(target instanceof HTMLButtonElement && target.disabled)) {
    event.preventDefault();
    target.click();
  }
});
