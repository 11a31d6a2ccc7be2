// <compare-completions>: the judging page's form with keys, timing, drafts and no reload between assignments.
// The server's answer to a judgment is the page with the next assignment; its marked parts replace ours.
// An answer is sent once however often Enter is hit: the assignment's own key makes a repetition harmless.
import { meta, ProblemError, type Problem } from "./lib/api.ts";
import { wordDiff } from "./lib/diff.ts";
import { all, h, one, toast } from "./lib/dom.ts";
import { keys } from "./lib/keys.ts";

interface Draft {
  point?: string;
  tie?: string;
  reason?: string;
  flags?: string[];
}

const WORDS = ["A much better", "A better", "A slightly better", "tie", "B slightly better", "B better", "B much better"];
const HEARTBEAT_MS = 60_000;
const KEEP_DRAFTS_MS = 7 * 24 * 3600 * 1000;

class CompareCompletions extends HTMLElement {
  #listening = new AbortController();
  #forget: () => void = () => undefined;
  #heart: ReturnType<typeof setInterval> | undefined;
  #sending = false;
  #shownAt = performance.now();
  #firstInput: number | undefined;
  #active = 0;
  #activeSince: number | undefined;

  connectedCallback(): void {
    const signal = (this.#listening = new AbortController()).signal;
    this.#shownAt = performance.now();
    this.#active = 0;
    this.#activeSince = document.hasFocus() ? performance.now() : undefined;
    addEventListener("focus", () => (this.#activeSince ??= performance.now()), { signal });
    addEventListener("blur", () => this.#rest(), { signal });
    this.#form.addEventListener("submit", (event) => void this.#send(event), { signal });
    this.#form.addEventListener("input", () => this.#changed(), { signal });
    for (const id of ["skip", "undo"]) one<HTMLFormElement>(`#${id}`, this)?.addEventListener("submit", (event) => void this.#other(event), { signal });
    for (const button of all("[data-view]")) button.addEventListener("click", () => void this.#view(button.dataset.view ?? "read"), { signal });
    for (const sheet of all("[popover]", this)) sheet.addEventListener("toggle", (event) => this.#opened(sheet, event as ToggleEvent), { signal });
    this.#scrollTogether(signal);
    this.#restore();
    this.#form.noValidate = true; // the page says itself what is missing
    this.#look();
    this.#forget = keys([
      ...WORDS.map((does, i) => ({ key: String(i + 1), does, run: () => this.#pick(i + 1) })),
      { key: "8", does: "", run: () => this.#pick(8) },
      { key: "+", does: "A tie: both good", run: () => this.#tie("both_good") },
      { key: "=", does: "", run: () => this.#tie("both_good") },
      { key: "-", does: "A tie: both bad", run: () => this.#tie("both_bad") },
      { key: "Enter", does: "Send", run: (event) => this.#enter(event) },
      { key: "r", does: "Raw text", run: () => void this.#view(this.#viewing === "raw" ? "read" : "raw") },
      { key: "d", does: "Differences between A and B", run: () => void this.#view(this.#viewing === "diff" ? "read" : "diff") },
    ]);
    this.#heart = setInterval(() => void this.#beat(), HEARTBEAT_MS);
  }

  disconnectedCallback(): void {
    this.#listening.abort();
    this.#forget();
    clearInterval(this.#heart);
  }

  // ---- what was answered ------------------------------------------------------------------------

  get #form(): HTMLFormElement {
    return one<HTMLFormElement>("#answer", this)!;
  }

  get #point(): string {
    return one<HTMLInputElement>("[name=point]:checked", this)?.value ?? "";
  }

  get #tieKind(): string {
    return one<HTMLInputElement>("[name=tie_kind]:checked", this)?.value ?? "";
  }

  get #reason(): HTMLTextAreaElement {
    return one<HTMLTextAreaElement>("[name=reason]", this)!;
  }

  /** What is missing before this can be sent; empty when nothing is. */
  get #missing(): string {
    if (!this.#point) return "not answered: 1 … 7";
    if (this.#point === "4" && !this.#tieKind) return "a tie: both good or both bad?";
    if (this.#reason.dataset.required !== undefined && !this.#reason.value.trim()) return "a reason is asked for: N";
    return "";
  }

  #pick(point: number): void {
    const sheet = one("#skip:popover-open", this);
    if (sheet) return all<HTMLButtonElement>("button[name=skip_reason]", sheet)[point - 1]?.click();
    const input = one<HTMLInputElement>(`[name=point][value="${point}"]`, this);
    if (!input) return;
    input.checked = true;
    input.focus();
    this.#changed();
  }

  #tie(kind: string): void {
    if (this.#point !== "4") return;
    one<HTMLInputElement>(`[name=tie_kind][value="${kind}"]`, this)!.checked = true;
    this.#changed();
  }

  #changed(): void {
    this.#firstInput ??= performance.now() - this.#shownAt;
    this.#look();
    const draft: Draft = { point: this.#point, tie: this.#tieKind, reason: this.#reason.value, flags: all<HTMLInputElement>("[name=flags]:checked", this).map((box) => box.value) };
    try {
      localStorage.setItem(this.#draftName, JSON.stringify({ ...draft, at: Date.now() }));
    } catch {
      // Private windows have no storage; the answer then lives as long as the page.
    }
  }

  #look(): void {
    const missing = this.#missing;
    const said = one(".said", this)!;
    said.textContent = this.#point ? WORDS[Number(this.#point) - 1]! : "not answered";
    said.classList.toggle("faint", !this.#point);
    one(".acts .given", this)!.hidden = !this.#reason.value.trim();
    const send = one<HTMLButtonElement>(".acts .btn.primary", this)!;
    if (missing) send.setAttribute("aria-disabled", "true");
    else send.removeAttribute("aria-disabled");
    const left = one(".acts .left", this)!;
    left.classList.remove("says");
    // what the server said last (sent, taken back) stands until something is answered
    if (this.#firstInput !== undefined || !left.textContent) left.textContent = missing;
  }

  // ---- drafts -----------------------------------------------------------------------------------

  get #draftName(): string {
    return `draft:${this.dataset.assignment}`;
  }

  #restore(): void {
    try {
      const kept = localStorage.getItem(this.#draftName);
      if (kept) {
        const draft = JSON.parse(kept) as Draft;
        const check = (selector: string): void => {
          const input = one<HTMLInputElement>(selector, this);
          if (input) input.checked = true;
        };
        if (draft.point) check(`[name=point][value="${CSS.escape(draft.point)}"]`);
        if (draft.tie) check(`[name=tie_kind][value="${CSS.escape(draft.tie)}"]`);
        if (draft.reason && !this.#reason.value) this.#reason.value = draft.reason;
        for (const flag of draft.flags ?? []) check(`[name=flags][value="${CSS.escape(flag)}"]`);
      }
      for (const name of Object.keys(localStorage))
        if (name.startsWith("draft:") && name !== this.#draftName) {
          const old = JSON.parse(localStorage.getItem(name) ?? "{}") as { at?: number };
          if (Date.now() - (old.at ?? 0) > KEEP_DRAFTS_MS) localStorage.removeItem(name);
        }
    } catch {
      // A damaged draft is no reason to stop.
    }
  }

  #dropDraft(): void {
    try {
      localStorage.removeItem(this.#draftName);
    } catch {
      // Nothing was kept.
    }
  }

  // ---- sending ----------------------------------------------------------------------------------

  #enter(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (target.matches("button, a, summary")) return target.click();
    if (!one("[popover]:popover-open")) this.#form.requestSubmit(one<HTMLButtonElement>(".acts .btn.primary", this));
  }

  async #send(event: SubmitEvent): Promise<void> {
    event.preventDefault();
    const missing = this.#missing;
    if (missing) {
      const left = one(".acts .left", this)!;
      left.textContent = missing;
      left.classList.add("says");
      if (missing.startsWith("a reason")) one("#why", this)?.showPopover();
      return;
    }
    this.#rest();
    const body = new FormData(this.#form);
    body.set("active_ms", String(Math.round(this.#active)));
    if (this.#firstInput !== undefined) body.set("first_input_ms", String(Math.round(this.#firstInput)));
    await this.#post(this.#form.action, body);
  }

  async #other(event: SubmitEvent): Promise<void> {
    event.preventDefault();
    const form = event.target as HTMLFormElement;
    await this.#post(form.action, new FormData(form, event.submitter));
  }

  /** Post once; the answer is the page with the next assignment. What was typed stays until the server has it. */
  async #post(action: string, body: FormData): Promise<void> {
    if (this.#sending) return;
    this.#sending = true;
    this.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(action, { method: "POST", body: new URLSearchParams(body as unknown as Record<string, string>), headers: { "X-Island": "compare-completions", "X-CSRF-Token": meta("csrf"), Accept: "text/html, application/json" }, credentials: "same-origin" });
      const kind = answer.headers.get("content-type") ?? "";
      if (kind.includes("html") && (answer.ok || answer.status === 409)) {
        this.#dropDraft();
        show(await answer.text());
      } else {
        const problem = (await answer.json().catch(() => null)) as Problem | null;
        throw new ProblemError(problem ?? { type: "about:blank", title: answer.statusText, status: answer.status, detail: `The studio answered ${answer.status}. Your answer is kept here.` });
      }
    } catch (error) {
      const why = error instanceof ProblemError ? error.message : "No connection: nothing was lost, send it again.";
      toast(why, h("button", { class: "btn small", type: "button", onclick: () => void this.#post(action, body) }, "Try again"));
    } finally {
      this.#sending = false;
      this.removeAttribute("aria-busy");
    }
  }

  async #beat(): Promise<void> {
    if (document.visibilityState !== "visible") return;
    const answer = await fetch(`/api/v1/assignments/${this.dataset.assignment}/heartbeat`, { method: "POST", headers: { "X-CSRF-Token": meta("csrf") }, credentials: "same-origin" }).catch(() => null);
    if (answer?.status === 409) {
      clearInterval(this.#heart);
      const left = one(".acts .left", this)!;
      left.textContent = "Sent in another tab, or taken by somebody else: reload for the next one.";
      left.classList.add("says");
    }
  }

  #rest(): void {
    if (this.#activeSince !== undefined) this.#active += performance.now() - this.#activeSince;
    this.#activeSince = undefined;
    if (document.hasFocus()) this.#activeSince = performance.now();
  }

  // ---- reading ----------------------------------------------------------------------------------

  get #viewing(): string {
    return one('[data-view][aria-pressed="true"]')?.dataset.view ?? "read";
  }

  async #view(view: string): Promise<void> {
    const sides = all(".side", this);
    for (const button of all("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === view));
    if (view === "diff" && !one(".diffed", this)) {
      const [before, after] = sides.map((side) => one(".raw", side)?.textContent ?? "");
      const { nodes } = await wordDiff(before ?? "", after ?? "");
      sides.forEach((side, i) => {
        const gone = i === 0 ? "INS" : "DEL"; // A shows what only A says, B what only B says
        const mine = nodes.filter((node) => node.nodeName !== gone).map((node) => (node instanceof Element ? h("mark", { class: "alone" }, node.textContent) : node.cloneNode()));
        side.append(h("p", { class: "diffed", hidden: true }, ...mine));
      });
    }
    for (const side of sides) {
      one(".read", side)!.hidden = view !== "read";
      one(".raw", side)!.hidden = view !== "raw";
      const diffed = one(".diffed", side);
      if (diffed) diffed.hidden = view !== "diff";
    }
  }

  #scrollTogether(signal: AbortSignal): void {
    const sides = all(".side", this);
    let leader: HTMLElement | undefined;
    for (const side of sides) {
      for (const kind of ["pointerenter", "focusin", "touchstart", "wheel"]) side.addEventListener(kind, () => (leader = side), { signal, passive: true });
      side.addEventListener(
        "scroll",
        () => {
          if (leader && leader !== side) return;
          const share = side.scrollTop / Math.max(1, side.scrollHeight - side.clientHeight);
          for (const other of sides) if (other !== side) other.scrollTop = share * (other.scrollHeight - other.clientHeight);
        },
        { signal, passive: true },
      );
    }
  }

  #opened(sheet: HTMLElement, event: ToggleEvent): void {
    // not on the first reason to skip: a second Enter would send it
    if (event.newState === "open") (one<HTMLElement>("textarea, [name=flags]", sheet) ?? sheet).focus();
    else this.#look();
  }
}

/** Take the marked parts of *html* (a whole page) over into this one. */
function show(html: string): void {
  const page = new DOMParser().parseFromString(html, "text/html");
  for (const part of all("[data-swap]")) {
    const fresh = one(`[data-swap="${part.dataset.swap}"]`, page);
    if (fresh) part.replaceWith(document.adoptNode(fresh));
  }
  document.body.className = page.body.className;
  for (const button of all("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === "read"));
  if (!one("compare-completions")) for (const views of all(".views")) views.remove();
  history.replaceState(null, "", location.pathname);
  scrollTo(0, 0);
}

customElements.define("compare-completions", CompareCompletions);
