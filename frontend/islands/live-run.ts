// <live-run data-run data-after data-state data-known>: one event stream for the whole page of a run. It keeps the head and the
// numbers of the tabs true, feeds the charts, the log and the list of completions, and says when the connection is lost; the
// stream resumes after the last id.
import { Counts, type Known } from "./lib/counts.ts";
import { all, glyph, h, one, s } from "./lib/dom.ts";
import { ago, duration, number } from "./lib/format.ts";
import { refresh } from "./lib/refresh.ts";
import { store, type Wire } from "./lib/series.ts";
import { Stream, type Connection } from "./lib/sse.ts";

interface RunEvent {
  state: string;
  step: number;
  total: number;
  rate?: number | null;
  left_seconds?: number | null;
  worker?: string | null;
  silent_seconds?: number | null;
  attempt?: number;
}

interface MetricsEvent {
  step: number;
  values: Record<string, Wire>;
  at?: string;
}

interface LogEvent {
  kind?: string;
  at?: string;
  level?: string;
  text: string;
  /** Of a new attempt: the step after which it goes on. */
  first_step?: number;
}

interface CompletionsEvent extends LogEvent {
  step: number;
}

const TERMINAL = ["succeeded", "failed", "cancelled"];
const SHAPES: Record<string, string> = { cancelling: "draining" };

class LiveRun extends HTMLElement {
  #stream: Stream | null = null;
  #state = "";
  #attempt = 0;
  #due: ReturnType<typeof setTimeout> | undefined;
  #clock: ReturnType<typeof setInterval> | undefined;
  /** How far the studio's clock is ahead of this machine's, in milliseconds. */
  #ahead = 0;
  #last: RunEvent | null = null;
  #counts = new Counts({ metrics: [], steps: [], lines: 0 });

  connectedCallback(): void {
    this.#state = this.dataset.state ?? "";
    this.#attempt = Number(this.dataset.attempt ?? 0);
    if (TERMINAL.includes(this.#state)) return;
    this.#ahead = Date.parse(this.dataset.now ?? "") - Date.now() || 0;
    this.#clock = setInterval(() => this.#tick(), 1000);
    this.#counts = new Counts(JSON.parse(this.dataset.known ?? "") as Known);
    this.#stream = new Stream(`/api/v1/runs/${this.dataset.run}/events`, {
      after: Number(this.dataset.after ?? 0),
      events: ["run", "metrics", "completions", "log"],
      on: (event, data) => this.#hear(event, data),
      state: (connection) => this.#connection(connection),
    });
  }

  disconnectedCallback(): void {
    this.#stream?.close();
    clearTimeout(this.#due);
    clearInterval(this.#clock);
  }

  /** What counts seconds goes on between two refreshes. */
  #tick(): void {
    const since = (moment: string | undefined): number => Math.max(0, (Date.now() + this.#ahead - Date.parse(moment ?? "")) / 1000);
    const put = (place: HTMLElement, text: string): void => {
      if (place.textContent !== text) place.textContent = text;
    };
    for (const place of all("[data-since]")) put(place, duration(since(place.dataset.since)));
    for (const place of all<HTMLTimeElement>("time[data-ago]")) put(place, ago(since(place.dateTime)));
  }

  #hear(event: string, data: unknown): void {
    if (event === "run") this.#run(data as RunEvent);
    else if (event === "metrics") {
      const { step, values, at } = data as MetricsEvent;
      const seconds = at && this.dataset.started ? (Date.parse(at) - Date.parse(this.dataset.started)) / 1000 : NaN;
      store.add(Number(this.dataset.run), step, values, seconds);
      const isNew = this.#counts.metrics(Object.keys(values));
      if (isNew || Object.keys(values).some((key) => key.startsWith("eval_"))) this.#soon();
    } else if (event === "completions") {
      const { step, ...line } = data as CompletionsEvent;
      this.#counts.completions(step);
      this.#log(line);
      this.#soon();
    } else if (event === "log") {
      const line = data as LogEvent;
      if (line.kind === "started" && line.first_step !== undefined) this.#counts.rewind(line.first_step);
      if (line.kind === "checkpoint") this.#soon();
      this.#log(line);
    }
    this.#tabs();
  }

  /** Parts that the server words (diagnosis, before and after, completions, checkpoints) are asked for again, at most every 1.5 s. */
  #soon(): void {
    this.#due ??= setTimeout(() => void this.#refresh(), 1500);
  }

  /** The fetched page may be older than the last event: steps never run backward. */
  async #refresh(): Promise<void> {
    clearTimeout(this.#due);
    this.#due = undefined;
    await refresh();
    if (this.#last && !TERMINAL.includes(this.#last.state)) this.#head(this.#last);
  }

  #tabs(): void {
    for (const [name, n] of Object.entries(this.#counts.shown())) {
      const tab = one(`.tabs [data-tab="${name}"]`);
      if (!tab || !n) continue;
      const place = one(".n", tab) ?? h("span", { class: "n" });
      if (!place.isConnected) tab.append(" ", place);
      if (place.textContent !== number(n)) place.textContent = number(n);
    }
  }

  #connection(connection: Connection): void {
    if (connection === "lost") {
      if (!this.firstChild) this.append(h("p", { class: "connection", role: "status" }, "Connection lost, catching up. The run goes on without this page; what is shown is as of a moment ago."));
    } else if (connection === "open") this.replaceChildren();
  }

  #put(name: string, ...nodes: (Node | string)[]): void {
    for (const place of all(`[data-live="${name}"]`)) place.replaceChildren(...nodes.map((node) => (node instanceof Node ? node.cloneNode(true) : node)));
  }

