// <run-chart data-lines='[{"run": 17, "key": "loss", "label": "loss", "slot": 1}]'>: lines over steps, labeled at their end,
// the smoothed line over the raw one, one cursor and one zoom for all charts of the page, values once more as a table.
import uPlot from "uplot";
import { h } from "./lib/dom.ts";
import { duration, number } from "./lib/format.ts";
import { color, dash } from "./lib/ink.ts";
import { drawLabels, roomFor } from "./lib/labels.ts";
import { near, padded, smooth, store, type Points } from "./lib/series.ts";

interface Line {
  run: number;
  key: string;
  label: string;
  /** 1 … 8: color and dash of a run; 0 is ink. */
  slot: number;
  /** Held-out values are few: drawn with a ring at every point, never smoothed. */
  held_out?: boolean;
}

/** What a schedule or a counter says is not noisy: smoothing would only lag behind it. */
const PLANNED = new Set(["learning_rate", "epoch", "num_tokens"]);

interface Shown {
  line: Line;
  points: Points;
  xs: number[];
  smoothed: number[];
}

class RunChart extends HTMLElement {
  #lines: Line[] = [];
  #shown: Shown[] = [];
  #plot: uPlot | null = null;
  #mode = "";
  #stop: (() => void) | null = null;
  #resize: ResizeObserver | null = null;
  #room = 40;
  #readout = h("p", { class: "readout", "aria-hidden": "true" });
  #values = h("div", { class: "visually-hidden" });
  #canvas = h("div", { class: "plot-area", tabindex: "0", role: "img" });

  connectedCallback(): void {
    this.#lines = JSON.parse(this.dataset.lines ?? "[]") as Line[];
    this.#canvas.setAttribute("role", "img");
    this.replaceChildren(this.#readout, this.#canvas, this.#values);
    this.#stop = store.listen(() => this.#draw());
    this.#resize = new ResizeObserver(() => this.#fit());
    this.#resize.observe(this);
    addEventListener("themechange", this.#again);
    this.#canvas.addEventListener("keydown", this.#keys);
    for (const line of this.#lines) store.want(line.run, line.key);
    this.#draw();
  }

  disconnectedCallback(): void {
    this.#stop?.();
    this.#resize?.disconnect();
    removeEventListener("themechange", this.#again);
    this.#plot?.destroy();
    this.#plot = null;
  }

  #again = (): void => this.#plot?.redraw(false, false);

  get #height(): number {
    return Number(this.dataset.height ?? 180);
  }

  #fit(): void {
    if (this.#plot && this.clientWidth) this.#plot.setSize({ width: this.clientWidth, height: this.#height });
    else this.#draw();
  }

  #isTime(): boolean {
    return store.options.axis === "time" && this.#shown.some((shown) => shown.xs.length > 0);
  }

  #gather(): void {
    this.#shown = [];
    for (const line of this.#lines) {
      let points = store.points(line.run, line.key);
      if (!points || !points.steps.length) continue;
      const timed = store.options.axis === "time" && points.times.some(Number.isFinite);
      if (timed && !points.times.every(Number.isFinite)) {
        const all = points;
        const known = all.steps.map((_, index) => index).filter((index) => Number.isFinite(all.times[index]));
        const pick = (list: number[]): number[] => known.map((index) => list[index] as number);
        points = { steps: pick(all.steps), values: pick(all.values), low: pick(all.low), high: pick(all.high), times: pick(all.times) };
      }
      const factor = line.held_out || PLANNED.has(line.key) || points.values.length < 12 ? 0 : store.options.smoothing;
      this.#shown.push({ line, points, xs: timed ? points.times : points.steps, smoothed: smooth(points.values, factor) });
    }
  }

  #draw(): void {
    if (!this.clientWidth) return;
    this.#gather();
    const fetched = this.#lines.every((line) => store.points(line.run, line.key));
    if (!this.#shown.length) {
      this.#plot?.destroy();
      this.#plot = null;
      const words = store.failed || (!fetched ? "reading the points …" : this.dataset.live === "yes" ? "no points yet" : "not measured");
      this.#canvas.replaceChildren(h("p", { class: "no-points" }, words));
      this.#describe();
      return;
    }
    const positive = this.#shown.every((shown) => shown.points.low.every((value) => !(value <= 0)));
    const log = store.options.log && positive;
    const mode = `${log} ${store.options.axis} ${this.#shown.map((shown) => `${shown.line.run} ${shown.line.key}`).join()}`;
    this.#room = Math.ceil(Math.min(roomFor(this.#shown.map((shown) => this.#label(shown))), this.clientWidth * 0.45));
    const data = this.#aligned();
    if (!this.#plot || mode !== this.#mode) {
      this.#mode = mode;
      this.#plot?.destroy();
      this.#canvas.replaceChildren();
      this.#plot = new uPlot(this.#settings(log), data, this.#canvas);
    } else {
      // No redraw() here: it would set the old scale once more, and the chart would stand still while points arrive.
      this.#plot.setData(data, true);
    }
    if (store.window && store.options.axis === "step") this.#plot.setScale("x", { min: store.window[0], max: store.window[1] });
    this.#describe();
  }

