/**
 * The metric points of a page: fetched once per run for all charts together, extended by the live stream, fetched finer for a zoom.
 * Non-finite values travel as "nan", "inf", "-inf" and are kept as such: they are the signal people look for.
 */

import { api } from "./api.ts";

export type Wire = number | "nan" | "inf" | "-inf" | null;

/** Points of one metric of one run, by rising step; `low` and `high` are the extremes of a bucket when points were thinned out. */
export interface Points {
  steps: number[];
  values: number[];
  low: number[];
  high: number[];
  times: number[];
}

interface WireSeries {
  steps: number[];
  values: Wire[];
  min?: Wire[];
  max?: Wire[];
  seconds?: (number | null)[];
}

export interface Options {
  /** Share of the past in the smoothed line, 0 … 0.99. */
  smoothing: number;
  log: boolean;
  axis: "step" | "time";
}

export function unwire(value: Wire | undefined): number {
  return typeof value === "number" ? value : value === "inf" ? Infinity : value === "-inf" ? -Infinity : NaN;
}

const nothing = (): Points => ({ steps: [], values: [], low: [], high: [], times: [] });

function parse(wire: WireSeries): Points {
  const values = wire.values.map(unwire);
  return {
    steps: wire.steps,
    values,
    low: wire.min ? wire.min.map(unwire) : values.slice(),
    high: wire.max ? wire.max.map(unwire) : values.slice(),
    times: wire.seconds ? wire.seconds.map((second) => second ?? NaN) : wire.steps.map(() => NaN),
  };
}

/** Put one point where it belongs; a step that is written again (a resumed run) replaces what was there. */
export function put(points: Points, step: number, value: number, time = NaN): void {
  let at = points.steps.length;
  while (at > 0 && (points.steps[at - 1] as number) >= step) at -= 1;
  const replaces = points.steps[at] === step ? 1 : 0;
  points.steps.splice(at, replaces, step);
  points.values.splice(at, replaces, value);
  points.low.splice(at, replaces, value);
  points.high.splice(at, replaces, value);
  points.times.splice(at, replaces, time);
}

/** Exponential average without the bias toward zero of its first points; what is not finite is left out and stays a gap. */
export function smooth(values: number[], factor: number): number[] {
  if (factor <= 0) return values;
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (!Number.isFinite(value)) return value;
    sum = factor * sum + (1 - factor) * value;
    weight = factor * weight + (1 - factor);
    return sum / weight;
  });
}

/** Where an axis from the lowest to the highest value begins and ends. What differs by rounding alone (a β that is fixed) reads flat. */
export function padded(low: number, high: number): [number, number] {
  const size = Math.max(Math.abs(low), Math.abs(high));
  const span = high - low;
  const pad = (span > 1e-6 * size ? span : size || 1) * 0.07;
  return [low - pad, high + pad];
}

/** Index of the value nearest to `x` in a rising list. */
export const near = (xs: number[], x: number): number => {
  let low = 0;
  let high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((xs[middle] as number) <= x) low = middle;
    else high = middle;
  }
  return Math.abs((xs[high] ?? Infinity) - x) < Math.abs((xs[low] ?? Infinity) - x) ? high : low;
};

class Store {
  options: Options = { smoothing: 0.8, log: false, axis: "step" };
  window: [number, number] | null = null;

  #wanted = new Map<number, Set<string>>();
  #whole = new Map<string, Points>();
  #zoomed = new Map<string, Points>();
  #asked = new Set<string>();
  #listeners = new Set<() => void>();
  #due = false;
  #drawn = false;
  #failed = "";

  /** Why points are missing, or "". */
  get failed(): string {
    return this.#failed;
  }

