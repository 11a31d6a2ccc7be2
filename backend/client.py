"""The studio's REST API as Python: what the command line, the demo and notebooks use, and the only module that speaks HTTP to it.

>>> with Studio("http://127.0.0.1:8400", "sts_…") as studio:
...     version = studio.import_dataset(1, Path("pairs.jsonl"), name="Pairs")
...     run = studio.submit_run(1, {"method": "dpo", "base_model": 1, "dataset": version["id"]})
...     for event in studio.follow(run["id"]):
...         print(event.name, event.data)
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx

from backend import __version__

FINISHED = frozenset({"succeeded", "failed", "cancelled"})
"""States that a run never leaves."""

Json = dict[str, Any]


class Refused(Exception):
    """The studio said no; ``str()`` is what happened and what to do about it."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        super().__init__(_in_words(problem))
        self.problem = dict(problem)

    @property
    def status(self) -> int:
        """The HTTP status: 401 and 403 for rights, 404, 409, 422 …"""
        return int(self.problem.get("status", 500))


class Unreachable(Exception):
    """Nothing answers at that address, or something that is no studio."""


class Event(NamedTuple):
    """One server-sent event of a run; ``id`` is its sequence number."""

    name: str
    data: Any
    id: int | None


def _in_words(problem: Mapping[str, Any]) -> str:
    parts = [str(problem.get(key, "")).strip() for key in ("title", "detail")]
    sentences = [part for n, part in enumerate(parts) if part and part not in parts[:n]]
    at = [f"{key} {problem[key]}" for key in ("field", "line") if problem.get(key)]
    if at:
        sentences.append(f"({', '.join(at)})")
    more = problem.get("errors") or []
    sentences += [f"\n  {item.get('field')}: {item.get('message')}" for item in more[1:10] if isinstance(item, dict)]
    if problem.get("remedy"):
        sentences.append(f"\n→ {problem['remedy']}")
    return " ".join(sentences).replace(" \n", "\n")