  #label(shown: Shown): { name: string; value: string } {
    // The line ends at its smoothed value: the number beside the end is that one.
    return { name: shown.line.label, value: number(shown.smoothed.at(-1), 3) };
  }

  #aligned(): uPlot.AlignedData {
    const tables = this.#shown.map((shown): uPlot.AlignedData => [shown.xs, shown.smoothed.map((value) => (Number.isFinite(value) ? value : null))]);
    if (tables.length === 1) return tables[0] as uPlot.AlignedData;
    return uPlot.join(tables);
  }

  #range = (log: boolean, plot: uPlot): [number, number] => {
    const from = plot.scales.x?.min ?? -Infinity;
    const to = plot.scales.x?.max ?? Infinity;
    let low = Infinity;
    let high = -Infinity;
    for (const { xs, points, smoothed } of this.#shown) {
      // The raw line may be wild; its middle 98 % decide, so that one spike does not flatten the rest.
      const inside: number[] = [];
      xs.forEach((x, index) => {
        if (x < from || x > to) return;
        for (const value of [points.low[index], points.high[index], smoothed[index]]) if (value !== undefined && Number.isFinite(value)) inside.push(value);
      });
      if (!inside.length) continue;
      inside.sort((a, b) => a - b);
      const cut = inside.length > 150 ? Math.floor(inside.length * 0.01) : 0;
      low = Math.min(low, inside[cut] as number);
      high = Math.max(high, inside[inside.length - 1 - cut] as number);
    }
    if (!Number.isFinite(low)) return [0, 1];
    const bottom = this.dataset.low === undefined ? null : Number(this.dataset.low);
    const top = this.dataset.high === undefined ? null : Number(this.dataset.high);
    if (log) return [low / 1.15, high * 1.15];
    let [min, max] = padded(low, high);
    if (low >= 0 && min < 0) min = 0;
    // A share stays inside its bounds and never zooms in further than a fifth of them.
    if (bottom !== null && top !== null && max - min < (top - bottom) / 5) {
      const middle = (low + high) / 2;
      [min, max] = [middle - (top - bottom) / 10, middle + (top - bottom) / 10];
    }
    if (bottom !== null && min < bottom) [min, max] = [bottom, Math.max(max, bottom + (top !== null ? (top - bottom) / 5 : 0))];
    if (top !== null && max > top) [min, max] = [Math.min(min, top - (bottom !== null ? (top - bottom) / 5 : 0)), top];
    return [min, max];
  };

  #settings(log: boolean): uPlot.Options {
    const font = "11px system-ui, sans-serif";
    const time = this.#isTime();
    return {
      width: this.clientWidth,
      height: this.#height,
      padding: [8, () => this.#room, 0, 0],
      legend: { show: false },
      cursor: {
        points: { show: false },
        drag: { x: true, y: false, setScale: false },
        sync: { key: `charts ${store.options.axis}`, scales: ["x", null] },
        bind: { dblclick: () => () => (store.zoom(null), null) },
      },
      scales: {
        x: { time: false, range: (_self, min, max) => (min === max ? [min - 0.5, max + 0.5] : [min, max]) },
        y: { distr: log ? 3 : 1, range: (plot) => this.#range(log, plot) },
      },
      axes: [
        {
          font,
          size: 26,
          gap: 4,
          space: 70,
          stroke: () => color("--ink-3"),
          grid: { show: false },
          ticks: { show: false },
          border: { show: true, width: 1, stroke: () => color("--rule") },
          incrs: time ? undefined : [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 2500, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1e6, 2e6, 5e6],
          values: (_plot, splits) => splits.map((split) => (time ? duration(split).replace(/ 0 (s|min|h)$/, "") : split.toLocaleString("en-US"))),
        },
        {
          font,
          size: (_self, values) => 12 + 6.4 * Math.max(1, ...(values ?? []).map((value) => String(value).length)),
          gap: 6,
          space: 34,
          stroke: () => color("--ink-3"),
          grid: { width: 1, stroke: () => color("--hairline") },
          ticks: { show: false },
          values: (_self, splits) => splits.map((split) => (split === null ? "" : number(split, 3))),
        },
      ],
      series: [{}, ...this.#shown.map((): uPlot.Series => ({ show: true, stroke: "transparent", width: 0, points: { show: false }, paths: () => null }))],
      hooks: { draw: [(plot) => this.#paint(plot)], setCursor: [(plot) => this.#read(plot)], setSelect: [(plot) => this.#select(plot)] },
    };
  }

  #select(plot: uPlot): void {
    if (plot.select.width < 8) return;
    const from = plot.posToVal(plot.select.left, "x");
    const to = plot.posToVal(plot.select.left + plot.select.width, "x");
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    // Zooming asks the server for finer points, which it cuts by step.
    if (store.options.axis === "step") store.zoom([from, to]);
    else plot.setScale("x", { min: from, max: to });
  }

  #paint(plot: uPlot): void {
    this.dataset.shows = `${plot.scales.x?.min ?? ""} ${plot.scales.x?.max ?? ""}`;
    const { ctx, bbox } = plot;
    const ratio = uPlot.pxRatio;
    const at = (shown: Shown, index: number, value: number): [number, number] => [plot.valToPos(shown.xs[index] as number, "x", true), plot.valToPos(value, "y", true)];
    const stroke = (shown: Shown, values: number[]): void => {
      ctx.beginPath();
      let pen = false;
      values.forEach((value, index) => {
        if (!Number.isFinite(value)) {
          pen = false;
          return;
        }
        const [x, y] = at(shown, index, value);
        if (pen) ctx.lineTo(x, y);
        else ctx.moveTo(x, y);
        pen = true;
      });
      ctx.stroke();
    };

    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left - 4 * ratio, bbox.top - 4 * ratio, bbox.width + 8 * ratio, bbox.height + 8 * ratio);
    ctx.clip();
    ctx.lineJoin = "round";
    for (const shown of this.#shown) {
      const ink = color(shown.line.slot ? `--run-${shown.line.slot}` : "--ink");
      ctx.strokeStyle = ctx.fillStyle = ink;
      ctx.setLineDash([]);
      const { low, high, values } = shown.points;
      if (low.some((value, index) => value !== high[index])) {
        ctx.globalAlpha = 0.16;
        ctx.beginPath();
        const finite = shown.xs.map((_, index) => index).filter((index) => Number.isFinite(low[index]) && Number.isFinite(high[index]));
        finite.forEach((index, order) => {
          const [x, y] = at(shown, index, high[index] as number);
          if (order) ctx.lineTo(x, y);
          else ctx.moveTo(x, y);
        });
        for (const index of finite.reverse()) ctx.lineTo(...at(shown, index, low[index] as number));
        ctx.closePath();
        ctx.fill();
      } else if (shown.smoothed !== values) {
        ctx.globalAlpha = 0.28;
        ctx.lineWidth = ratio;
        stroke(shown, values);
      }
      ctx.globalAlpha = 1;
      ctx.lineWidth = 1.75 * ratio;
      ctx.setLineDash(dash(shown.line.slot).map((length) => length * ratio));
      stroke(shown, shown.smoothed);
      ctx.setLineDash([]);
      if (shown.line.held_out || values.length === 1) {
        ctx.fillStyle = color("--surface");
        ctx.lineWidth = 1.5 * ratio;
        values.forEach((value, index) => {
          if (!Number.isFinite(value)) return;
          ctx.beginPath();
          ctx.arc(...at(shown, index, value), 3 * ratio, 0, 2 * Math.PI);
          ctx.fill();
          ctx.stroke();
        });
      }
    }
    // Where a value is no number: a cross on the base line, said in words below the chart.
    ctx.strokeStyle = color("--warn");
    ctx.lineWidth = 1.5 * ratio;
    for (const shown of this.#shown)
      shown.points.values.forEach((value, index) => {
        if (Number.isFinite(value)) return;
        const x = plot.valToPos(shown.xs[index] as number, "x", true);
        const y = bbox.top + bbox.height - 6 * ratio;
        const r = 3.5 * ratio;
        ctx.beginPath();
        ctx.moveTo(x - r, y - r);
        ctx.lineTo(x + r, y + r);
        ctx.moveTo(x + r, y - r);
        ctx.lineTo(x - r, y + r);
        ctx.stroke();
      });
    ctx.restore();
    this.#labels(plot);
  }

  #labels(plot: uPlot): void {
    const { ctx, bbox } = plot;
    const [right, bottom] = [bbox.left + bbox.width, bbox.top + bbox.height];
    const ends = this.#shown.map((shown) => {
      let index = shown.smoothed.length - 1;
      while (index >= 0 && (!Number.isFinite(shown.smoothed[index]) || (shown.xs[index] as number) > (plot.scales.x?.max ?? Infinity))) index -= 1;
      const value = shown.smoothed[Math.max(index, 0)] as number;
      const x = Math.max(bbox.left, Math.min(plot.valToPos(shown.xs[Math.max(index, 0)] as number, "x", true), right));
      const y = Number.isFinite(value) ? Math.max(bbox.top, Math.min(plot.valToPos(value, "y", true), bottom)) : bottom;
      return { x, y, color: color(shown.line.slot ? `--run-${shown.line.slot}` : "--ink"), ...this.#label(shown) };
    });
    drawLabels(ctx, ends, { top: bbox.top, bottom, right }, this.#room, uPlot.pxRatio);
  }

  #read(plot: uPlot): void {
    const left = plot.cursor.left ?? -1;
    if (left < 0) {
      this.#readout.replaceChildren();
      return;
    }
    const x = plot.posToVal(left, "x");
    const first = this.#shown[0];
    if (!first) return;
    const parts = this.#shown.map((shown) => {
      const index = near(shown.xs, x);
      return h("span", { class: `f${shown.line.slot}` }, `${shown.line.label} ${number(shown.points.values[index], 4)}`.trim());
    });
    const step = first.xs[near(first.xs, x)] ?? 0;
    this.#readout.replaceChildren(h("span", {}, this.#isTime() ? duration(step) : `step ${step.toLocaleString("en-US")}`), ...parts);
  }

  /** Arrow keys walk along the points, + and − zoom, 0 shows everything. */
  #keys = (event: KeyboardEvent): void => {
    const plot = this.#plot;
    const first = this.#shown[0];
    if (!plot || !first) return;
    const walk = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (walk !== undefined) {
      const left = plot.cursor.left ?? -1;
      const now = left < 0 ? (walk > 0 ? -1 : first.xs.length) : near(first.xs, plot.posToVal(left, "x"));
      const index = Math.max(0, Math.min(first.xs.length - 1, now + walk));
      plot.setCursor({ left: plot.valToPos(first.xs[index] as number, "x"), top: 10 });
    } else if (event.key === "0") store.zoom(null);
    else if (event.key === "+" || event.key === "-") {
      const { min = 0, max = 1 } = plot.scales.x ?? {};
      const center = (plot.cursor.left ?? -1) < 0 ? ((min ?? 0) + (max ?? 1)) / 2 : plot.posToVal(plot.cursor.left ?? 0, "x");
      const half = (((max ?? 1) - (min ?? 0)) / 2) * (event.key === "+" ? 0.5 : 2);
      const [from, to] = [first.xs[0] as number, first.xs.at(-1) as number];
      if (event.key === "-" && half * 2 >= to - from) store.zoom(null);
      else store.zoom([Math.max(Math.min(from, min ?? 0), center - half), Math.min(Math.max(to, max ?? 1), center + half)]);
    } else return;
    event.preventDefault();
  };

  /** The same in words, for those who do not see the canvas. */
  #describe(): void {
    const title = this.closest("figure")?.querySelector("h3")?.textContent ?? "Chart";
    const rows = this.#lines.map((line) => {
      const points = store.points(line.run, line.key);
      const finite = points?.values.filter(Number.isFinite) ?? [];
      const lost = (points?.values.length ?? 0) - finite.length;
      return { line, n: points?.values.length ?? 0, last: points?.values.at(-1), step: points?.steps.at(-1), low: Math.min(...finite), high: Math.max(...finite), lost, lostAt: points?.steps[points.values.findIndex((value) => !Number.isFinite(value))] };
    });
    this.#canvas.setAttribute("aria-label", `${title}. ${rows.map((row) => (row.n ? `${row.line.label || row.line.key} ${number(row.last)} at step ${row.step}` : `${row.line.label || row.line.key} not measured`)).join("; ")}.`);
    this.#values.replaceChildren(
      h(
        "table",
        {},
        h("caption", {}, `${title}, last values`),
        h("thead", {}, h("tr", {}, ...["Line", "Last", "At step", "Lowest", "Highest", "Points"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, ...rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.line.label || row.line.key), ...(row.n ? [number(row.last), String(row.step), number(row.low), number(row.high), String(row.n)] : ["not measured", "", "", "", "0"]).map((cell) => h("td", {}, cell))))),
      ),
    );
    const says = this.parentElement?.querySelector<HTMLElement>(".says.by-chart") ?? null;
    if (!says) return;
    const missing = rows.filter((row) => !row.n && this.#shown.length);
    const broken = rows.filter((row) => row.lost);
    says.replaceChildren(
      ...broken.map((row) => h("span", { class: "look" }, `${row.line.label || row.line.key}: ${row.lost} value${row.lost > 1 ? "s" : ""} not a number, first at step ${row.lostAt}. `)),
      ...missing.map((row) => h("span", {}, `${row.line.label || row.line.key}: `, h("em", {}, this.dataset.live === "yes" ? "no points yet" : "not measured"), ". ")),
    );
  }
}

customElements.define("run-chart", RunChart);