  want(run: number, key: string): void {
    const keys = this.#wanted.get(run) ?? new Set();
    keys.add(key);
    this.#wanted.set(run, keys);
    if (this.#due) return;
    this.#due = true;
    queueMicrotask(() => {
      this.#due = false;
      void this.#fetch();
    });
  }

  listen(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** What is known of a metric now; null while it was never fetched. */
  points(run: number, key: string): Points | null {
    const name = `${run} ${key}`;
    return (this.window && this.#zoomed.get(name)) || this.#whole.get(name) || null;
  }

  /** A live event: values of one step. */
  add(run: number, step: number, values: Record<string, Wire>, time = NaN): void {
    for (const [key, value] of Object.entries(values)) {
      const name = `${run} ${key}`;
      let points = this.#whole.get(name);
      if (!points) {
        if (!this.#wanted.get(run)?.has(key)) continue;
        points = nothing();
        this.#whole.set(name, points);
      }
      put(points, step, unwire(value), time);
      const zoomed = this.#zoomed.get(name);
      if (zoomed && this.window && step >= this.window[0] && step <= this.window[1]) put(zoomed, step, unwire(value), time);
    }
    this.changed();
  }

  /** A new attempt went on from a checkpoint: what the one before it measured beyond that never counted. Ask for all again. */
  reload(run: number): void {
    for (const key of this.#wanted.get(run) ?? []) {
      this.#asked.delete(`${run} ${key}`);
      this.#whole.delete(`${run} ${key}`);
      this.#zoomed.delete(`${run} ${key}`);
    }
    void this.#fetch();
    if (this.window) void this.#fetchWindow(this.window);
  }

  /** Look at steps from … to, or at everything again. */
  zoom(window: [number, number] | null): void {
    this.window = window;
    this.#zoomed.clear();
    this.changed();
    if (window) void this.#fetchWindow(window);
  }

  set(options: Partial<Options>): void {
    Object.assign(this.options, options);
    this.changed();
  }

  changed(): void {
    if (this.#drawn) return;
    this.#drawn = true;
    requestAnimationFrame(() => {
      this.#drawn = false;
      for (const listener of this.#listeners) listener();
    });
  }

  async #get(run: number, keys: string[], window: [number, number] | null): Promise<Map<string, Points>> {
    const query = new URLSearchParams({ keys: keys.join(","), points: "500" });
    if (window) {
      query.set("from_step", String(Math.max(0, Math.floor(window[0]))));
      query.set("to_step", String(Math.max(0, Math.ceil(window[1]))));
    }
    const answer = await api<{ series: Record<string, WireSeries> }>(`/api/v1/runs/${run}/metrics?${query}`);
    return new Map(keys.map((key) => [`${run} ${key}`, answer.series[key] ? parse(answer.series[key]) : nothing()]));
  }

  async #fetch(): Promise<void> {
    await Promise.all(
      [...this.#wanted].map(async ([run, keys]) => {
        const missing = [...keys].filter((key) => !this.#asked.has(`${run} ${key}`));
        if (!missing.length) return;
        for (const key of missing) this.#asked.add(`${run} ${key}`);
        try {
          for (const [name, points] of await this.#get(run, missing, null)) {
            // Points that came by the stream meanwhile are newer than the answer.
            const live = this.#whole.get(name);
            live?.steps.forEach((step, index) => put(points, step, live.values[index] as number, live.times[index]));
            this.#whole.set(name, points);
          }
          this.#failed = "";
        } catch (error) {
          for (const key of missing) this.#asked.delete(`${run} ${key}`);
          this.#failed = error instanceof Error ? error.message : String(error);
        }
      }),
    );
    this.changed();
  }

  async #fetchWindow(window: [number, number]): Promise<void> {
    await Promise.all(
      [...this.#wanted].map(async ([run, keys]) => {
        const answer = await this.#get(run, [...keys], window).catch(() => new Map<string, Points>());
        if (this.window !== window) return;
        for (const [name, points] of answer) this.#zoomed.set(name, points);
      }),
    );
    this.changed();
  }
}

/** The one store of the page. */
export const store = new Store();