class Studio:
    """The studio at *url*, as the person (or within the limits) of *token*. Use it in a ``with``, or call :meth:`close`."""

    def __init__(self, url: str, token: str | None = None, *, timeout_seconds: float = 60) -> None:
        self.url = url.rstrip("/")
        headers = {"User-Agent": f"alignment-studio/{__version__}", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        timeout = httpx.Timeout(timeout_seconds, connect=10)
        # trust_env off: the studio is often on this very machine, where a company's proxy only breaks things
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- the ground

    def call(self, method: str, path: str, **more: Any) -> Any:
        """One request below ``/api/v1``; the parsed answer. Raises :class:`Refused` or :class:`Unreachable`."""
        try:
            answer = self._http.request(method, f"/api/v1{path}", **more)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        return self._parsed(answer)

    def get(self, path: str, **params: Any) -> Any:
        """GET *path* with the given query; ``None`` values are left out."""
        return self.call("GET", path, params={key: value for key, value in params.items() if value is not None})

    def post(self, path: str, body: Any = None) -> Any:
        """POST *body* as JSON."""
        return self.call("POST", path, json={} if body is None else body)

    def items(self, path: str, **params: Any) -> Iterator[Json]:
        """Every entry of a paged list, fetched page by page."""
        after = None
        while True:
            page = self.get(path, after=after, **params)
            yield from page["items"]
            after = page.get("next")
            if after is None:
                return

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"No studio answers at {self.url} ({error}).\n→ Start it with `./studio up`, or give another address."
        )

    def _parsed(self, answer: httpx.Response) -> Any:
        kind = answer.headers.get("content-type", "").partition(";")[0]
        if answer.is_success:
            if answer.status_code == 204 or not answer.content:
                return None
            if not kind.endswith("json"):
                raise Unreachable(
                    f"{self.url} answers, but not like a studio ({kind or 'no content type'}).\n→ Check the address."
                )
            return answer.json()
        try:
            problem = answer.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            problem = {"title": f"{answer.status_code} {answer.reason_phrase}", "detail": answer.text[:200]}
        raise Refused({"status": answer.status_code, **problem})

    # --- accounts and projects

    def sign_in(self, email: str, password: str, *, token_name: str = "command line", days: int = 30) -> str:
        """Exchange a password for an API token, use it from now on, and return it."""
        body = {"email": email, "password": password, "token_name": token_name, "days": days}
        token: str = self.post("/sign-in", body)["token"]
        self._http.headers["Authorization"] = f"Bearer {token}"
        return token

    def me(self) -> Json:
        """Who the token belongs to."""
        found: Json = self.get("/me")
        return found

    def projects(self) -> list[Json]:
        """The projects of the token's person."""
        return list(self.items("/projects"))

    def create_project(self, name: str, goal: str = "") -> Json:
        """A new project."""
        made: Json = self.post("/projects", {"name": name, "goal": goal})
        return made

    # --- datasets

    def datasets(self, project_id: int) -> Iterator[Json]:
        """Datasets of a project."""
        return self.items(f"/projects/{project_id}/datasets")

    def dataset(self, dataset_id: int) -> Json:
        """One dataset."""
        found: Json = self.get(f"/datasets/{dataset_id}")
        return found

    def versions(self, dataset_id: int) -> Iterator[Json]:
        """Versions of a dataset."""
        return self.items(f"/datasets/{dataset_id}/versions")

    def version(self, version_id: int) -> Json:
        """One dataset version."""
        found: Json = self.get(f"/versions/{version_id}")
        return found

    def rows(self, version_id: int) -> Iterator[Json]:
        """Rows of a dataset version, page by page."""
        return self.items(f"/versions/{version_id}/rows")

    def create_dataset(self, project_id: int, name: str, description: str = "") -> Json:
        """An empty dataset."""
        made: Json = self.post(f"/projects/{project_id}/datasets", {"name": name, "description": description})
        return made

    def upload(self, project_id: int, file: Path) -> Json:
        """Send a file, in pieces, and get a look at it: columns, suggested mappings, first rows and errors. Nothing is made yet."""
        with file.open("rb") as opened:
            look: Json = self.call(
                "POST", f"/projects/{project_id}/uploads", files={"file": (file.name, opened)}, timeout=None
            )
        return look

    def import_dataset(
        self,
        project_id: int,
        file: Path,
        *,
        name: str,
        mapping: Mapping[str, Any] | None = None,
        row_type: str | None = None,
    ) -> Json:
        """Import *file* as a new version of the dataset *name*, which is made if the project has none of that name.

        *mapping* is the API's mapping object; without it the likeliest one is used, or the likeliest of *row_type*.
        """
        form = {"name": name}
        if mapping is None and row_type is not None:
            mapping = self.likeliest_mapping(project_id, file, row_type)
        if mapping is not None:
            form["mapping"] = json.dumps(dict(mapping))
        with file.open("rb") as opened:
            files = {"file": (file.name, opened)}
            version: Json = self.call("POST", f"/projects/{project_id}/imports", data=form, files=files, timeout=None)
        return version

    def likeliest_mapping(self, project_id: int, file: Path, row_type: str | None = None) -> Json:
        """The mapping that an import of *file* would use by itself (of *row_type*, if given). Raises :class:`Refused`."""
        look = self.upload(project_id, file)
        self.call("DELETE", f"/projects/{project_id}/uploads/{look['id']}")
        for suggestion in look["suggestions"]:
            if row_type is None or suggestion["mapping"]["row_type"] == row_type:
                found: Json = suggestion["mapping"]
                return found
        title = (
            f"No {row_type + ' ' if row_type else ''}rows can be read from the columns {', '.join(look['columns'])}."
        )
        remedy = "Say which column is which with a mapping."
        raise Refused({"title": title, "status": 422, "field": "mapping", "remedy": remedy})

    def download(self, version_id: int, to: Path) -> int:
        """Write the version's rows to *to*; returns the bytes written."""
        try:
            with self._http.stream("GET", f"/api/v1/versions/{version_id}/download") as answer:
                if not answer.is_success:
                    answer.read()
                    self._parsed(answer)
                with to.open("wb") as file:
                    for chunk in answer.iter_bytes():
                        file.write(chunk)
                    return file.tell()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    # --- models

    def models(self, project_id: int) -> Iterator[Json]:
        """Models of a project."""
        return self.items(f"/projects/{project_id}/models")

    def model(self, model_id: int) -> Json:
        """One model with where it came from."""
        found: Json = self.get(f"/models/{model_id}")
        return found

    # --- runs

    def submit_run(
        self,
        project_id: int,
        spec: Mapping[str, Any],
        *,
        name: str | None = None,
        parent_id: int | None = None,
        idempotency_key: str | None = None,
    ) -> Json:
        """Ask for a run; *idempotency_key* makes asking twice harmless."""
        body = {"spec": dict(spec), "name": name, "parent_id": parent_id, "idempotency_key": idempotency_key}
        made: Json = self.post(
            f"/projects/{project_id}/runs", {key: value for key, value in body.items() if value is not None}
        )
        return made

    def runs(self, project_id: int) -> Iterator[Json]:
        """Runs of a project, newest first."""
        return self.items(f"/projects/{project_id}/runs")

    def run(self, run_id: int) -> Json:
        """One run."""
        found: Json = self.get(f"/runs/{run_id}")
        return found

    def cancel_run(self, run_id: int) -> Any:
        """Ask the run to stop after its step; its last checkpoint stays."""
        return self.post(f"/runs/{run_id}/cancel")

    def metrics(self, run_id: int, keys: Sequence[str], points: int = 500) -> Json:
        """Series of a run by metric name."""
        found: Json = self.get(f"/runs/{run_id}/metrics", keys=",".join(keys), points=points)["series"]
        return found

    def checkpoints(self, run_id: int) -> list[Json]:
        """Checkpoints of a run."""
        return list(self.items(f"/runs/{run_id}/checkpoints"))

    def follow(self, run_id: int, after: int = 0, *, give_up_seconds: float = 120) -> Iterator[Event]:
        """Events of a run as they happen, from sequence number *after* on.

        A lost connection is taken up again where it broke, for *give_up_seconds* at most. Ends when the run has.
        """
        last, lost_since = after, None
        while True:
            try:
                for event in self._stream(f"/api/v1/runs/{run_id}/events", last):
                    lost_since = None
                    if event.id is not None:
                        last = max(last, event.id)
                    yield event
                    if event.name == "run" and event.data.get("state") in FINISHED:
                        return
            except httpx.TransportError as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > give_up_seconds:
                    raise self._unreachable(error) from error
            time.sleep(1)

    def _stream(self, path: str, last: int) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
        with self._http.stream("GET", path, headers=headers, timeout=httpx.Timeout(60, connect=10)) as answer:
            if answer.status_code in (502, 503, 504):
                raise httpx.ReadError("the studio is restarting")
            if not answer.is_success:
                answer.read()
                self._parsed(answer)
            name, seq = "message", None
            data: list[str] = []
            for line in answer.iter_lines():
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if not line:
                    if data:
                        yield Event(name, json.loads("\n".join(data)), seq)
                    name, data, seq = "message", [], None
                elif field == "event":
                    name = value
                elif field == "data":
                    data.append(value)
                elif field == "id":
                    seq = int(value) if value.isdigit() else None

    def workers(self) -> list[Json]:
        """Workers and what they do."""
        return list(self.items("/workers"))

    # --- labeling

    def labeling_sessions(self, project_id: int) -> Iterator[Json]:
        """Labeling sessions of a project, newest first."""
        return self.items(f"/projects/{project_id}/labeling-sessions")

    def create_labeling_session(self, project_id: int, name: str, **more: Any) -> Json:
        """Open a labeling session: ``guidelines``, ``overlap``, and ``items`` or ``version_id``."""
        made: Json = self.post(f"/projects/{project_id}/labeling-sessions", {"name": name, **more})
        return made

    def next_assignment(self, labeling_session_id: int) -> Json:
        """My assignment in this session: the one I hold, else the next of the queue."""
        desk: Json = self.post(f"/labeling-sessions/{labeling_session_id}/next")
        return desk

    def acknowledge_guidelines(self, labeling_session_id: int, version: int) -> Json:
        """I have read the guidelines."""
        desk: Json = self.post(f"/labeling-sessions/{labeling_session_id}/acknowledge", {"version": version})
        return desk

    def submit_judgment(self, assignment: str, submission: Mapping[str, Any]) -> Json:
        """Answer an assignment; repeating the same submission changes nothing."""
        receipt: Json = self.post(f"/assignments/{assignment}/judgment", dict(submission))
        return receipt

    def undo_last(self, labeling_session_id: int) -> Json:
        """Take my last judgment back."""
        desk: Json = self.post(f"/labeling-sessions/{labeling_session_id}/undo")
        return desk

    def preview_freeze(self, labeling_session_id: int, **policy: Any) -> Json:
        """What a policy would do with the judgments; nothing is written."""
        counts: Json = self.get(f"/labeling-sessions/{labeling_session_id}/freeze", **policy)
        return counts

    def freeze(self, labeling_session_id: int, dataset_name: str, policy: Mapping[str, Any] | None = None) -> Json:
        """Turn the judgments into a dataset version."""
        body = {"dataset_name": dataset_name, "policy": dict(policy or {})}
        frozen: Json = self.post(f"/labeling-sessions/{labeling_session_id}/freeze", body)
        return frozen
