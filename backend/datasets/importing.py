"""An upload on its way to becoming a version.

The file lies in a quarantine folder under a random name. It is read by a child process (``python -m
backend.datasets.importing``) with a limit on its memory, so that a hostile file can harm neither the web's memory nor
its time: the web stays as quick during an import of a million rows, and its memory stays where it was.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from backend import errors
from backend.datasets.formats import Source, open_source
from backend.datasets.mapping import Mapper, Mapping
from backend.datasets.recognition import suggest
from backend.datasets.rowfile import BadRow, RowTooLarge, RowWriter, Written
from backend.datasets.rows import Row
from backend.datasets.strictjson import BadFile, FileTooLarge
from backend.errors import NotFound, StudioError, TooLarge, Unavailable

MEMORY_BYTES = 3 << 30
"""Address space of the child: many times what a file of ordinary rows needs."""
LOOK_ROWS = 200
SHOWN_ROWS = 5
SHOWN_ERRORS = 10
SHOWN_CHARACTERS = 2_000
LOOK_SECONDS = 60
IMPORT_SECONDS = 2 * 3600
KEPT_SECONDS = 24 * 3600
UNPACKED_TIMES = 5
"""A file may unpack to this many times the largest upload."""


class NoSuchUpload(NotFound):
    """There is no such upload, or it is not yours."""


class ImportFailed(Unavailable):
    """The import stopped."""


class NeedsMemory(TooLarge):
    """Reading this file needs more memory than the studio gives it."""


class Upload(NamedTuple):
    """A file in quarantine: whose it is, what it was called, and where it lies."""

    id: str
    folder: Path
    project_id: int
    person_id: int
    file_name: str
    size: int

    @property
    def file(self) -> Path:
        """The file as it was sent."""
        return self.folder / "file"

    def progress(self) -> dict[str, Any] | None:
        """``rows``, ``share`` (0 … 1) and ``seconds`` of a running import; ``None`` before it began."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "progress.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found


