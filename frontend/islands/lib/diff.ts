/** Word differences, loaded when first asked for: <del> for what went, <ins> for what came. */

import { h } from "./dom.ts";

export interface Difference {
  nodes: Node[];
  added: number;
  removed: number;
}

const words = (text: string): number => text.trim().split(/\s+/).filter(Boolean).length;

export async function wordDiff(before: string, after: string): Promise<Difference> {
  const { diffWordsWithSpace } = await import("diff");
  let added = 0;
  let removed = 0;
  const nodes = diffWordsWithSpace(before, after).map((part): Node => {
    if (part.added) added += words(part.value);
    if (part.removed) removed += words(part.value);
    return part.added ? h("ins", {}, part.value) : part.removed ? h("del", {}, part.value) : document.createTextNode(part.value);
  });
  return { nodes, added, removed };
}
