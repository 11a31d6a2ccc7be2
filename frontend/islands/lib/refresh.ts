/**
 * Fetch the page again and put its parts marked `data-refresh="name"` in the place of the old ones; the rest stays as it is.
 * A part with a `data-version` is replaced only if that differs: what islands have drawn in it is not what the server sent.
 */

import { all } from "./dom.ts";

export async function refresh(): Promise<boolean> {
  let text: string;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, credentials: "same-origin" });
    if (!answer.ok || answer.redirected) return false;
    text = await answer.text();
  } catch {
    return false;
  }
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const part of all("[data-refresh]")) {
    const next = fresh.querySelector<HTMLElement>(`[data-refresh="${CSS.escape(part.dataset.refresh ?? "")}"]`);
    if (!next || next.innerHTML === part.dataset.html || part.contains(document.activeElement)) continue;
    if (next.dataset.version !== undefined && next.dataset.version === part.dataset.version) continue;
    if (next.dataset.version !== undefined) part.dataset.version = next.dataset.version;
    part.dataset.html = next.innerHTML;
    if (next.innerHTML !== part.innerHTML) part.replaceChildren(...[...next.childNodes].map((node) => document.importNode(node, true)));
  }
  return true;
}
