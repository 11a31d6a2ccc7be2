/** The card beside the form: what can be known before the run starts; what cannot is left out. */
import { glyph, h, type Child } from "../lib/dom.ts";
import { duration, number } from "../lib/format.ts";
import type { Options, VersionOption } from "./fields.ts";
import { idOf, label } from "./words.ts";

export interface Workers {
  total: number;
  free: number;
  waiting: number;
}

/** Each ascending; what a chat template adds is not counted. */
export interface Lengths {
  rows: number[];
  prompts: number[];
}

export interface Known {
  method: string;
  version: VersionOption | undefined;
  /** A number of the form, or null where it is none. */
  number(path: string): number | null;
  /** Paths of the fields that cannot be sent. */
  wrong: string[];
  seeds: number;
  options: Options;
  workers: Workers | null;
  /** Tokens of evenly spread rows in the chosen model's words; null while unknown. */
  lengths: Lengths | null;
  /** Whether prompts are learned from, too. */
  learnsAll: boolean;
  go(path: string): void;
}

type Fact = [Child, Child, string?];

function rows(known: Known): Fact[] {
  const { version } = known;
  const facts: Fact[] = [];
  const heldOut = known.number("evaluation.held_out");
  if (version) {
    facts.push(["Rows", number(version.rows), version.row_type.replaceAll("_", " ")]);
    if (heldOut) facts.push(["Held out, about", number(Math.round(version.rows * heldOut), 3), "rows"]);
  }
  const [steps, batch, accumulation, processes] = ["optimization.steps", "optimization.batch_size", "optimization.accumulation", "devices.processes"].map((path) => known.number(path));
  if (!steps || !batch || !accumulation) return facts;
  const step = batch * accumulation * (processes ?? 1);
  const group = known.number("group_size");
  const online = known.method === "grpo" || known.method === "ppo";
  const perRow = group ?? 1;
  facts.push([online ? "Completions a step" : "Rows a step", number(step)]);
  if (group) facts.push(["Prompts a step", number(step / group, 3)]);
  if (version && heldOut !== null && heldOut !== undefined) {
    const passes = known.number("epochs") ?? 1;
    const seen = (steps * step) / perRow / passes / Math.max(1, version.rows * (1 - heldOut));
    facts.push([online ? "Each prompt is sampled, about" : "Each row is seen, about", number(seen, 2), "times"]);
  }
  const every = known.number("evaluation.every_steps");
  if (every) facts.push(["Evaluations", number(Math.floor((steps - 1) / every) + 2)]);
  return facts;
}

/** What the longest length would cut: the end of a row, which is left out if its prompt fills it, or the beginning of a prompt that is answered live. */
function cut(known: Known): Child[] {
  const [longest, answer] = [known.number("max_length"), known.number("sampling.max_new_tokens")];
  if (!known.lengths?.rows.length || !longest) return [];
  const online = answer !== null;
  const room = online ? longest - answer : longest;
  const lengths = online ? known.lengths.prompts : known.lengths.rows;
  const share = (fitting: number[], least: number): number => fitting.filter((length) => length >= least).length / fitting.length;
  const over = share(lengths, room + 1);
  const out = online || known.learnsAll ? 0 : share(known.lengths.prompts, room);
  const percent = (part: number): string => (part ? `${number(100 * part, 2)} %` : "none");
  const facts: [string, string][] = [
    [online ? "Half of the prompts have up to" : "Half of the rows have up to", number(lengths[Math.floor(lengths.length / 2)] ?? 0)],
    [`Longer than ${number(room)}, about`, percent(over)],
  ];
  if (out) facts.push(["Left out, at least", percent(out)]);
  const said = online ? "prompts. What is longer is cut at its beginning" : `rows. What is longer is cut at its end${out ? "; where the prompt fills the length, nothing is left to learn from" : ""}`;
  return [
    h("h3", {}, "Tokens"),
    h("dl", { class: "pairs" }, ...facts.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value)))),
    over ? h("p", { class: over >= 0.1 || out ? "small look" : "small quiet" }, `By ${number(lengths.length)} ${said}.`) : null,
  ];
}

function queue({ workers, seeds }: Known): HTMLElement {
  if (workers === null) return h("p", { class: "small quiet" }, "unknown");
  if (!workers.total) return h("p", { class: "small look" }, `No worker is there. The run${seeds > 1 ? "s" : ""} will wait in the queue until one comes.`);
  const slots = `slot${workers.total === 1 ? "" : "s"}`;
  const free = workers.free > workers.waiting ? (seeds > 1 ? `${Math.min(seeds, workers.free)} of ${seeds} can start at once.` : "it can start at once.") : "";
  return h("p", { class: "small quiet" }, free ? `${workers.free} of ${workers.total} ${slots} free: ${free}` : `${workers.total - workers.free} of ${workers.total} ${slots} busy; ${workers.waiting} run${workers.waiting === 1 ? "" : "s"} before it in the queue.`);
}

export function ready(known: Known): Child[] {
  const { wrong, options } = known;
  const isReady = !wrong.length;
  const steps = known.number("optimization.steps");
  const links = wrong.flatMap((path, index): Child[] => [
    index ? ", " : "",
    h("a", { href: `#${idOf(path)}`, onclick: (event: Event) => { event.preventDefault(); known.go(path); } }, label(path, known.method)),
  ]);
  const time = options.pace && steps
    ? [h("h3", {}, "Time"), h("dl", { class: "pairs" }, h("div", {}, h("dt", {}, "like ", h("a", { href: `/runs/${options.pace.run}` }, `#${options.pace.run}`), `, ${number(options.pace.seconds, 2)} s a step`), h("dd", {}, duration(options.pace.seconds * steps))))]
    : [];
  return [
    h("h2", { id: "ready-title" }, h("span", { class: "state", "data-state": isReady ? "ready" : "not-ready" }, glyph(isReady ? "succeeded" : "failed"), isReady ? " Ready" : " Not ready")),
    isReady ? null : h("p", { class: "small quiet" }, wrong.length === 1 ? "One field to mend: " : `${wrong.length} fields to mend: `, ...links, "."),
    h("dl", { class: "pairs" }, ...rows(known).map(([term, value, unit]) => h("div", {}, h("dt", {}, term), h("dd", {}, value, unit ? h("span", { class: "unit" }, ` ${unit}`) : null)))),
    ...cut(known),
    ...time,
    h("h3", {}, "Workers"),
    queue(known),
    h("div", { class: "btn-row" }, h("button", { class: "btn primary", type: "submit", disabled: !isReady }, known.seeds > 1 ? `Start ${known.seeds} runs` : "Start run")),
  ];
}
