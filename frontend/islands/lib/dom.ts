/** Small helpers to build elements. Text always goes in as text, never as HTML. */

export type Child = Node | string | number | null | undefined | false;
type Attributes = Record<string, string | number | boolean | null | undefined | EventListener>;

const SVG = "http://www.w3.org/2000/svg";

function fill<E extends Element>(element: E, attributes: Attributes, children: Child[]): E {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** An HTML element: `h("button", { class: "btn", onclick: f }, "Send")`. */
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s<K extends keyof SVGElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]): SVGElementTagNameMap[K] {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A glyph of the page's sprite: `glyph("failed")`. */
export function glyph(name: string): SVGElement {
  return s("svg", { class: "glyph", "aria-hidden": "true" }, s("use", { href: `#g-${name}` }));
}

export function one<E extends Element = HTMLElement>(selector: string, root: ParentNode = document): E | null {
  return root.querySelector<E>(selector);
}

export function all<E extends Element = HTMLElement>(selector: string, root: ParentNode = document): E[] {
  return [...root.querySelectorAll<E>(selector)];
}

/** The JSON that the server left in `<script type="application/json" id=…>`; such blocks are data, no script runs. */
export function data<T>(id: string): T | null {
  const block = document.getElementById(id);
  return block?.textContent ? (JSON.parse(block.textContent) as T) : null;
}

/** Whether the reader is typing, so that single keys must be left alone. */
export function isTyping(event: Event): boolean {
  const target = event.composedPath()[0];
  return target instanceof HTMLElement && (target.isContentEditable || target.matches("textarea, select, input:not([type=checkbox], [type=radio], [type=button], [type=submit], [type=range])"));
}

/** A short message at the lower edge, read out politely; it goes by itself. */
export function toast(text: string, ...actions: HTMLElement[]): void {
  let stack = one(".toasts");
  if (!stack) {
    stack = h("div", { class: "toasts", role: "status" });
    document.body.append(stack);
  }
  const shown = h("div", { class: "toast" }, h("span", {}, text), ...actions);
  stack.append(shown);
  setTimeout(() => shown.remove(), 6000);
}
