// <word-diff>: holds the earlier text in .before and the later in .after; shows the later one with the differences marked.
import { wordDiff } from "./lib/diff.ts";
import { h, one } from "./lib/dom.ts";

class WordDiff extends HTMLElement {
  connectedCallback(): void {
    const before = one(".before", this)?.textContent ?? "";
    const after = one(".after", this)?.textContent ?? "";
    void wordDiff(before, after).then(({ nodes, added, removed }) => {
      this.replaceChildren(h("p", { class: "diffed" }, ...nodes));
      const said = this.dataset.says && document.getElementById(this.dataset.says);
      if (said) said.textContent = added || removed ? `−${removed} word${removed === 1 ? "" : "s"}, +${added} word${added === 1 ? "" : "s"}` : "the same text";
    });
  }
}

customElements.define("word-diff", WordDiff);
