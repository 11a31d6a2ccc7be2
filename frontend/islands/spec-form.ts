// <spec-form>: the form of a run, built from its spec's JSON schema. A field that means nothing under another choice is not there.
// The server leaves five JSON blocks beside it: spec-schema, spec-options, spec-presets, spec-start, spec-workers.
import { api, ProblemError, type Problem } from "./lib/api.ts";
import { data, glyph, h, one, toast, type Child } from "./lib/dom.ts";
import { duration, number } from "./lib/format.ts";

interface Schema {
  $ref?: string;
  $defs?: Record<string, Schema>;
  type?: string;
  title?: string;
  description?: string;
  default?: unknown;
  const?: unknown;
  enum?: unknown[];
  properties?: Record<string, Schema>;
  oneOf?: Schema[];
  discriminator?: { propertyName: string; mapping: Record<string, string> };
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
}

interface ModelOption {
  id: number;
  label: string;
}

interface VersionOption extends ModelOption {
  rows: number;
  row_type: string;
}

interface Options {
  models: ModelOption[];
  versions: VersionOption[];
  /** Seconds a step took in the last finished run of this method, and that run. */
  pace: { run: number; seconds: number } | null;
}

interface Preset {
  name: string;
  does: string;
  values: Record<string, unknown>;
}

interface Start {
  name: string;
  parent: number | null;
  spec: Record<string, unknown> | null;
  home: string;
}

interface Workers {
  total: number;
  free: number;
  waiting: number;
}

type Values = Record<string, string | boolean>;

interface Field {
  path: string;
  schema: Schema;
  kind: "number" | "integer" | "text" | "enum" | "boolean" | "union" | "model" | "version";
  /** Discriminator values of a union, with the sentence of each variant. */
  variants?: { kind: string; schema: Schema }[];
  /** The union and the choice without which this field does not exist. */
  under?: { path: string; kind: string };
  initial: string | boolean;
}

const LABELS: Record<string, string> = {
  base_model: "Base model",
  dataset: "Dataset version",
  beta: "Pull to the reference",
  sft_weight: "SFT weight",
  beta2: "Adam β₂",
  completion_only: "Completions only",
  centering: "Centering",
  use_margin: "Use the margin",
  held_out: "Held out",
  max_rows: "Rows at most",
  every_steps: "Every … steps",
  alpha: "LoRA alpha",
  rank: "LoRA rank",
  dropout: "LoRA dropout",
};
const CHOICES: Record<string, string> = { full: "All weights", lora: "LoRA adapter", sigmoid: "Sigmoid (DPO)", ipo: "IPO" };
const AFTER: Record<string, string> = {
  "optimization.steps": "optimizer steps",
  "optimization.batch_size": "rows",
  "optimization.accumulation": "passes a step",
  "optimization.warmup_steps": "steps",
  "evaluation.held_out": "of the prompts",
  "evaluation.every_steps": "steps",
  "checkpoints.every_steps": "steps",
  "evaluation.max_new_tokens": "tokens",
  "evaluation.completions": "prompts",
  max_length: "tokens",
  beta: "β",
};
const ESSENTIAL = ["base_model", "dataset", "optimization.steps", "optimization.learning_rate", "loss", "beta", "weights"];
const REST = ["max_length", "seed"];

const last = (path: string): string => path.split(".").at(-1) ?? path;
const humane = (name: string): string => LABELS[name] ?? name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());
const idOf = (path: string): string => `spec-${path.replaceAll(".", "-")}`;

/** Text with its arXiv numbers as links. */
function linked(text: string): Child[] {
  return text.split(/(arXiv:\d{4}\.\d{4,5})/).map((part) => (part.startsWith("arXiv:") ? h("a", { href: `https://arxiv.org/abs/${part.slice(6)}`, rel: "noreferrer external" }, part) : part));
}

function plain(value: unknown): string {
  if (typeof value === "number") return value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7) ? value.toExponential().replace("e+", "e") : String(value);
  return value === undefined || value === null ? "" : String(value);
}

