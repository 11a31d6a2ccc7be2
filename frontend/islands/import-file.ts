/** Importing a file in three steps: source → mapping with a live preview → summary. Without it, the plain form imports with the likeliest mapping. */

import { api, meta, type Problem, ProblemError } from "./lib/api.ts";
import { type Child, data, glyph, h, one, s } from "./lib/dom.ts";

type Row = Record<string, unknown>;
type Path = string | string[];
interface Mapping {
  row_type: string;
  columns: Record<string, Path>;
  transcripts?: boolean;
  as_conversation?: boolean;
  ratings?: boolean;
  keep?: "all" | "none";
  bad_rows?: "refuse" | "skip";
  messages?: { role: string; content: string };
  winner?: { column: string; first: string | number; second: string | number; ties?: "leave_out" | "half" } | null;
}
interface Look {
  id: string;
  file_name: string;
  size: number;
  kind: string;
  compressed: boolean;
  delimiter: string | null;
  columns: Record<string, string>;
  suggestions: { name: string; mapping: Mapping }[];
  mapping: Mapping | null;
  looked_at: number;
  is_all: boolean;
  fitting: number;
  ties: number;
  raw: { line: number; row: Row }[];
  rows: { line: number; row: Row }[];
  errors: { line: number; detail: string; remedy?: string }[];
}
interface About {
  project: number;
  columns: Record<string, string[]>;
  types: Record<string, string>;
}
interface Progress {
  rows: number | null;
  share: number | null;
  seconds: number | null;
}

