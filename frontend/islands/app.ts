// The first load of every page: theme toggle, islands on demand, keys help, go anywhere.
import { islands } from "islands:registry";
import { all, h, one } from "./lib/dom.ts";
import { keys, known } from "./lib/keys.ts";

function toggleTheme(): void {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {
    // The choice then lasts for this page.
  }
  // Canvases have read their colors already.
  dispatchEvent(new CustomEvent("themechange"));
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new CustomEvent("themechange")));

const loading = new Set<string>();
function load(root: ParentNode): void {
  for (const [tag, importIt] of Object.entries(islands))
    if (!loading.has(tag) && (one(tag, root) || (root instanceof Element && root.localName === tag))) {
      loading.add(tag);
      void importIt().catch(() => loading.delete(tag));
    }
}

function showKeys(): void {
  const name = (key: string): string => (key.length === 1 ? key.toUpperCase() : key.replace("ArrowUp", "↑").replace("ArrowDown", "↓").replace("ArrowLeft", "←").replace("ArrowRight", "→").replace("Escape", "Esc"));
  const list = [...known(), { key: "Ctrl K", does: "Go anywhere" }, { key: "?", does: "This list" }].filter((entry) => entry.does);
  const dialog = h(
    "dialog",
    { class: "sheet", "aria-labelledby": "keys-of-page" },
    h("header", {}, h("h2", { id: "keys-of-page" }, "Keys of this page"), h("form", { method: "dialog" }, h("button", { class: "btn small quiet" }, "Close ", h("kbd", {}, "Esc")))),
    h("dl", { class: "key-list" }, ...list.map((entry) => h("div", {}, h("dt", {}, h("kbd", {}, name(entry.key))), h("dd", {}, entry.does)))),
  );
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}

async function goAnywhere(): Promise<void> {
  if (one("dialog:modal")) return;
  const { openGo } = await import("./lib/go.ts");
  openGo();
}

keys([{ key: "?", does: "", run: showKeys }]);
addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "k" && one(".rail")) {
    event.preventDefault();
    void goAnywhere();
  }
});

document.addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target : null;
  if (target?.closest(".theme-toggle")) toggleTheme();
  if (target?.closest("[data-opens=keys]")) showKeys();
  if (target?.closest("[data-opens=go]")) void goAnywhere();
  if (target?.closest("[data-opens=print]")) print();
});

// A form may ask once before it destroys something, and is sent once however often the button is hit.
document.addEventListener("submit", (event) => {
  const form = event.target as HTMLFormElement;
  const question = form.dataset.asks;
  if (question && !confirm(question)) {
    event.preventDefault();
    return;
  }
  if (form.method === "post" && !event.defaultPrevented) {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  }
});
addEventListener("pageshow", () => all<HTMLFormElement>("form[data-sent]").forEach((form) => delete form.dataset.sent));

// Filters apply when chosen; without JavaScript their form has a button.
document.addEventListener("change", (event) => {
  const form = (event.target as Element).closest<HTMLFormElement>("form[data-submits-itself]");
  form?.requestSubmit();
});

// What scrolls sideways and holds nothing to focus must itself be reachable by key.
function reachable(): void {
  for (const area of all(".scroll-x")) {
    const needs = area.scrollWidth > area.clientWidth && !one("a[href], button, input, select, textarea, [tabindex]", area);
    if (needs) area.tabIndex = 0;
    else area.removeAttribute("tabindex");
  }
}
addEventListener("resize", reachable);
reachable();

load(document);
new MutationObserver((changes) => {
  changes.forEach((change) => change.addedNodes.forEach((node) => node instanceof Element && load(node)));
  if (changes.some((change) => change.target instanceof Element && change.target.matches("[data-refresh]"))) reachable();
}).observe(document.body, { childList: true, subtree: true });
document.documentElement.dataset.ready = "yes";
