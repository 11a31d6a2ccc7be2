/** What the tabs of a run's page count while the run goes on. Metrics and steps are sets, so that an event heard twice counts once. */

export interface Known {
  /** Names of metrics that have points. */
  metrics: string[];
  /** Steps at which prompts were completed. */
  steps: number[];
  /** Lines of the log up to the event after which the stream begins. */
  lines: number;
}

export class Counts {
  #metrics: Set<string>;
  #steps: Set<number>;
  #lines: number;

  constructor(known: Known) {
    this.#metrics = new Set(known.metrics.map(charted));
    this.#steps = new Set(known.steps);
    this.#lines = known.lines;
  }

  /** Values of one step; whether a metric is among them that had no points yet. */
  metrics(keys: string[]): boolean {
    const before = this.#metrics.size;
    for (const key of keys) this.#metrics.add(charted(key));
    return this.#metrics.size > before;
  }

  completions(step: number): void {
    this.#steps.add(step);
  }

  line(): void {
    this.#lines += 1;
  }

  /** A new attempt goes on after `step`: what the one before it wrote beyond that was taken back; 0 is a start from nothing. */
  rewind(step: number): void {
    for (const written of this.#steps) if (!step || written > step) this.#steps.delete(written);
  }

  /** Name of a tab → its number. */
  shown(): Record<string, number> {
    const charts = [...this.#metrics].filter((name) => !name.startsWith("reliability/"));
    return { charts: charts.length, completions: this.#steps.size, logs: this.#lines };
  }
}

/** Training and held-out values of a metric share a chart. */
const charted = (key: string): string => key.replace(/^eval_/, "");