const KINDS: Record<string, string> = { json_lines: "JSON lines", json_array: "JSON array", csv: "CSV", parquet: "Parquet" };
const OPTIONAL = new Set(["margin", "probability"]);
const number = (value: number): string => value.toLocaleString("en-US");
const size = (bytes: number): string => (bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`);

function notice(problem: Problem): HTMLElement {
  const line = typeof problem.line === "number" ? `Line ${number(problem.line)}: ` : "";
  return h("div", { class: "notice bad", role: "alert" }, glyph("failed"), h("div", {}, h("h2", {}, line + problem.detail), h("p", {}, `Nothing was imported. ${problem.remedy ?? ""}`)));
}

function meter(share: number, label: string): SVGElement {
  return s("svg", { class: "meter", role: "progressbar", "aria-label": label, "aria-valuenow": Math.round(share * 100), "aria-valuemin": 0, "aria-valuemax": 100, preserveAspectRatio: "none" }, s("rect", { class: "live", x: "0%", width: `${(100 * share).toFixed(1)}%` }));
}

function said(value: unknown): HTMLElement {
  if (typeof value === "string") return value ? h("p", { class: "text" }, value) : h("p", { class: "none faint" }, "empty");
  if (!Array.isArray(value)) return h("p", { class: "text" }, JSON.stringify(value));
  return h("div", { class: "talk tight" }, ...(value as { role: string; content: string }[]).map((message) => h("div", { class: "turn" }, h("span", { class: "who" }, message.role), message.content ? h("p", { class: "prose text" }, message.content) : h("p", { class: "none faint" }, "empty"))));
}

function rowOf(line: number, row: Row, columns: string[]): HTMLElement {
  const has = columns.filter((column) => column in row);
  const alone = has.filter((column) => column !== "chosen" && column !== "rejected");
  const pair = has.filter((column) => column === "chosen" || column === "rejected");
  const others = Object.entries(row).filter(([name]) => !columns.includes(name));
  const show = (column: string): Child[] => [h("h3", {}, column), said(row[column])];
  return h(
    "article",
    { class: "row-pair" },
    h("header", {}, h("h3", {}, `Line ${number(line)}`)),
    ...alone.flatMap(show),
    pair.length ? h("div", { class: "two" }, ...pair.map((column) => h("section", {}, ...show(column)))) : null,
    others.length ? h("dl", { class: "row-others" }, ...others.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, (typeof value === "string" ? value : JSON.stringify(value)).slice(0, 200))))) : null,
  );
}

class ImportFile extends HTMLElement {
  private about = data<About>("import-about");
  private look: Look | null = null;
  private mapping: Mapping | null = null;
  private name = "";
  private wait = 0;
  private asked: AbortController | null = null;

  connectedCallback(): void {
    const form = one<HTMLFormElement>("form", this);
    if (!this.about || !form) return;
    this.name = one<HTMLInputElement>("[name=name]", form)?.value ?? "";
    this.showSource();
  }

  /** The page's own message, if the plain form was used before, makes room for ours. */
  private draw(step: number, ...content: Child[]): void {
    document.querySelectorAll(".main > .notice").forEach((old) => old.remove());
    const steps = ["Source", "Mapping", "Import"].map((words, index) => h("li", index + 1 === step ? { "aria-current": "step" } : {}, h("span", {}, `${index + 1}`), words));
    this.replaceChildren(h("ol", { class: "steps", "aria-label": "Steps" }, ...steps), ...content.filter((child): child is HTMLElement => child instanceof Node));
  }

  // ---- 1: source

  private showSource(problem?: Problem): void {
    const input = h("input", { class: "input wide", id: "f-file", type: "file", "aria-describedby": "h-file" });
    const drop = h(
      "div",
      { class: "import-drop" },
      h("label", { for: "f-file" }, "Choose a file, or drop it here"),
      input,
      h("p", { class: "help small faint", id: "h-file" }, "JSON lines, a JSON array, CSV (each may be gzipped) or Parquet, told apart by content. Nothing is made before you have seen its rows."),
    );
    input.addEventListener("change", () => input.files?.[0] && this.send(input.files[0]));
    drop.addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      const file = event.dataTransfer?.files[0];
      if (file) this.send(file);
    });
    this.draw(1, problem ? notice(problem) : null, drop);
    if (problem) input.focus();
  }

  private send(file: File): void {
    const bar = h("div", { class: "import-progress" });
    const started = performance.now();
    const show = (loaded: number, total: number): void => {
      const seconds = (performance.now() - started) / 1000;
      const rate = loaded / Math.max(seconds, 0.05);
      const left = loaded < total ? `, ${Math.ceil((total - loaded) / Math.max(rate, 1))} s left` : "; reading the first rows";
      bar.replaceChildren(meter(total ? loaded / total : 1, "Sent"), h("p", { role: "status" }, `${file.name}: ${size(loaded)} of ${size(total)} sent, ${size(rate)}/s${left}`));
    };
    const request = new XMLHttpRequest(); // fetch tells nothing of how much was sent
    request.open("POST", `/api/v1/projects/${this.about?.project}/uploads`);
    request.setRequestHeader("X-CSRF-Token", meta("csrf"));
    request.setRequestHeader("Accept", "application/json");
    request.upload.addEventListener("progress", (event) => show(event.loaded, event.total));
    request.addEventListener("error", () => this.showSource({ type: "about:blank", title: "No connection.", status: 0, detail: "The studio does not answer.", remedy: "Try again when the connection is back." }));
    request.addEventListener("load", () => {
      let answer: unknown = null;
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        answer = { type: "about:blank", title: "Error", status: request.status, detail: `The studio answered ${request.status}.` };
      }
      if (request.status !== 201) return this.showSource(answer as Problem);
      this.look = answer as Look;
      this.mapping = this.look.mapping ? structuredClone(this.look.mapping) : null;
      if (!this.name) this.name = file.name.replace(/(\.(jsonl|json|csv|tsv|parquet|gz))+$/i, "");
      this.showMapping();
    });
    const body = new FormData();
    body.append("file", file);
    show(0, file.size);
    this.draw(1, h("div", {}, bar, h("button", { class: "btn", type: "button", onclick: () => (request.abort(), this.showSource()) }, "Cancel")));
    request.send(body);
  }

  // ---- 2: mapping

  private showMapping(): void {
    const look = this.look;
    if (!look || !this.about) return;
    const preview = h("div", { class: "import-preview", "aria-live": "polite" });
    const fields = h("div", {});
    const next = h("button", { class: "btn primary", type: "button", onclick: () => this.showSummary() }, "Continue");
    const back = h("button", { class: "btn", type: "button", onclick: () => this.forget() }, "Another file");
    const kind = `${KINDS[look.kind] ?? look.kind}${look.delimiter ? `, “${look.delimiter === "\t" ? "tab" : look.delimiter}” between values` : ""}${look.compressed ? ", gzipped" : ""}`;
    this.draw(
      2,
      h(
        "div",
        { class: "import-steps" },
        h("section", { class: "section", "aria-labelledby": "map" }, h("header", {}, h("h2", { id: "map" }, "What is what"), h("p", {}, `${look.file_name}: ${kind}, ${size(look.size)}`)), fields, h("div", { class: "btn-row" }, next, back)),
        h("section", { class: "section", "aria-labelledby": "seen" }, h("header", {}, h("h2", { id: "seen" }, "How the rows read")), preview),
      ),
    );
    this.drawFields(fields, () => this.refresh(preview, next));
    this.drawPreview(preview, next);
  }

  private drawFields(fields: HTMLElement, changed: () => void): void {
    const look = this.look as Look;
    const about = this.about as About;
    const mapping = this.mapping;
    const sources = Object.keys(look.columns);
    const redraw = (): void => {
      this.drawFields(fields, changed);
      changed();
    };
    const field = (id: string, label: string, control: Child, help = ""): HTMLElement => h("div", { class: "field" }, h("label", { for: id }, label), h("div", {}, h("div", { class: "controls" }, control), help ? h("p", { class: "help" }, help) : null));
    const select = (id: string, options: [string, string][], value: string, set: (value: string) => void): HTMLSelectElement => {
      const made = h("select", { class: "select wide", id }, ...options.map(([key, words]) => h("option", { value: key, selected: key === value }, words)));
      made.addEventListener("change", () => set(made.value));
      return made;
    };
    const parts: Child[] = [];
    const isReady = JSON.stringify(mapping);
    const ready = look.suggestions.findIndex((suggestion) => JSON.stringify(suggestion.mapping) === isReady);
    if (look.suggestions.length)
      parts.push(
        field(
          "m-ready",
          "Looks like",
          select("m-ready", [...look.suggestions.map((suggestion, index): [string, string] => [String(index), suggestion.name]), ...(ready < 0 ? [["", "my own mapping"] as [string, string]] : [])], ready < 0 ? "" : String(ready), (value) => {
            const chosen = look.suggestions[Number(value)];
            if (value !== "" && chosen) this.mapping = structuredClone(chosen.mapping);
            redraw();
          }),
        ),
      );
    parts.push(
      field(
        "m-type",
        "Rows are",
        select("m-type", [...(mapping ? [] : [["", "choose"] as [string, string]]), ...Object.entries(about.types)], mapping?.row_type ?? "", (value) => {
          const wanted = about.columns[value] ?? [];
          const kept = Object.fromEntries(Object.entries(this.mapping?.columns ?? {}).filter(([column]) => wanted.includes(column)));
          for (const column of wanted) if (!kept[column] && sources.includes(column)) kept[column] = column;
          this.mapping = { row_type: value, columns: kept, ...(this.mapping?.messages ? { messages: this.mapping.messages } : {}) };
          redraw();
        }),
      ),
    );
    if (mapping) {
      const list = h("datalist", { id: "m-columns" }, ...sources.map((name) => h("option", { value: name }, look.columns[name])));
      parts.push(list);
      for (const column of about.columns[mapping.row_type] ?? []) {
        const optional = OPTIONAL.has(column) || (column === "prompt" && mapping.row_type === "preference") || mapping.row_type === "language_modeling";
        const value = mapping.columns[column];
        const input = h("input", { class: "input wide", id: `m-${column}`, list: "m-columns", value: Array.isArray(value) ? value.join(" + ") : (value ?? ""), placeholder: optional ? "none" : "a column of the file", autocomplete: "off", spellcheck: "false" });
        input.addEventListener("input", () => {
          const given = input.value.split(" + ").map((part) => part.trim()).filter(Boolean);
          if (!given.length) delete mapping.columns[column];
          else mapping.columns[column] = given.length === 1 ? (given[0] as string) : given;
          changed();
        });
        const help = column === "prompt" && mapping.row_type === "preference" && !value ? "Without one, the prompt is what chosen and rejected share." : Array.isArray(value) ? (column === "scores" ? "Each column is an attribute." : "Joined by an empty line.") : column === "labels" ? "One boolean per step, or the index of the first wrong one." : "";
        parts.push(field(`m-${column}`, column, input, help));
      }
      const check = (id: string, words: string, value: boolean, set: (on: boolean) => void): HTMLElement => {
        const box = h("input", { type: "checkbox", id, checked: value });
        box.addEventListener("change", () => {
          set(box.checked);
          changed();
        });
        return h("label", { class: "check" }, box, words);
      };
      const text = (id: string, value: string, set: (value: string) => void): HTMLInputElement => {
        const input = h("input", { class: "input", id, value, size: 10, spellcheck: "false", autocomplete: "off" });
        input.addEventListener("input", () => {
          set(input.value.trim());
          changed();
        });
        return input;
      };
      const keys = mapping.messages ?? { role: "role", content: "content" };
      const details = h(
        "details",
        { class: "fold", open: Boolean(mapping.transcripts || mapping.winner || mapping.ratings) },
        h("summary", {}, "More ", h("span", { class: "said" }, "conversations, other columns, bad rows")),
        h("div", { class: "field" }, h("span", { class: "label" }, "Texts"), h("div", { class: "controls" }, check("m-transcripts", "are transcripts: Human: … Assistant: …", mapping.transcripts ?? false, (on) => (mapping.transcripts = on)), check("m-talk", "become conversations", mapping.as_conversation ?? false, (on) => (mapping.as_conversation = on)))),
        field("m-role", "Message keys", h("span", {}, text("m-role", keys.role, (value) => (mapping.messages = { ...(mapping.messages ?? keys), role: value || "role" })), " and ", text("m-content", keys.content, (value) => (mapping.messages = { ...(mapping.messages ?? keys), content: value || "content" }))), "Who speaks, and what is said."),
        mapping.winner
          ? field("m-first", "Better one", h("span", {}, `“${mapping.winner.column}” is `, text("m-first", String(mapping.winner.first), (value) => mapping.winner && (mapping.winner.first = value)), " for chosen, ", text("m-second", String(mapping.winner.second), (value) => mapping.winner && (mapping.winner.second = value)), " for rejected"), "Check it against the rows: the file does not say which value means which side. Rows with any other value are ties.")
          : null,
        mapping.winner
          ? h("div", { class: "field" }, h("span", { class: "label" }, "Ties"), h("div", { class: "controls" }, check("m-ties", "keep them, with a probability of 0.5", mapping.winner.ties === "half", (on) => mapping.winner && (mapping.winner.ties = on ? "half" : "leave_out"))))
          : null,
        mapping.row_type === "stepwise"
          ? h("div", { class: "field" }, h("span", { class: "label" }, "Labels"), h("div", { class: "controls" }, check("m-ratings", "are ratings: −1 wrong, 0 neutral, 1 right", mapping.ratings ?? false, (on) => (mapping.ratings = on))))
          : null,
        h("div", { class: "field" }, h("span", { class: "label" }, "Rows"), h("div", { class: "controls" }, check("m-keep", "keep the other columns", (mapping.keep ?? "all") === "all", (on) => (mapping.keep = on ? "all" : "none")), check("m-skip", "leave out rows that do not fit, and count them", mapping.bad_rows === "skip", (on) => (mapping.bad_rows = on ? "skip" : "refuse")))),
      );
      one<HTMLInputElement>("#m-content", details)?.setAttribute("aria-label", "Key of what is said");
      one<HTMLInputElement>("#m-second", details)?.setAttribute("aria-label", "Value when rejected is better");
      parts.push(details);
    }
    fields.replaceChildren(...parts.filter((part): part is HTMLElement => part instanceof Node));
  }

  private refresh(preview: HTMLElement, next: HTMLButtonElement): void {
    clearTimeout(this.wait);
    preview.classList.add("preview-busy");
    this.wait = window.setTimeout(async () => {
      this.asked?.abort();
      this.asked = new AbortController();
      try {
        const look = await api<Look>(`/api/v1/projects/${this.about?.project}/uploads/${this.look?.id}/preview`, { body: { mapping: this.mapping }, signal: this.asked.signal });
        this.look = { ...look, suggestions: this.look?.suggestions ?? [] };
        this.drawPreview(preview, next);
      } catch (error) {
        if (!(error instanceof ProblemError)) return;
        preview.replaceChildren(h("p", { class: "error" }, error.problem.errors?.[0]?.message.replace(/^Value error, /, "") ?? error.problem.detail));
        next.disabled = true;
      }
      preview.classList.remove("preview-busy");
    }, 250);
  }

  private drawPreview(preview: HTMLElement, next: HTMLButtonElement): void {
    const look = this.look as Look;
    const mapping = this.mapping;
    if (!mapping) {
      preview.replaceChildren(h("p", { class: "read" }, "The columns do not tell what the rows are. Say what they are on the left."), ...look.raw.map(({ line, row }) => h("pre", { class: "row-json text" }, `${line}: ${JSON.stringify(row, null, 1)}`)));
      next.disabled = true;
      return;
    }
    const bad = look.looked_at - look.fitting - look.ties;
    const parts = [`${number(look.fitting)} of ${look.is_all ? "all" : "the first"} ${number(look.looked_at)} rows fit`];
    if (look.ties) parts.push(`${number(look.ties)} are ties`);
    if (bad) parts.push(`${number(bad)} do not fit`);
    const columns = this.about?.columns[mapping.row_type] ?? [];
    preview.replaceChildren(
      h("p", { class: "read", role: "status" }, `${parts.join(", ")}.`),
      ...(look.errors.length ? [h("ul", { class: "import-errors", "aria-label": "First errors" }, ...look.errors.map((error) => h("li", {}, h("span", { class: "line" }, `Line ${number(error.line)}`), h("span", {}, error.detail, error.remedy ? h("span", { class: "faint" }, ` ${error.remedy}`) : null))))] : []),
      ...look.rows.map(({ line, row }) => rowOf(line, row, columns)),
    );
    next.disabled = look.fitting === 0;
  }

  // ---- 3: summary and import

  private showSummary(problem?: Problem): void {
    const look = this.look as Look;
    const mapping = this.mapping as Mapping;
    const name = h("input", { class: "input wide", id: "i-name", value: this.name, maxlength: 120, required: true, autocomplete: "off", "aria-describedby": "i-name-help" });
    name.addEventListener("input", () => (this.name = name.value));
    const taken = Object.entries(mapping.columns).map(([column, path]) => `${column} ← ${Array.isArray(path) ? path.join(" + ") : path}`);
    const fact = (term: string, text: string): HTMLElement => h("div", {}, h("dt", {}, term), h("dd", {}, text));
    const form = h(
      "form",
      { class: "import-plain" },
      h("dl", { class: "row-others" }, fact("file", `${look.file_name}, ${size(look.size)}`), fact("rows are", this.about?.types[mapping.row_type] ?? mapping.row_type), fact("columns", taken.join(", ")), fact("other columns", (mapping.keep ?? "all") === "all" ? "travel along" : "left out"), fact("bad rows", mapping.bad_rows === "skip" ? "left out and counted" : "stop the import, nothing is made"), fact("looked at", `${number(look.fitting)} of ${number(look.looked_at)} rows fit`)),
      h("div", { class: "field" }, h("label", { for: "i-name" }, "Dataset"), h("div", {}, h("div", { class: "controls" }, name), h("p", { class: "help", id: "i-name-help" }, "A name that exists gets a new version; a new name makes a dataset."))),
      h("div", { class: "btn-row" }, h("button", { class: "btn primary", type: "submit" }, "Import"), h("button", { class: "btn", type: "button", onclick: () => this.showMapping() }, "Back to the mapping")),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.import();
    });
    this.draw(3, problem ? notice(problem) : null, form);
    name.focus();
  }

  private async import(): Promise<void> {
    const look = this.look as Look;
    const bar = h("div", { class: "import-progress" }, meter(0, "Imported"), h("p", { role: "status" }, "Importing …"));
    this.draw(3, bar);
    const body = new FormData();
    body.append("name", this.name);
    body.append("upload_id", look.id);
    body.append("mapping", JSON.stringify(this.mapping));
    const base = `/api/v1/projects/${this.about?.project}`;
    const ask = async (): Promise<void> => {
      const progress = await api<Progress>(`${base}/uploads/${look.id}`).catch(() => null);
      if (!progress?.rows || !progress.seconds || progress.share === null) return;
      const rate = progress.rows / progress.seconds;
      const left = progress.share > 0.01 ? `, about ${Math.ceil((progress.seconds * (1 - progress.share)) / progress.share)} s left` : "";
      bar.replaceChildren(meter(progress.share, "Imported"), h("p", { role: "status" }, `${number(progress.rows)} rows so far, ${number(Math.round(rate))} rows/s${left}`));
    };
    const clock = setInterval(() => void ask(), 700);
    try {
      const version = await api<{ id: number }>(`${base}/imports`, { method: "POST", body });
      location.assign(`/versions/${version.id}?tab=statistics`);
    } catch (error) {
      if (!(error instanceof ProblemError)) throw error;
      // a broken file is gone from the studio; anything else can be mended here
      const isGone = ["/problems/bad-file", "/problems/file-too-large", "/problems/needs-memory", "/problems/no-such-upload"].includes(error.problem.type);
      if (isGone) this.showSource(error.problem);
      else this.showSummary(error.problem);
    } finally {
      clearInterval(clock);
    }
  }

  private forget(): void {
    const id = this.look?.id;
    this.look = this.mapping = null;
    if (id) void api(`/api/v1/projects/${this.about?.project}/uploads/${id}`, { method: "DELETE" }).catch(() => undefined);
    this.showSource();
  }
}

customElements.define("import-file", ImportFile);