/** A random key; `randomUUID` is missing where the studio is served without https from another machine. */
function key(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

class SpecForm extends HTMLElement {
  #schema: Schema = {};
  #options: Options = { models: [], versions: [], pace: null };
  #presets: Preset[] = [];
  #start: Start = { name: "", parent: null, spec: null, home: "/" };
  #workers: Workers | null = null;
  #fields: Field[] = [];
  #values: Values = {};
  #fromPreset = new Map<string, unknown>();
  #refused = new Map<string, string>();
  #form = h("form", { class: "new-run", novalidate: true });
  #essential = h("div");
  #folds = h("div", { class: "folds" });
  #ready = h("aside", { class: "ready", "aria-labelledby": "ready-title" });
  #name = h("input", { class: "input wide", id: "run-name", maxlength: "200", autocomplete: "off" });
  #said = h("div", { "aria-live": "polite" });

  connectedCallback(): void {
    this.#schema = data<Schema>("spec-schema") ?? {};
    this.#options = data<Options>("spec-options") ?? this.#options;
    this.#presets = data<Preset[]>("spec-presets") ?? [];
    this.#start = data<Start>("spec-start") ?? this.#start;
    this.#workers = data<Workers>("spec-workers");
    this.#fields = this.#walk(this.#schema, "");
    this.#name.value = this.#start.name;
    for (const field of this.#fields) this.#values[field.path] = field.initial;
    if (this.#start.spec) this.#take(this.#start.spec);
    else {
      const first = this.#presets[0];
      if (first) this.#apply(first);
    }
    const kept = sessionStorage.getItem("imported spec");
    if (kept) {
      sessionStorage.removeItem("imported spec");
      this.#take(JSON.parse(kept) as Record<string, unknown>);
      toast("The spec of the file is in the form.");
    }
    this.#build();
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#send();
    });
    document.addEventListener("click", this.#tools);
  }

  disconnectedCallback(): void {
    document.removeEventListener("click", this.#tools);
  }

  get #method(): string {
    return this.dataset.method ?? "";
  }

  #resolve(schema: Schema): Schema {
    if (!schema.$ref) return schema;
    const named = this.#schema.$defs?.[schema.$ref.replace("#/$defs/", "")] ?? {};
    // A sentence at the field says more than the one at its type.
    return { ...named, ...schema, $ref: undefined };
  }

  #walk(schema: Schema, prefix: string, under?: Field["under"]): Field[] {
    const fields: Field[] = [];
    for (const [name, raw] of Object.entries(schema.properties ?? {})) {
      const path = prefix ? `${prefix}.${name}` : name;
      const property = this.#resolve(raw);
      if (property.const !== undefined) continue;
      if (property.oneOf && property.discriminator) {
        const key = property.discriminator.propertyName;
        const variants = property.oneOf.map((variant) => {
          const resolved = this.#resolve(variant);
          return { kind: String(resolved.properties?.[key]?.const ?? ""), schema: resolved };
        });
        fields.push({ path, schema: property, kind: "union", variants, under, initial: variants[0]?.kind ?? "" });
        for (const variant of variants) fields.push(...this.#walk(variant.schema, path, { path, kind: variant.kind }));
      } else if (property.properties) fields.push(...this.#walk(property, path, under));
      else if (path === "base_model") fields.push({ path, schema: property, kind: "model", under, initial: plain(this.#options.models[0]?.id) });
      else if (path === "dataset") fields.push({ path, schema: property, kind: "version", under, initial: plain(this.#options.versions[0]?.id) });
      else if (property.enum) fields.push({ path, schema: property, kind: "enum", under, initial: plain(property.default) });
      else if (property.type === "boolean") fields.push({ path, schema: property, kind: "boolean", under, initial: property.default === true });
      else fields.push({ path, schema: property, kind: property.type === "integer" ? "integer" : property.type === "number" ? "number" : "text", under, initial: plain(property.default) });
    }
    return fields;
  }

  #exists(field: Field): boolean {
    if (!field.under) return true;
    const { path, kind } = field.under;
    const union = this.#fields.find((other) => other.path === path && other.kind === "union");
    return this.#values[path] === kind && (!union || this.#exists(union));
  }

  /** Put a stored or imported spec into the form. */
  #take(spec: Record<string, unknown>): void {
    for (const field of this.#fields) {
      let found: unknown = spec;
      for (const part of field.path.split(".")) found = typeof found === "object" && found !== null ? (found as Record<string, unknown>)[part] : undefined;
      if (field.kind === "union") found = typeof found === "object" && found !== null ? (found as Record<string, unknown>).kind : found;
      if (found === undefined || found === null) continue;
      if (field.kind === "model" && !this.#options.models.some((model) => model.id === found)) continue;
      if (field.kind === "version" && !this.#options.versions.some((version) => version.id === found)) continue;
      this.#values[field.path] = typeof found === "boolean" ? found : plain(found);
    }
  }

  #apply(preset: Preset): void {
    for (const field of this.#fields) if (field.kind !== "model" && field.kind !== "version") this.#values[field.path] = field.initial;
    this.#fromPreset = new Map(Object.entries(preset.values));
    for (const [path, value] of this.#fromPreset) this.#values[path] = typeof value === "boolean" ? value : plain(value);
    this.#refused.clear();
  }

  /** Why a field cannot be sent, or "". */
  #wrong(field: Field): string {
    const refused = this.#refused.get(field.path);
    if (refused) return refused;
    const value = this.#values[field.path];
    if (field.kind === "model") return value ? "" : "No model of this project fits; register one first.";
    if (field.kind === "version") return value ? "" : "No dataset version of this project fits; import or freeze one first.";
    if (field.kind !== "number" && field.kind !== "integer") return "";
    const text = String(value).trim();
    if (!text) return "A number is needed.";
    const parsed = Number(text);
    if (!Number.isFinite(parsed)) return `“${text}” is not a number.`;
    if (field.kind === "integer" && !Number.isInteger(parsed)) return "A whole number is needed.";
    const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = field.schema;
    if (minimum !== undefined && parsed < minimum) return `At least ${number(minimum)}.`;
    if (maximum !== undefined && parsed > maximum) return `At most ${number(maximum)}.`;
    if (exclusiveMinimum !== undefined && parsed <= exclusiveMinimum) return `More than ${number(exclusiveMinimum)}.`;
    if (exclusiveMaximum !== undefined && parsed >= exclusiveMaximum) return `Less than ${number(exclusiveMaximum)}.`;
    return "";
  }

  #bounds(field: Field): Child[] {
    const { minimum, maximum, exclusiveMinimum, exclusiveMaximum, default: initial } = field.schema;
    const said = (value: number): string => (Number.isInteger(value) ? value.toLocaleString("en-US") : plain(value));
    const big = (bound: number | undefined): string | null => (bound === undefined || bound >= 2 ** 31 ? null : said(bound));
    const low = minimum !== undefined ? said(minimum) : exclusiveMinimum !== undefined ? `more than ${said(exclusiveMinimum)}` : null;
    const high = big(maximum) ?? (big(exclusiveMaximum) ? `less than ${big(exclusiveMaximum)}` : null);
    const range = low && high ? `${low} to ${high}` : low ? (low.startsWith("more") ? low : `${low} or more`) : high;
    const parts: Child[] = [];
    if (range) parts.push(range);
    if (initial !== undefined && field.kind !== "boolean") parts.push(`default ${typeof initial === "number" ? said(initial) : String(initial)}`);
    if (initial !== undefined && field.kind === "boolean") parts.push(`default ${initial ? "on" : "off"}`);
    if (this.#fromPreset.has(field.path) && plain(this.#fromPreset.get(field.path)) === plain(this.#values[field.path]) && plain(this.#fromPreset.get(field.path)) !== plain(initial)) parts.push(h("span", { class: "was" }, `${plain(this.#fromPreset.get(field.path))} from the preset`));
    return parts.flatMap((part, index) => (index ? [" · ", part] : [part]));
  }

  #changed(field: Field): boolean {
    return plain(this.#values[field.path]) !== plain(field.initial);
  }

  #row(field: Field): HTMLElement {
    const id = idOf(field.path);
    const name = last(field.path);
    const value = this.#values[field.path];
    const set = (next: string | boolean, rebuild = false): void => {
      this.#values[field.path] = next;
      this.#refused.delete(field.path);
      if (rebuild) this.#build();
      this.#check(field);
      this.#card();
    };
    let control: HTMLElement;
    let help: Child[] = linked(field.schema.description ?? "");
    let after: Child = AFTER[field.path] ? h("span", { class: "after" }, AFTER[field.path] as string) : null;
    if (field.kind === "union") {
      control = h("select", { class: "select", id }, ...(field.variants ?? []).map(({ kind }) => h("option", { value: kind, selected: kind === value }, CHOICES[kind] ?? kind)));
      const sentence = field.variants?.find(({ kind }) => kind === value)?.schema.description;
      help = [...linked(sentence ?? "")];
    } else if (field.kind === "enum") control = h("select", { class: "select", id }, ...(field.schema.enum ?? []).map((entry) => h("option", { value: String(entry), selected: entry === value }, String(entry))));
    else if (field.kind === "model") {
      control = h("select", { class: "select", id }, ...this.#options.models.map((model) => h("option", { value: model.id, selected: String(model.id) === value }, model.label)));
      after = value ? h("a", { class: "small", href: `/models/${String(value)}` }, "look") : null;
    } else if (field.kind === "version") {
      control = h("select", { class: "select", id }, ...this.#options.versions.map((version) => h("option", { value: version.id, selected: String(version.id) === value }, version.label)));
      after = value ? h("a", { class: "small", href: `/versions/${String(value)}` }, "look") : null;
    } else if (field.kind === "boolean") control = h("input", { type: "checkbox", id, checked: value === true });
    else control = h("input", { class: field.kind === "text" ? "input" : "input number", id, inputmode: field.kind === "integer" ? "numeric" : field.kind === "number" ? "decimal" : "text", autocomplete: "off", value: String(value) });
    if (control instanceof HTMLSelectElement) control.addEventListener("change", () => set((control as HTMLSelectElement).value, true));
    else if (control instanceof HTMLInputElement && control.type === "checkbox") control.addEventListener("change", () => set((control as HTMLInputElement).checked));
    else control.addEventListener("input", () => set((control as HTMLInputElement).value));
    control.setAttribute("aria-describedby", `${id}-help ${id}-error`);
    control.dataset.path = field.path;
    return h(
      "div",
      { class: "field", "data-field": field.path },
      h("label", { for: id }, humane(name), " ", h("code", {}, name)),
      h(
        "div",
        {},
        h("div", { class: "controls" }, control, after),
        h("p", { class: "help", id: `${id}-help` }, ...help),
        h("p", { class: "bounds" }, ...this.#bounds(field)),
        h("p", { class: "error", id: `${id}-error`, hidden: true }),
      ),
    );
  }

  /** Show or hide what is wrong at one field, without rebuilding it under the reader's hands. */
  #check(field: Field): void {
    const row = one(`[data-field="${field.path}"]`, this.#form);
    if (!row) return;
    const wrong = this.#wrong(field);
    const error = one(".error", row);
    const control = one("[data-path]", row);
    if (error) {
      error.hidden = !wrong;
      error.replaceChildren(...(wrong ? [glyph("failed"), h("span", {}, wrong)] : []));
    }
    control?.setAttribute("aria-invalid", wrong ? "true" : "false");
    control?.classList.toggle("changed", !wrong && this.#changed(field));
    one(".bounds", row)?.replaceChildren(...this.#bounds(field).filter((part) => part !== null && part !== undefined && part !== false).map((part) => (part instanceof Node ? part : document.createTextNode(String(part)))));
    const fold = row.closest("details");
    if (fold) this.#sum(fold);
  }

  #groups(): { name: string; said: string; fields: Field[] }[] {
    const isEssential = (field: Field): boolean => ESSENTIAL.includes(field.path) || (!!field.under && ESSENTIAL.includes(field.under.path)) || (!field.path.includes(".") && !REST.includes(field.path));
    const rest = this.#fields.filter((field) => !isEssential(field));
    const names = [...new Set(rest.map((field) => (field.path.includes(".") ? (field.path.split(".")[0] as string) : "rows and seed")))];
    return names.map((name) => ({
      name,
      said: this.#resolve(this.#schema.properties?.[name] ?? {}).description ?? "How long a row may be, and what chance decides.",
      fields: rest.filter((field) => (field.path.includes(".") ? field.path.split(".")[0] : "rows and seed") === name),
    }));
  }

  #sum(fold: HTMLElement): void {
    const inside = this.#fields.filter((field) => this.#exists(field) && one(`[data-field="${field.path}"]`, fold));
    const changed = inside.filter((field) => this.#changed(field)).length;
    const wrong = inside.filter((field) => this.#wrong(field)).length;
    const tag = one(".push", fold);
    if (!tag) return;
    tag.hidden = !changed && !wrong;
    tag.className = `tag push ${wrong ? "warn" : "on"}`;
    tag.textContent = wrong ? `${wrong} to mend` : `${changed} changed`;
  }

  #build(): void {
    const focus = document.activeElement instanceof HTMLElement ? document.activeElement.id : "";
    const open = new Set([...this.#folds.querySelectorAll("details[open]")].map((fold) => (fold as HTMLElement).dataset.group));
    // A preset is chosen while every field stands as it would set it, the untouched ones at their defaults.
    const chosen = this.#presets.find((preset) => this.#fields.every((field) => field.kind === "model" || field.kind === "version" || !this.#exists(field) || plain(this.#values[field.path]) === plain(preset.values[field.path] ?? field.initial)));
    const essential = this.#fields.filter((field) => ESSENTIAL.includes(field.path) || (!!field.under && ESSENTIAL.includes(field.under.path)) || (!field.path.includes(".") && !REST.includes(field.path)));
    const order = (field: Field): number => {
      const place = ESSENTIAL.indexOf(field.under?.path ?? field.path);
      return place < 0 ? ESSENTIAL.length : place;
    };
    essential.sort((a, b) => order(a) - order(b));
    this.#essential.replaceChildren(
      h(
        "section",
        { class: "section", "aria-labelledby": "essential" },
        h(
          "header",
          {},
          h("h2", { id: "essential" }, this.dataset.title ?? this.#method),
          h("p", {}, "essential fields"),
          this.#presets.length
            ? h("span", { class: "aside" }, "Preset ", h("span", { class: "segments", role: "group", "aria-label": "Preset" }, ...this.#presets.map((preset) => h("button", { type: "button", title: preset.does, "aria-pressed": String(preset === chosen), onclick: () => { this.#apply(preset); this.#build(); } }, preset.name))))
            : null,
        ),
        h("div", { class: "field" }, h("label", { for: "run-name" }, "Name"), h("div", {}, h("div", { class: "controls" }, this.#name), h("p", { class: "help" }, "As it will stand in lists and charts; empty takes a name from the method and the model."))),
        ...essential.filter((field) => this.#exists(field)).map((field) => this.#row(field)),
      ),
    );
    this.#folds.replaceChildren(
      ...this.#groups().map((group) =>
        h(
          "details",
          { class: "fold", "data-group": group.name, open: open.has(group.name) },
          h("summary", {}, humane(group.name), " ", h("span", { class: "said" }, ...[group.said.replace(/\. .*$/, ".")]), " ", h("span", { class: "tag push", hidden: true })),
          ...group.fields.filter((field) => this.#exists(field)).map((field) => this.#row(field)),
        ),
      ),
    );
    if (!this.#form.isConnected) {
      this.#form.append(h("div", {}, this.#said, this.#essential, this.#folds), this.#ready);
      this.replaceChildren(this.#form);
    }
    for (const field of this.#fields) if (this.#exists(field)) this.#check(field);
    this.#card();
    if (focus) document.getElementById(focus)?.focus();
  }

  #number(path: string): number | null {
    const parsed = Number(this.#values[path]);
    return Number.isFinite(parsed) && this.#values[path] !== "" ? parsed : null;
  }

  /** What can be known before the run starts; what cannot is left out. */
  #card(): void {
    const wrong = this.#fields.filter((field) => this.#exists(field) && this.#wrong(field));
    const version = this.#options.versions.find((option) => String(option.id) === this.#values.dataset);
    const [steps, batch, accumulation, heldOut] = ["optimization.steps", "optimization.batch_size", "optimization.accumulation", "evaluation.held_out"].map((path) => this.#number(path));
    const facts: [Child, Child, string?][] = [];
    if (version) {
      facts.push(["Rows", number(version.rows), version.row_type.replaceAll("_", " ")]);
      if (heldOut) facts.push(["Held out, about", number(Math.round(version.rows * heldOut), 3), "rows"]);
    }
    if (steps && batch && accumulation) {
      facts.push(["Rows a step", number(batch * accumulation)]);
      if (version && heldOut !== null && heldOut !== undefined) {
        const kept = Math.max(1, version.rows * (1 - heldOut));
        facts.push(["Each row is seen, about", number((steps * batch * accumulation) / kept, 2), "times"]);
      }
    }
    const evaluations = steps && this.#number("evaluation.every_steps");
    if (steps && evaluations) facts.push(["Evaluations", number(Math.floor((steps - 1) / evaluations) + 2)]);
    const pace = this.#options.pace;
    const workers = this.#workers;
    const isReady = !wrong.length;
    this.#ready.replaceChildren(
      h("h2", { id: "ready-title" }, h("span", { class: "state", "data-state": isReady ? "ready" : "not-ready" }, glyph(isReady ? "succeeded" : "failed"), isReady ? " Ready" : " Not ready")),
      isReady
        ? ""
        : h(
            "p",
            { class: "small quiet" },
            wrong.length === 1 ? "One field to mend: " : `${wrong.length} fields to mend: `,
            ...wrong.flatMap((field, index) => [index ? ", " : "", h("a", { href: `#${idOf(field.path)}`, onclick: () => { one(`#${idOf(field.path)}`)?.closest("details")?.setAttribute("open", ""); one(`#${idOf(field.path)}`)?.focus(); } }, humane(last(field.path)))]),
            ".",
          ),
      h("dl", { class: "pairs" }, ...facts.map(([term, value, unit]) => h("div", {}, h("dt", {}, term), h("dd", {}, value, unit ? h("span", { class: "unit" }, ` ${unit}`) : null)))),
      ...(pace && steps ? [h("h3", {}, "Time"), h("dl", { class: "pairs" }, h("div", {}, h("dt", {}, "like ", h("a", { href: `/runs/${pace.run}` }, `#${pace.run}`), `, ${number(pace.seconds, 2)} s a step`), h("dd", {}, duration(pace.seconds * steps))))] : []),
      h("h3", {}, "Workers"),
      workers === null
        ? h("p", { class: "small quiet" }, "unknown")
        : workers.total === 0
          ? h("p", { class: "small look" }, "No worker is there. The run will wait in the queue until one comes.")
          : h("p", { class: "small quiet" }, workers.free > workers.waiting ? `${workers.free} of ${workers.total} slot${workers.total === 1 ? "" : "s"} free: it can start at once.` : `${workers.total - workers.free} of ${workers.total} slot${workers.total === 1 ? "" : "s"} busy; ${workers.waiting} run${workers.waiting === 1 ? "" : "s"} before it in the queue.`),
      h("div", { class: "btn-row" }, h("button", { class: "btn primary", type: "submit", disabled: !isReady }, "Start run")),
    );
  }

  /** The spec as the API takes it: only fields that exist under the present choices. */
  #spec(): Record<string, unknown> {
    const spec: Record<string, unknown> = { method: this.#method };
    for (const field of this.#fields) {
      if (!this.#exists(field)) continue;
      const parts = field.path.split(".");
      let place = spec;
      for (const part of parts.slice(0, -1)) place = (place[part] ??= {}) as Record<string, unknown>;
      const name = parts.at(-1) as string;
      const value = this.#values[field.path];
      if (field.kind === "union") place[name] = { ...(place[name] as object | undefined), kind: value };
      else place[name] = field.kind === "boolean" || field.kind === "enum" || field.kind === "text" ? value : Number(value);
    }
    return spec;
  }

  async #send(): Promise<void> {
    const button = one<HTMLButtonElement>("button[type=submit]", this.#ready);
    if (button) button.disabled = true;
    this.#said.replaceChildren();
    try {
      const run = await api<{ id: number }>(`/api/v1/projects/${this.dataset.project}/runs`, {
        // The same form sent twice (a double click, a lost answer) is one run.
        body: { spec: this.#spec(), name: this.#name.value.trim() || null, parent_id: this.#start.parent, idempotency_key: (this.dataset.key ??= key()) },
      });
      location.assign(`/runs/${run.id}`);
    } catch (error) {
      if (!(error instanceof ProblemError)) throw error;
      // After a lost connection the run may exist: the same key finds it.
      if (error.problem.status) delete this.dataset.key;
      this.#refuse(error.problem);
    }
  }

  #refuse(problem: Problem): void {
    const paths = this.#fields.filter((field) => this.#exists(field)).map((field) => field.path);
    const place = (given: string): string | undefined => {
      const parts = given.split(".").filter((part) => !["body", "spec", this.#method, "full", "lora", "sigmoid", "ipo"].includes(part));
      return paths.find((path) => path === parts.join("."));
    };
    const found = [...(problem.errors ?? []), ...(problem.field ? [{ field: problem.field, message: problem.detail }] : [])];
    const placed = found.filter(({ field, message }) => {
      const path = place(field);
      if (path) this.#refused.set(path, message);
      return path;
    });
    this.#said.replaceChildren(
      h("div", { class: "notice bad", role: "alert" }, glyph("failed"), h("div", {}, h("h2", {}, problem.title), h("p", {}, placed.length ? "Nothing was started; what is wrong is said at the field." : problem.detail, problem.remedy ? ` ${problem.remedy}` : ""))),
    );
    for (const field of this.#fields) if (this.#exists(field)) this.#check(field);
    this.#card();
    const first = this.#fields.find((field) => this.#refused.has(field.path));
    const control = first && one(`#${idOf(first.path)}`);
    control?.closest("details")?.setAttribute("open", "");
    (control ?? this.#said).scrollIntoView({ block: "center" });
    control?.focus();
  }

  /** The buttons in the page's head: import and export as JSON. */
  #tools = (event: Event): void => {
    const action = (event.target as Element).closest<HTMLElement>("[data-spec]")?.dataset.spec;
    if (action === "export") {
      const link = h("a", { href: URL.createObjectURL(new Blob([JSON.stringify(this.#spec(), null, 2)], { type: "application/json" })), download: `${this.#method}-spec.json` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    } else if (action === "import") {
      const input = h("input", { type: "file", accept: "application/json,.json" });
      input.addEventListener("change", () => void input.files?.[0]?.text().then((text) => this.#import(text)));
      input.click();
    }
  };

  #import(text: string): void {
    let spec: Record<string, unknown>;
    try {
      spec = JSON.parse(text) as Record<string, unknown>;
      if (typeof spec !== "object" || spec === null || typeof spec.method !== "string") throw new Error("no method");
    } catch {
      this.#said.replaceChildren(h("div", { class: "notice bad", role: "alert" }, glyph("failed"), h("div", {}, h("h2", {}, "This file is no spec."), h("p", {}, "It must be one JSON object with a method, as Export writes it. The form is as it was."))));
      return;
    }
    if (spec.method !== this.#method) {
      sessionStorage.setItem("imported spec", text);
      location.assign(`?method=${encodeURIComponent(spec.method)}`);
      return;
    }
    this.#fromPreset.clear();
    this.#take(spec);
    this.#build();
    toast("The spec of the file is in the form.");
  }
}

customElements.define("spec-form", SpecForm);
