"""What an attempt says, carried to the database, and its lease kept: two threads beside the one that owns the child.

A database that does not answer is a reason to wait: the file waits. One that *answers* that the fence is not ours is a
reason to stop at once.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.orm import Session

from backend.artifacts import Artifacts, FileEntry, Manifest
from backend.db import Sessions, unit_of_work
from backend.runs import attempts, leases
from backend.runs import events as said
from backend.runs.leases import Claimed, LeaseLost
from worker.supervision import Supervision

log = logging.getLogger(__name__)
T = TypeVar("T")
UNREACHABLE = (OperationalError, InterfaceError, InternalError)
BATCH_LINES = 2000
BATCH_BYTES = 4 << 20
OUTPUT_BYTES = 64 << 10
"""Of a process's output so much is kept with the run, from its end if it wrote more; the whole file stays in the folder."""


class Follower:
    """Reads whole lines of a growing file; a torn last line is read when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.line = 0
        """Number of the next line."""

    def skip(self, lines: int) -> None:
        """Go past *lines* that are recorded already."""
        while self.line < lines and self.read():
            pass

    def read(self) -> list[bytes]:
        """The next whole lines, at most a batch of them."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(BATCH_BYTES)
                if data and b"\n" not in data:  # one line longer than a batch
                    data += file.readline()
        except FileNotFoundError:
            return []
        lines = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1][:BATCH_LINES]
        self._offset += sum(len(line) + 1 for line in lines)
        self.line += len(lines)
        return lines


def parse(line: bytes) -> Any:
    """The event in *line*; a line that is none becomes a note, because its number must be counted."""
    try:
        return said.EVENT.validate_json(line)
    except ValidationError as error:
        return said.Note(level="warning", text=f"A line that is no event: {error.errors()[0]['msg']}: {line[:200]!r}")


def store_checkpoint(artifacts: Artifacts, folder: Path) -> Manifest:
    """Put the saved state in *folder* into the store; each file must be what its ``manifest.json`` says.

    Raises ``ValueError`` for one that is not.
    """
    document = json.loads((folder / "manifest.json").read_text())
    entries = [FileEntry(**entry) if isinstance(entry, dict) else FileEntry(*entry) for entry in (document["files"] if isinstance(document, dict) else document)]  # fmt: skip
    made: Manifest = []
    for expected in entries:
        stored = artifacts.put(folder / expected.name)
        if (stored.size, stored.sha256) != (expected.size, expected.sha256):
            raise ValueError(f"{expected.name} is not what the manifest says")
        made.append(FileEntry(expected.name, stored.size, stored.sha256))
    made.append(FileEntry("manifest.json", *artifacts.put(folder / "manifest.json")[1:]))
    return made


class Stopped(Exception):
    """The lease is lost: leave without a word to the database."""


class Recorder:
    """Keeps the lease of a claimed run and records what its child says."""

    def __init__(self, sessions: Sessions, claimed: Claimed, how: Supervision) -> None:
        self._sessions, self._claimed, self._how = sessions, claimed, how
        self._artifacts: Artifacts = sessions.kw["info"]["artifacts"]
        self.folder = how.home.resolve() / "runs" / str(claimed.run_id) / f"a{claimed.attempt}"
        self._lost = threading.Event()
        self._cancel = threading.Event()
        self._over = threading.Event()  # the child has ended: the follower reads to the end and stops
        self._told = threading.Event()  # everything it said is recorded
        self._heard = time.monotonic()
        self._failed: said.Failed | None = None
        self._finished: said.Finished | None = None
        self._broken: str | None = None
        self._output_at = 0

    # the database: unreachable is a reason to wait, a fence that is not ours is a reason to stop

    @contextmanager
    def _unit(self) -> Iterator[Session]:
        with unit_of_work(self._sessions) as session:
            # a process that is frozen in mid-transaction must not hold the run's row for longer than its lease
            session.execute(
                text("select set_config('idle_in_transaction_session_timeout', :milliseconds, true)"),
                {"milliseconds": str(int(self._how.lease_seconds * 500))},
            )
            yield session

    def _insist(self, work: Callable[[Session], T]) -> T:
        """*work* in a transaction of its own, repeated until the database answers. Raises :class:`Stopped`."""
        wait = 0.2
        while True:
            try:
                with self._unit() as session:
                    return work(session)
            except LeaseLost as error:
                self._lost.set()
                raise Stopped(str(error)) from error
            except UNREACHABLE as error:
                if self._lost.is_set():
                    raise Stopped(str(error)) from error
                log.warning("run %s: the database does not answer, trying again: %s", self._claimed.run_id, error.orig)
                time.sleep(wait)
                wait = min(wait * 2, 5.0)

    def _keep_lease(self) -> None:
        claimed, how = self._claimed, self._how
        while not self._told.wait(how.heartbeat_seconds):
            try:
                with self._unit() as session:
                    if leases.heartbeat(session, claimed.run_id, claimed.fence, how.lease_seconds):
                        self._cancel.set()
            except LeaseLost:
                self._lost.set()
                return
            except UNREACHABLE as error:
                log.warning("run %s: no heartbeat: %s", claimed.run_id, error.orig)

    def _follow(self) -> None:
        follower = Follower(self.folder / "events.jsonl")
        try:
            while True:
                ended = self._over.is_set()
                first = follower.line
                lines = [parse(line) for line in follower.read()]
                self._ship(first, lines)
                if not lines and ended:
                    break
                if not lines:
                    self._over.wait(self._how.ship_seconds)
        except Stopped:
            pass
        except Exception as error:
            log.exception("run %s: what it says cannot be recorded", self._claimed.run_id)
            self._broken = f"What the run says could not be recorded: {error}"
        finally:
            self._told.set()

    def _ship(self, first: int, lines: list[Any]) -> None:
        """Record *lines* in order; a checkpoint's files are in the store before the line that names it is."""
        output = self._output()
        if not lines and output is None:
            return
        if lines:
            self._heard = time.monotonic()
        claimed = self._claimed
        manifests: dict[int, Manifest] = {}
        for number, line in enumerate(lines, first):
            if isinstance(line, said.Failed):
                self._failed = line
            elif isinstance(line, said.Finished):
                self._finished = line
            elif isinstance(line, said.Checkpoint):
                try:
                    manifests[number] = store_checkpoint(self._artifacts, self.folder / line.folder)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    lines[number - first] = said.Note(
                        level="warning", text=f"The checkpoint of step {line.step} was not kept: {error}"
                    )
        cancel = self._insist(
            lambda session: attempts.record(
                session,
                claimed.run_id,
                claimed.fence,
                claimed.attempt,
                first,
                lines,
                manifests=manifests,
                output=output,
            )
        )
        if cancel:  # heard sooner here than with the next heartbeat: short runs would be over by then
            self._cancel.set()
        for number in manifests:
            shutil.rmtree(self.folder / lines[number - first].folder, ignore_errors=True)

    def _output(self) -> attempts.Output | None:
        """What was written to the output since, in whole lines unless the process has ended."""
        try:
            with (self.folder / "output.log").open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = max(self._output_at, size - OUTPUT_BYTES)
                file.seek(start)
                data = file.read(OUTPUT_BYTES)
        except FileNotFoundError:
            return None
        if not self._over.is_set():
            data = data[: data.rfind(b"\n") + 1]
        if not data:
            return None
        self._output_at = start + len(data)
        return attempts.Output(data.decode(errors="replace"), self._output_at)
