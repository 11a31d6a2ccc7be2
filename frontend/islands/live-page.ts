// <live-page data-every="5">: keeps the parts of a page marked with data-refresh up to date while the tab is looked at,
// and says so when the studio does not answer.
import { h } from "./lib/dom.ts";
import { refresh } from "./lib/refresh.ts";

class LivePage extends HTMLElement {
  #timer: ReturnType<typeof setTimeout> | undefined;

  connectedCallback(): void {
    document.addEventListener("visibilitychange", this.#wake);
    this.#plan();
  }

  disconnectedCallback(): void {
    clearTimeout(this.#timer);
    document.removeEventListener("visibilitychange", this.#wake);
  }

  #wake = (): void => {
    clearTimeout(this.#timer);
    if (document.visibilityState === "visible") void this.#look();
  };

  #plan(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#look(), 1000 * Number(this.dataset.every ?? 5));
  }

  async #look(): Promise<void> {
    if (document.visibilityState !== "visible") return;
    const done = await refresh();
    if (done) this.replaceChildren();
    else if (!this.firstChild) this.append(h("p", { class: "connection", role: "status" }, `No connection since ${new Date().toLocaleTimeString("en-US", { hour12: false })}; this page is as of then and catches up by itself.`));
    this.#plan();
  }
}

customElements.define("live-page", LivePage);
