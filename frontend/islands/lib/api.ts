/** The REST API from a page: same origin, the session's CSRF token on unsafe requests, problem documents as errors. */

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  remedy?: string;
  field?: string;
  errors?: { field: string; message: string }[];
  [more: string]: unknown;
}

/** What the server refused, with its problem document (RFC 9457). */
export class ProblemError extends Error {
  constructor(readonly problem: Problem) {
    super(problem.detail || problem.title);
  }
}

export function meta(name: string): string {
  return document.querySelector<HTMLMetaElement>(`meta[name="${name}"]`)?.content ?? "";
}

/** One request; the parsed answer, or a `ProblemError`. A lost connection is a problem with status 0. */
export async function api<T>(path: string, init: { method?: string; body?: unknown; headers?: Record<string, string>; signal?: AbortSignal } = {}): Promise<T> {
  const method = init.method ?? (init.body === undefined ? "GET" : "POST");
  const headers: Record<string, string> = { Accept: "application/json", ...init.headers };
  if (method !== "GET") headers["X-CSRF-Token"] = meta("csrf");
  let body: BodyInit | undefined;
  if (init.body instanceof FormData || init.body instanceof Blob) body = init.body;
  else if (init.body !== undefined) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(init.body);
  }
  let answer: Response;
  try {
    answer = await fetch(path, { method, headers, body, signal: init.signal, credentials: "same-origin" });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ProblemError({ type: "about:blank", title: "No connection.", status: 0, detail: "The studio does not answer. Nothing was changed.", remedy: "Try again when the connection is back." });
  }
  if (answer.status === 204) return undefined as T;
  const parsed: unknown = await answer.json().catch(() => null);
  if (answer.ok) return parsed as T;
  const fallback = { type: "about:blank", title: answer.statusText, status: answer.status, detail: `The studio answered ${answer.status}.` };
  throw new ProblemError({ ...fallback, ...(typeof parsed === "object" && parsed ? parsed : {}) } as Problem);
}