  #run(run: RunEvent): void {
    if (run.attempt !== undefined && run.attempt !== this.#attempt) {
      this.#attempt = run.attempt;
      if (run.attempt > 1) store.reload(Number(this.dataset.run));
    }
    this.#last = run;
    this.#head(run);
    if (run.state !== this.#state) {
      this.#state = run.state;
      // Buttons, notices and facts depend on the state: the server words them.
      void this.#refresh();
      if (TERMINAL.includes(run.state)) {
        // It was the last event; the model it made is registered in the same moment, the page words it.
        this.#stream?.close();
        this.#stream = null;
        clearInterval(this.#clock);
        this.replaceChildren();
      }
    }
  }

  #head(run: RunEvent): void {
    const silent = run.silent_seconds !== null && run.silent_seconds !== undefined;
    this.#put("state", h("span", { class: "state", "data-state": silent ? "silent" : run.state }, glyph(silent ? "silent" : (SHAPES[run.state] ?? run.state)), silent ? ` silent for ${duration(run.silent_seconds)}` : ` ${run.state}`));
    this.#put("step", number(run.step));
    this.#put("total", number(run.total));
    if ("rate" in run) this.#put("rate", run.rate == null ? h("span", { class: "none" }, "unknown") : `${number(run.rate, 3)} steps/s`);
    if ("left_seconds" in run) this.#put("left", run.left_seconds == null ? h("span", { class: "none" }, "unknown") : duration(run.left_seconds));
    if ("worker" in run) this.#put("worker", run.worker ? h("a", { href: "/workers" }, run.worker) : h("span", { class: "none" }, "none"));
    const share = run.total ? Math.min(1, run.step / run.total) : 0;
    const meter = one("svg", one('[data-live="progress"]') ?? document);
    meter?.setAttribute("aria-label", `Step ${run.step} of ${run.total}`);
    meter?.replaceChildren(s("rect", { x: "0%", width: `${(100 * share).toFixed(1)}%`, class: TERMINAL.includes(run.state) ? "" : "live" }));
  }

  #log(line: LogEvent): void {
    this.#counts.line();
    const list = one("#log-lines");
    if (!list) return;
    const atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 30;
    const level = line.level === "warning" || line.level === "error" ? line.level : "";
    const at = line.at ? new Date(line.at) : new Date();
    list.append(h("li", { class: level || null }, h("time", { datetime: at.toISOString() }, at.toISOString().slice(11, 19)), level ? h("b", {}, level) : null, h("span", {}, line.text)));
    while (list.children.length > 2000) list.firstElementChild?.remove();
    if (atEnd) list.scrollTop = list.scrollHeight;
  }
}

customElements.define("live-run", LiveRun);
