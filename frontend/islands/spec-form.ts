// <spec-form>: the form of a run, built from its spec's JSON schema. A field that means nothing under another choice is not there.
// The server leaves five JSON blocks beside it: spec-schema, spec-options, spec-presets, spec-start, spec-workers.
import { fitting, offerGates, row, type Form, type Options, type VersionOption } from "./form/fields.ts";
import { ready, type Lengths, type Workers } from "./form/ready.ts";
import { at, plain, put, same, Shape, type Document, type Node, type Schema, type Value } from "./form/schema.ts";
import { essential, groupOf, idOf, orderOf, type Group } from "./form/words.ts";
import { bounds, wrong } from "./form/wrong.ts";
import { api, ProblemError, type Problem } from "./lib/api.ts";
import { all, data, glyph, h, one, toast, type Child } from "./lib/dom.ts";

interface Preset {
  name: string;
  does: string;
  values: Record<string, unknown>;
}

interface PresetGroup {
  name: string;
  presets: Preset[];
}

interface Start {
  name: string;
  parent: number | null;
  spec: Record<string, unknown> | null;
  home: string;
}

const MOST_SEEDS = 8;

/** A random key; `randomUUID` is missing where the studio is served without https from another machine. */
function key(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

class SpecForm extends HTMLElement implements Form {
  options: Options = { models: [], reward_models: [], versions: [], pace: null };
  #shape = new Shape({});
  #presets: PresetGroup[] = [];
  #start: Start = { name: "", parent: null, spec: null, home: "/" };
  #workers: Workers | null = null;
  /** Lengths of rows by model and version; null until they came, or where they cannot be known. */
  #lengths = new Map<string, Lengths | null>();
  #values: Document = {};
  #first: Document = {};
  #preset: Document = {};
  #nodes: Node[] = [];
  /** The rows that the form chose by itself; what a person chose stays. */
  #offered = "";
  #refused = new Map<string, string>();
  #form = h("form", { class: "new-run", novalidate: true });
  #essential = h("div");
  #folds = h("div", { class: "folds" });
  #ready = h("aside", { class: "ready", "aria-labelledby": "ready-title" });
  #name = h("input", { class: "input wide", id: "run-name", maxlength: "200", autocomplete: "off" });
  #seeds = h("input", { class: "input number", id: "run-seeds", inputmode: "numeric", autocomplete: "off", value: "1", "aria-describedby": "run-seeds-help run-seeds-error" });
  #said = h("div", { "aria-live": "polite" });
  #spoken = h("p", { class: "visually-hidden", "aria-live": "polite" });

  connectedCallback(): void {
    this.#shape = new Shape(data<Schema>("spec-schema") ?? {});
    this.options = data<Options>("spec-options") ?? this.options;
    this.#presets = data<PresetGroup[]>("spec-presets") ?? [];
    this.#start = data<Start>("spec-start") ?? this.#start;
    this.#workers = data<Workers>("spec-workers");
    this.#name.value = this.#start.name;
    this.#first = this.#complete(this.#shape.initial(this.#shape.root) as Document);
    this.#values = structuredClone(this.#first);
    this.#preset = structuredClone(this.#first);
    if (this.#start.spec) this.#take(this.#start.spec);
    else for (const group of this.#presets) if (group.presets[0]) this.#apply(group, group.presets[0]);
    this.#offered = String(this.#first.dataset ?? "");
    this.#fit();
    const kept = sessionStorage.getItem("imported spec");
    if (kept) {
      sessionStorage.removeItem("imported spec");
      this.#take(JSON.parse(kept) as Record<string, unknown>);
      toast("The spec of the file is in the form.");
    }
    this.#seeds.addEventListener("input", () => this.#card());
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

  get method(): string {
    return this.dataset.method ?? "";
  }

  // --- what rows need

  value(path: string): Value {
    return at(this.#values, path) ?? "";
  }

  set(path: string, value: Value, rebuild = false): void {
    const node = this.#nodes.find((one) => one.path === path);
    const names = this.#names();
    if (node?.kind === "union") put(this.#values, path, this.#chosen(node, String(value)));
    else put(this.#values, path, value);
    if (path.endsWith(".name")) this.#renamed(names);
    for (const refused of [...this.#refused.keys()]) if (refused === path || refused.startsWith(`${path}.`)) this.#refused.delete(refused);
    if (rebuild) this.#build();
    else {
      // Names and gates of components depend on each other.
      for (const other of this.#nodes) if (other.path === path || path.startsWith("rewards.")) this.#check(other);
      this.#pressed();
      this.#card();
    }
  }

  /** What the components of the reward are called. */
  #names(): string[] {
    return ((at(this.#values, "rewards.components") ?? []) as Value[]).map((item) => String(at(item, "name") || at(item, "kind")));
  }

  /** Gates follow the component that they wait for: *before* are the names until now. */
  #renamed(before: string[]): void {
    const names = this.#names();
    const index = before.findIndex((name, place) => name !== names[place]);
    const [was = "", is = ""] = [before[index], names[index]];
    const isAlone = before.filter((name) => name === was).length === 1;
    for (const gate of this.#nodes.filter(({ kind }) => kind === "gate")) {
      if (isAlone && this.value(gate.path) === was) put(this.#values, gate.path, is);
      const picker = one<HTMLSelectElement>(`[data-path="${gate.path}"]`, this.#form);
      if (picker) offerGates(this, gate, picker);
    }
  }

  item(node: Node, kind: string): Value {
    return this.#complete({ kind, ...(this.#shape.take(node.variants?.get(kind) ?? {}, undefined, `${node.path}.0`) as Document) });
  }

  below(path: string): Node[] {
    return this.#nodes.filter((node) => node.under === path);
  }

  version(): VersionOption | undefined {
    return this.options.versions.find((option) => String(option.id) === this.#values.dataset);
  }

  say(text: string): void {
    this.#spoken.textContent = text;
  }

  /** Another variant keeps what both have. */
  #chosen(node: Node, kind: string): Value {
    const now = this.value(node.path) as Document;
    const made = { kind, ...(this.#shape.take(node.variants?.get(kind) ?? {}, undefined, node.path) as Document) };
    for (const [name, value] of Object.entries(now)) if (name !== "kind" && name in made && typeof value === typeof (made as Document)[name]) (made as Document)[name] = value;
    return made;
  }

  /** Empty pickers take what there is: the first model, the newest rows, the newest reward model, the rows' attributes. */
  #complete<V extends Value>(value: V, path = ""): V {
    if (Array.isArray(value)) return value.map((item, index) => this.#complete(item, `${path}.${index}`)) as V;
    if (typeof value !== "object") return value;
    const made: Document = { ...(value as Document) };
    for (const [name, part] of Object.entries(made)) {
      if (name === "base_model" && !part) made[name] = plain(this.options.models[0]?.id);
      else if (name === "dataset" && !part) made[name] = plain(this.options.versions[0]?.id);
      else if (name === "models" && Array.isArray(part) && !part.length) made[name] = fitting(this.options, "models").slice(0, 1).map((model) => plain(model.id));
      else if (name === "model" && !part) made[name] = plain(fitting(this.options, "scorer")[0]?.id);
      else if (path === "" && name === "attributes" && Array.isArray(part) && !part.length) made[name] = (this.options.versions[0]?.attributes ?? []).map((attribute) => ({ name: attribute, value: "1" }));
      else made[name] = this.#complete(part, path ? `${path}.${name}` : name);
    }
    return made as V;
  }

  // --- taking values in

  /** Put a stored or imported spec into the form; models and rows that are not offered here stay as they are. */
  #take(spec: Record<string, unknown>): void {
    const taken = this.#shape.take(this.#shape.root, spec) as Document;
    if (!this.options.models.some((model) => String(model.id) === taken.base_model)) taken.base_model = this.#values.base_model ?? "";
    if (!this.options.versions.some((version) => String(version.id) === taken.dataset)) taken.dataset = this.#values.dataset ?? "";
    this.#values = this.#complete(taken);
  }

  /** The schema at a path of the top levels: presets set nothing inside unions and lists. */
  #schemaAt(path: string): Schema {
    return path.split(".").reduce((schema: Schema, name) => this.#shape.resolve(this.#shape.resolve(schema).properties?.[name] ?? {}), this.#shape.root);
  }

  /** What a group of presets sets under its choice *preset*, by path. */
  #wanted(group: PresetGroup, preset: Preset): Map<string, Value> {
    const paths = new Set(group.presets.flatMap((other) => Object.keys(other.values)));
    return new Map(
      [...paths].map((path) => {
        const given = preset.values[path];
        return [path, given === undefined ? (at(this.#first, path) ?? "") : this.#complete(this.#shape.take(this.#schemaAt(path), given, path), path)];
      }),
    );
  }

  #apply(group: PresetGroup, preset: Preset): void {
    for (const [path, value] of this.#wanted(group, preset)) {
      put(this.#values, path, structuredClone(value));
      put(this.#preset, path, structuredClone(value));
    }
    this.#refused.clear();
  }

  /** Of the rows offered, the newest with every column that the rewards read, unless somebody chose others. */
  #fit(): void {
    if (this.#start.spec || this.#values.dataset !== this.#offered) return;
    const nodes = this.#shape.nodes(this.#shape.root, this.#values, this.#first);
    const needed = nodes.filter(({ kind }) => kind === "column").map(({ path }) => String(this.value(path)));
    const fits = this.options.versions.find(({ columns }) => needed.every((column) => columns.includes(column)));
    if (fits) this.#offered = this.#values.dataset = this.#first.dataset = plain(fits.id);
  }

  #isChosen(group: PresetGroup, preset: Preset): boolean {
    const sent = (path: string, value: Value): unknown => this.#shape.sent(this.#schemaAt(path), value, path);
    return [...this.#wanted(group, preset)].every(([path, value]) => same(sent(path, value), sent(path, this.value(path))));
  }

  #pressed(): void {
    for (const button of all<HTMLButtonElement>("[data-preset]", this.#form)) {
      const group = this.#presets.find(({ name }) => name === button.dataset.group);
      const preset = group?.presets.find(({ name }) => name === button.dataset.preset);
      if (group && preset) button.setAttribute("aria-pressed", String(this.#isChosen(group, preset)));
    }
  }

  // --- what is wrong

  /** Why a field cannot be sent, or "". */
  #wrong(node: Node): string {
    return this.#refused.get(node.path) ?? wrong(node, this.#values, this.version());
  }

  #changed(node: Node): boolean {
    const value = node.kind === "union" ? at(this.#values, `${node.path}.kind`) : this.value(node.path);
    if (node.kind === "number" || node.kind === "integer") return Number(value) !== Number(node.initial);
    return !same(value, node.initial);
  }

  bounds(node: Node): Child[] {
    return bounds(node, this.value(node.path), at(this.#preset, node.path));
  }

  /** Show or hide what is wrong at one field, without rebuilding it under the reader's hands. */
  #check(node: Node): void {
    const found = one(`[data-field="${node.path}"]`, this.#form);
    if (!found) return;
    const said = this.#wrong(node);
    const error = one(`#${idOf(node.path)}-error`, found);
    const control = one(`[data-path="${node.path}"]`, found);
    if (error) {
      error.hidden = !said;
      error.replaceChildren(...(said ? [glyph("failed"), h("span", {}, said)] : []));
    }
    if (control?.matches("input, select, textarea")) control.setAttribute("aria-invalid", said ? "true" : "false");
    control?.classList.toggle("changed", !said && this.#changed(node));
    all(".bounds", found).at(-1)?.replaceChildren(...this.bounds(node).filter((part) => part !== null && part !== undefined && part !== false).map((part) => (part instanceof Element ? part : document.createTextNode(String(part)))));
    for (let fold = found.closest("details"); fold; fold = fold.parentElement?.closest("details") ?? null) this.#sum(fold);
  }

  #sum(fold: HTMLElement): void {
    const inside = this.#nodes.filter((node) => one(`[data-field="${node.path}"]`, fold));
    const changed = inside.filter((node) => this.#changed(node)).length;
    const refused = inside.filter((node) => this.#wrong(node)).length;
    const tag = one(":scope > summary .push", fold);
    if (!tag) return;
    tag.hidden = !changed && !refused;
    tag.className = `tag push ${refused ? "warn" : "on"}`;
    tag.textContent = refused ? `${refused} to mend` : `${changed} changed`;
  }

  // --- drawing

  #build(): void {
    const focus = document.activeElement instanceof HTMLElement ? document.activeElement.id : "";
    const open = new Set(all<HTMLDetailsElement>("details[open]", this.#form).map((fold) => fold.dataset.group));
    const online = "rewards" in (this.#shape.root.properties ?? {});
    this.#nodes = this.#shape.nodes(this.#shape.root, this.#values, this.#first);
    // What belongs to a card of a list is drawn by the list.
    const outside = this.#nodes.filter((node) => !/\.\d+\./.test(`${node.path}.`));
    const front = outside.filter((node) => essential(node.path, online) >= 0).sort((a, b) => essential(a.path, online) - essential(b.path, online));
    this.#essential.replaceChildren(
      h(
        "section",
        { class: "section", "aria-labelledby": "essential" },
        h("header", {}, h("h2", { id: "essential" }, this.dataset.title ?? this.method), h("p", {}, "essential fields")),
        ...this.#presets.map((group) => this.#presetRow(group)),
        this.#ownRow(this.#name, "Name", "As it will stand in lists and charts; empty takes a name from the method and the model."),
        ...front.map((node) => row(this, node)),
        this.#ownRow(this.#seeds, "Runs with other seeds", "Starts so many runs at once that differ in nothing but their seed: the spread tells what is chance, and reward models of several seeds make an ensemble.", `1 to ${MOST_SEEDS}`),
      ),
    );
    const folds = new Map<string, { group: Group; nodes: Node[] }>();
    for (const node of outside.filter((one) => essential(one.path, online) < 0)) {
      const group = groupOf(node.path, (name) => this.#shape.resolve(this.#shape.root.properties?.[name] ?? {}).description ?? "");
      (folds.get(group.name) ?? folds.set(group.name, { group, nodes: [] }).get(group.name))?.nodes.push(node);
    }
    this.#folds.replaceChildren(
      ...[...folds.values()].sort((a, b) => orderOf(a.group) - orderOf(b.group)).map(({ group, nodes }) =>
        h("details", { class: "fold", "data-group": group.name, open: open.has(group.name) }, h("summary", {}, group.title, " ", h("span", { class: "said" }, group.said.replace(/\. .*$/, ".")), " ", h("span", { class: "tag push", hidden: true })), ...nodes.map((node) => row(this, node))),
      ),
    );
    for (const fold of all<HTMLDetailsElement>(".cards details", this.#essential)) if (open.has(fold.dataset.group)) fold.open = true;
    if (!this.#form.isConnected) {
      this.#form.append(h("div", {}, this.#said, this.#spoken, this.#essential, this.#folds), this.#ready);
      this.replaceChildren(this.#form);
    }
    for (const node of this.#nodes) this.#check(node);
    this.#pressed();
    this.#card();
    if (focus) document.getElementById(focus)?.focus();
  }

  /** One choice of each group; what the group sets follows it. */
  #presetRow(group: PresetGroup): HTMLElement {
    const id = `preset-${group.name.toLowerCase()}`;
    const choose = (preset: Preset): void => {
      this.#apply(group, preset);
      this.#fit();
      this.#build();
      one(`[data-group="${group.name}"][data-preset="${preset.name}"]`, this.#form)?.focus();
    };
    const buttons = group.presets.map((preset) => h("button", { type: "button", title: preset.does, "data-group": group.name, "data-preset": preset.name, "aria-pressed": "false", onclick: () => choose(preset) }, preset.name));
    return h("div", { class: "field presets" }, h("span", { class: "label", id }, this.#presets.length > 1 ? `${group.name} preset` : "Preset"), h("div", { class: "controls" }, h("span", { class: "segments", role: "group", "aria-labelledby": id }, ...buttons)));
  }

  /** A field that is no part of the spec. */
  #ownRow(control: HTMLInputElement, title: string, help: string, bounds = ""): HTMLElement {
    const { id } = control;
    return h(
      "div",
      { class: "field" },
      h("label", { for: id }, title),
      h("div", {}, h("div", { class: "controls" }, control), h("p", { class: "help", id: `${id}-help` }, help), bounds ? h("p", { class: "bounds" }, bounds) : null, h("p", { class: "error", id: `${id}-error`, hidden: true })),
    );
  }

  #number(path: string): number | null {
    const value = at(this.#values, path);
    return typeof value === "string" && value !== "" && Number.isFinite(Number(value)) ? Number(value) : null;
  }

  #rowLengths(): Lengths | null {
    const [model, version] = [this.value("base_model"), this.value("dataset")].map(String);
    const key = `${model} ${version}`;
    if (model && version && !this.#lengths.has(key)) {
      this.#lengths.set(key, null);
      const came = (lengths: Lengths | null): void => {
        this.#lengths.set(key, lengths);
        this.#card();
      };
      void api<Lengths | null>(`/api/v1/versions/${version}/lengths?model=${model}`).then(came, () => undefined);
    }
    return this.#lengths.get(key) ?? null;
  }

  #seedCount(): number | null {
    const count = Number(this.#seeds.value);
    return Number.isInteger(count) && count >= 1 && count <= MOST_SEEDS ? count : null;
  }

  #card(): void {
    const seeds = this.#seedCount();
    const error = one("#run-seeds-error", this.#form);
    if (error) {
      error.hidden = seeds !== null;
      error.replaceChildren(...(seeds === null ? [glyph("failed"), h("span", {}, `A whole number from 1 to ${MOST_SEEDS}.`)] : []));
    }
    this.#seeds.setAttribute("aria-invalid", String(seeds === null));
    const unfit = this.#nodes.filter((node) => this.#wrong(node)).map((node) => node.path);
    const parts = ready({ method: this.method, version: this.version(), number: (path) => this.#number(path), wrong: seeds === null ? [...unfit, "seeds"] : unfit, seeds: seeds ?? 1, options: this.options, workers: this.#workers, lengths: this.#rowLengths(), learnsAll: this.value("completion_only") === false, go: (path) => this.#go(path) });
    this.#ready.replaceChildren(...parts.filter((part) => part instanceof Element));
  }

  /** Bring a field into view and focus it. */
  #go(path: string): void {
    const target = path === "seeds" ? this.#seeds : document.getElementById(idOf(path));
    for (let fold = target?.closest("details"); fold; fold = fold.parentElement?.closest("details") ?? null) if (!fold.matches(".picker")) fold.open = true;
    target?.scrollIntoView({ block: "center" });
    target?.focus();
  }

  // --- sending

  /** The spec as the API takes it: only fields that exist under the present choices. */
  #spec(): Record<string, unknown> {
    return { method: this.method, ...(this.#shape.sent(this.#shape.root, this.#values) as object) };
  }

  async #send(): Promise<void> {
    const button = one<HTMLButtonElement>("button[type=submit]", this.#ready);
    if (button) button.disabled = true;
    this.#said.replaceChildren();
    const runs = `/api/v1/projects/${this.dataset.project}/runs`;
    // The same form sent twice (a double click, a lost answer) is one run.
    const body = { spec: this.#spec(), name: this.#name.value.trim() || null, parent_id: this.#start.parent, idempotency_key: (this.dataset.key ??= key()) };
    const seeds = this.#seedCount() ?? 1;
    try {
      if (seeds > 1) {
        const { items } = await api<{ items: { id: number }[] }>(`${runs}/seeds`, { body: { ...body, seeds } });
        location.assign(`/projects/${this.dataset.project}/compare?runs=${items.map(({ id }) => id).join(",")}`);
      } else location.assign(`/runs/${(await api<{ id: number }>(runs, { body })).id}`);
    } catch (error) {
      if (!(error instanceof ProblemError)) throw error;
      // After a lost connection the run may exist: the same key finds it.
      if (error.problem.status) delete this.dataset.key;
      this.#refuse(error.problem);
    }
  }

  #refuse(problem: Problem): void {
    const paths = new Set(this.#nodes.map((node) => node.path));
    const found = problem.errors ?? (problem.field ? [{ field: problem.field, message: [problem.detail, problem.remedy].filter(Boolean).join(" ") }] : []);
    const elsewhere: string[] = [];
    for (const { field, message } of found) {
      const path = this.#shape.place(field, this.#values, paths);
      const said = message.replace(/^Value error, /, "");
      if (path) this.#refused.set(path, said.replace(/^./, (letter) => letter.toUpperCase()));
      else elsewhere.push(said);
    }
    const text = elsewhere.length ? elsewhere.join(" ") : this.#refused.size ? "Nothing was started; what is wrong is said at the field." : [problem.detail, problem.remedy].filter(Boolean).join(" ");
    this.#said.replaceChildren(h("div", { class: "notice bad", role: "alert" }, glyph("failed"), h("div", {}, h("h2", {}, problem.title), h("p", {}, text))));
    for (const node of this.#nodes) this.#check(node);
    this.#card();
    const first = this.#nodes.find((node) => this.#refused.has(node.path));
    if (first) this.#go(first.path);
    else this.#said.scrollIntoView({ block: "center" });
  }

  /** The buttons in the page's head: import and export as JSON. */
  #tools = (event: Event): void => {
    const action = (event.target as Element).closest<HTMLElement>("[data-spec]")?.dataset.spec;
    if (action === "export") {
      const link = h("a", { href: URL.createObjectURL(new Blob([JSON.stringify(this.#spec(), null, 2)], { type: "application/json" })), download: `${this.method}-spec.json` });
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
    if (spec.method !== this.method) {
      sessionStorage.setItem("imported spec", text);
      location.assign(`?method=${encodeURIComponent(spec.method)}`);
      return;
    }
    this.#preset = structuredClone(this.#first);
    this.#take(spec);
    this.#build();
    toast("The spec of the file is in the form.");
  }
}

customElements.define("spec-form", SpecForm);