class Quarantine:
    """Uploads in *folder*, each under a random name; those forgotten for a day are removed."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def receive(self, stream: BinaryIO, file_name: str, project_id: int, person_id: int) -> Upload:
        """Copy *stream* into quarantine. Raises ``FileTooLarge`` and leaves nothing behind."""
        self._sweep()
        name = str(uuid.uuid4())
        folder = self._folder / name
        folder.mkdir(parents=True, mode=0o700)
        size = 0
        try:
            with (folder / "file").open("xb") as file:
                while chunk := stream.read(1 << 20):
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise FileTooLarge(
                            f"The file has more than {self._max_bytes:,} bytes.", remedy="Send it in parts, or gzipped."
                        )
                    file.write(chunk)
            upload = Upload(name, folder, project_id, person_id, os.path.basename(file_name)[:200] or "file", size)
            about = {"project_id": project_id, "person_id": person_id, "file_name": upload.file_name, "size": size}
            (folder / "about.json").write_text(json.dumps(about))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return upload

    def get(self, upload_id: str, person_id: int) -> Upload:
        """The upload, if *person_id* sent it."""
        try:
            # only a uuid in its one spelling is a name in here
            folder = self._folder / str(uuid.UUID(upload_id))
            upload = Upload(folder.name, folder, **json.loads((folder / "about.json").read_bytes()))
        except (ValueError, OSError):
            raise NoSuchUpload(
                "There is no such upload; uploads are kept for a day.", remedy="Send the file again."
            ) from None
        if upload.person_id != person_id:
            raise NoSuchUpload("There is no such upload; uploads are kept for a day.", remedy="Send the file again.")
        return upload

    def remove(self, upload: Upload) -> None:
        """Forget the upload and everything made on the way."""
        shutil.rmtree(upload.folder, ignore_errors=True)

    def _sweep(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for folder in self._folder.iterdir():
                with contextlib.suppress(OSError):
                    if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                        shutil.rmtree(folder, ignore_errors=True)

    def look(self, upload: Upload, mapping: Mapping | None = None) -> dict[str, Any]:
        """What the file is and how its first rows read under *mapping* (or the likeliest one).

        Raises ``BadFile`` or ``FileTooLarge`` with the line at fault if the file itself is broken in its first rows.
        """
        answer = self._child(upload, {"do": "look", "mapping": _dump(mapping)}, LOOK_SECONDS)
        return {"id": upload.id, "file_name": upload.file_name, "size": upload.size, **answer}

    def write_rows(self, upload: Upload, mapping: Mapping | None) -> tuple[Written, Mapping, dict[str, Any]]:
        """Read the whole file; returns the rows as written, the mapping that was used, and what to record of the import."""
        answer = self._child(upload, {"do": "import", "mapping": _dump(mapping)}, IMPORT_SECONDS)
        written = Written(**{**answer["written"], "path": upload.folder / "rows.parquet"})
        return written, Mapping.model_validate(answer["mapping"]), answer["about"]

    def _child(self, upload: Upload, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        result = upload.folder / f"{uuid.uuid4().hex}.result"
        order = {
            **request,
            "file": str(upload.file),
            "result": str(result),
            "max_bytes": UNPACKED_TIMES * self._max_bytes,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "backend.datasets.importing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
            # the least it needs: no secrets, one thread, an allocator that returns memory
            env={
                "PATH": os.environ.get("PATH", ""),
                "ARROW_DEFAULT_MEMORY_POOL": "system",
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "2",
                "LANG": "C.UTF-8",
            },
            start_new_session=True,
        )
        try:
            _, complaint = process.communicate(json.dumps(order).encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            raise ImportFailed(f"Reading the file took more than {seconds:.0f} s; nothing was made.") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        try:
            answer: dict[str, Any] = json.loads(result.read_bytes())
        except (FileNotFoundError, ValueError):
            answer = {}
        result.unlink(missing_ok=True)
        if "error" in answer:
            raise _error(answer["error"])
        if not answer:
            last = complaint.decode(errors="replace").strip().splitlines()[-1:]
            if process.returncode in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGXCPU) or any(
                "Memory" in x for x in last
            ):
                raise NeedsMemory("The reader of this file ran out of memory or crashed; nothing was made.", line=1)
            raise ImportFailed(f"The reader of this file stopped: {''.join(last)[:200]}", line=1)
        return answer


def _dump(mapping: Mapping | None) -> Any:
    return mapping.model_dump(mode="json") if mapping else None


KINDS: dict[str, type[StudioError]] = {k.__name__: k for k in (BadFile, FileTooLarge, BadRow, RowTooLarge, NeedsMemory)}


def _error(said: dict[str, Any]) -> StudioError:
    kind = KINDS.get(said["kind"], errors.Invalid)
    return kind(said["detail"], remedy=said["remedy"], **said["fields"])


# --- the child ---------------------------------------------------------------------------------------------------


class UnknownColumns(BadFile):
    """The columns tell nothing."""


KINDS["UnknownColumns"] = UnknownColumns


def _clip(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + " …"
    if isinstance(value, dict):
        return {key: _clip(inner) for key, inner in list(value.items())[:50]}
    if isinstance(value, list):
        return [_clip(inner) for inner in value[:50]]
    return value


def _first_rows(source: Source, n: int = LOOK_ROWS) -> list[tuple[int, Row]]:
    rows: list[tuple[int, Row]] = []
    for numbered in source.rows:
        rows.append(numbered)
        if len(rows) == n:
            break
    return rows


def _look(order: dict[str, Any]) -> dict[str, Any]:
    source = open_source(Path(order["file"]), order["max_bytes"])
    rows = _first_rows(source)
    if not rows:
        raise BadFile("There is no row in the file.", line=1)
    suggestions = suggest([row for _, row in rows])
    mapping = (
        Mapping.model_validate(order["mapping"])
        if order["mapping"]
        else suggestions[0].mapping
        if suggestions
        else None
    )
    columns: dict[str, str] = {}
    for _, row in rows:
        for name, value in row.items():
            if columns.get(name, "nothing") == "nothing":
                columns[name] = _describe(value)
    found: dict[str, Any] = {
        "kind": source.kind,
        "compressed": source.compressed,
        "delimiter": source.delimiter,
        "columns": columns,
        "suggestions": [{"name": s.name, "mapping": _dump(s.mapping)} for s in suggestions],
        "mapping": _dump(mapping),
        "looked_at": len(rows),
        "is_all": next(source.rows, None) is None if len(rows) == LOOK_ROWS else True,
        "raw": [{"line": line, "row": _clip(row)} for line, row in rows[:SHOWN_ROWS]],
        "rows": [],
        "errors": [],
        "fitting": 0,
    }
    if mapping is not None:
        mapper = Mapper(mapping.model_copy(update={"bad_rows": "refuse"}), cells_hold_json=source.kind == "csv")
        kept: bool | None = None
        for line, raw in rows:
            try:
                mapped = mapper(raw)
                if mapped is None:
                    continue
                now = any(isinstance(mapped.get(c), list) for c in ("messages", "prompt"))
                if kept is not None and now is not kept:
                    raise BadRow(
                        "Some rows hold conversations, others plain text.",
                        remedy="Make plain texts into conversations.",
                    )
                kept = now
            except BadRow as error:
                if len(found["errors"]) < SHOWN_ERRORS:
                    found["errors"].append(
                        {"line": line, "detail": error.detail, "remedy": error.remedy, **error.fields}
                    )
            else:
                found["fitting"] += 1
                if len(found["rows"]) < SHOWN_ROWS:
                    found["rows"].append({"line": line, "row": _clip(mapped)})
        found["ties"] = mapper.left_out["neither side won"]
    return found


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "list of objects" if value and isinstance(value[0], dict) else "list"
    return {bool: "true or false", int: "integer", float: "number", str: "text", dict: "object"}.get(
        type(value), "value"
    )


def _import(order: dict[str, Any]) -> dict[str, Any]:
    path = Path(order["file"])
    if order["mapping"]:
        mapping = Mapping.model_validate(order["mapping"])
    else:
        peek = open_source(path, order["max_bytes"])
        suggestions = suggest([row for _, row in _first_rows(peek)])
        peek.close()
        if not suggestions:
            raise UnknownColumns(
                "The columns do not tell what the rows are.", line=1, field="mapping", remedy="Send a mapping."
            )
        mapping = suggestions[0].mapping
    source = open_source(path, order["max_bytes"])
    writer = RowWriter(path.with_name("rows.parquet"), mapping.row_type)
    mapper = Mapper(mapping, cells_hold_json=source.kind == "csv")
    started = last = time.monotonic()
    parent, line, seen = os.getppid(), 1, 0
    progress, fresh = path.with_name("progress.json"), path.with_name("progress.new")
    try:
        for number, raw in source.rows:
            seen += 1
            line = number
            row = mapper(raw)
            if row is not None:
                writer.add(row)
            if not seen & 255 and (now := time.monotonic()) - last > 0.25:
                last = now
                fresh.write_text(json.dumps({"rows": seen, "share": source.share(), "seconds": now - started}))
                fresh.replace(progress)
                if os.getppid() != parent:
                    sys.exit("the studio that asked for this import is gone")
        if not writer.rows:
            why = f" {next(iter(mapper.left_out))}" if mapper.left_out else ""
            raise BadFile(f"There is no row to keep.{why}", line=1)
        written = writer.close()
    except StudioError as error:
        error.fields.setdefault("line", line)
        raise
    about = {
        "format": source.kind,
        "compressed": source.compressed,
        "read": seen,
        "left_out": dict(mapper.left_out.most_common(20)),
        "seconds": round(time.monotonic() - started, 3),
    }
    return {"written": {**written._asdict(), "path": ""}, "mapping": _dump(mapping), "about": about}


@contextlib.contextmanager
def _one_answer(result: Path) -> Iterator[dict[str, Any]]:
    answer: dict[str, Any] = {}
    try:
        yield answer
    except StudioError as error:
        answer.clear()
        error.fields.setdefault("line", 1)
        answer["error"] = {
            "kind": type(error).__name__,
            "detail": error.detail,
            "remedy": error.remedy,
            "fields": error.fields,
        }
    except MemoryError:  # Arrow's is a subclass
        answer.clear()
        detail = "Reading the file needs more memory than the studio gives it; nothing was made."
        answer["error"] = {
            "kind": "NeedsMemory",
            "detail": detail,
            "remedy": "Write it with smaller row groups, or as JSON lines.",
            "fields": {"line": 1},
        }
    fresh = result.with_suffix(".new")
    fresh.write_text(json.dumps(answer))
    fresh.replace(result)


def main() -> None:
    """Read the order from standard input, do it, leave the answer in its result file."""
    order = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    with _one_answer(Path(order["result"])) as answer:
        answer.update(_look(order) if order["do"] == "look" else _import(order))


if __name__ == "__main__":
    main()
