// <chart-controls>: smoothing, log scale, step or time, and the way back from a zoom, for all charts of the page.
import { h } from "./lib/dom.ts";
import { keys } from "./lib/keys.ts";
import { store } from "./lib/series.ts";

class ChartControls extends HTMLElement {
  #forget: (() => void)[] = [];

  connectedCallback(): void {
    const few = this.dataset.few === "yes";
    const pressed = (button: HTMLElement, on: boolean): void => button.setAttribute("aria-pressed", String(on));
    const step = h("button", { type: "button", onclick: () => axis("step") }, "step");
    const time = h("button", { type: "button", onclick: () => axis("time") }, "time");
    const axis = (chosen: "step" | "time"): void => {
      if (store.window) store.zoom(null);
      store.set({ axis: chosen });
      pressed(step, chosen === "step");
      pressed(time, chosen === "time");
    };
    const whole = h("button", { type: "button", class: "btn small", hidden: true, "data-key": "0", "data-key-does": "Show the whole run", onclick: () => store.zoom(null) }, "Whole run ", h("kbd", {}, "0"));
    const said = h("output", {}, store.options.smoothing.toFixed(2));
    const slider = h("input", { type: "range", min: "0", max: "0.98", step: "0.02", value: String(store.options.smoothing), "aria-label": "Smoothing" });
    slider.addEventListener("input", () => {
      said.textContent = Number(slider.value).toFixed(2);
      store.set({ smoothing: Number(slider.value) });
    });
    const log = h("input", { type: "checkbox" });
    log.addEventListener("change", () => store.set({ log: log.checked }));
    this.replaceChildren(
      whole,
      ...(few ? [] : [h("label", { class: "check" }, "Smoothing ", slider, " ", said), h("label", { class: "check" }, log, " Log scale")]),
      h("span", { class: "segments", role: "group", "aria-label": "Horizontal axis" }, step, time),
    );
    axis(store.options.axis);
    this.#forget = [
      store.listen(() => {
        whole.hidden = !store.window;
      }),
      keys([
        { key: "x", does: "Horizontal axis: step or time", run: () => axis(store.options.axis === "step" ? "time" : "step") },
        ...(few
          ? []
          : [
              {
                key: "l",
                does: "Log scale",
                run: () => {
                  log.checked = !log.checked;
                  store.set({ log: log.checked });
                },
              },
            ]),
        { key: "← →", does: "In a chart: walk along its points" },
        { key: "+ −", does: "In a chart: zoom; dragging does the same, a double click shows everything" },
      ]),
    ];
  }

  disconnectedCallback(): void {
    for (const forget of this.#forget) forget();
  }
}

customElements.define("chart-controls", ChartControls);
