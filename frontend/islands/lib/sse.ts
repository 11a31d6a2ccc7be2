/**
 * One event stream with catch-up. The browser's EventSource gives up after an HTTP error and forgets the last id when it is
 * reopened, so the last id is kept here and sent as `?after=`; the stream rests while the tab is hidden.
 */

export type Connection = "connecting" | "open" | "lost" | "resting" | "closed";

export interface StreamOptions {
  /** Resume after this id. */
  after?: number;
  /** Called with event name, parsed data and id (the run-wide sequence number, if the event has one). */
  on: (event: string, data: unknown, id: number | null) => void;
  /** Called when the connection's state changes. */
  state?: (connection: Connection) => void;
  /** Names of events to hear. */
  events: string[];
}

export class Stream {
  #source: EventSource | null = null;
  #after: number;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #wait = 500;
  #connection: Connection = "connecting";

  constructor(
    private readonly path: string,
    private readonly options: StreamOptions,
  ) {
    this.#after = options.after ?? 0;
    document.addEventListener("visibilitychange", this.#visibility);
    // A page kept in the back-forward cache must not hold one of the browser's six connections.
    addEventListener("pagehide", this.#hide);
    addEventListener("pageshow", this.#visibility);
    this.#visibility();
  }

  /** The id after which the next connection resumes. */
  get after(): number {
    return this.#after;
  }

  close(): void {
    document.removeEventListener("visibilitychange", this.#visibility);
    removeEventListener("pagehide", this.#hide);
    removeEventListener("pageshow", this.#visibility);
    this.#drop("closed");
  }

  #visibility = (): void => {
    if (document.visibilityState === "hidden") this.#drop("resting");
    else if (!this.#source) this.#open();
  };

  #hide = (): void => this.#drop("resting");

  #say(connection: Connection): void {
    if (connection === this.#connection) return;
    this.#connection = connection;
    this.options.state?.(connection);
  }

  #drop(connection: Connection): void {
    clearTimeout(this.#retry);
    this.#source?.close();
    this.#source = null;
    this.#say(connection);
  }

  #open(): void {
    clearTimeout(this.#retry);
    const address = new URL(this.path, location.href);
    if (this.#after) address.searchParams.set("after", String(this.#after));
    const source = new EventSource(address);
    this.#source = source;
    source.onopen = () => {
      this.#wait = 500;
      this.#say("open");
    };
    source.onerror = () => {
      source.close();
      if (this.#source !== source) return;
      this.#source = null;
      this.#say("lost");
      this.#retry = setTimeout(() => this.#open(), this.#wait);
      this.#wait = Math.min(this.#wait * 2, 8000);
    };
    for (const name of this.options.events)
      source.addEventListener(name, (event: MessageEvent<string>) => {
        const id = /^\d+$/.test(event.lastEventId) ? Number(event.lastEventId) : null;
        if (id !== null) this.#after = Math.max(this.#after, id);
        this.options.on(name, JSON.parse(event.data), id);
      });
  }
}
