"""One run, one child process: prepare its folder, start it, follow what it says, relay cancel and drain, end it with its run.

Three threads: the main one owns the child (the kernel's parent-death signal is tied to the thread that started it) and
decides; one keeps the lease; one carries the event file to the database. A database that does not answer stops neither
the child nor the supervisor: the file waits. A database that *answers* that the fence is not ours stops both at once.

Checkpoints go into the content-addressed artifact store, not by reference to this machine's disk, so that any other
machine can resume. The recipe's manifest is checked by the hash that the store computes anyway: one pass over the bytes.
"""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.orm import Session

import backend.schema  # noqa: F401  # a run's keys lead to tables of every part, and all must be known
from backend.artifacts import Artifacts, FileEntry, Manifest, sha256_of
from backend.db import Sessions, unit_of_work
from backend.embedded import dies_with_parent
from backend.runs import events as said
from backend.runs import leases
from backend.runs.leases import Claimed, Ending, LeaseLost
from backend.runs.specs import Launch, ModelFolder
from worker.devices import command

log = logging.getLogger(__name__)
T = TypeVar("T")
UNREACHABLE = (OperationalError, InterfaceError, InternalError)

RECIPES: tuple[str, ...] = (sys.executable, "-m", "worker.recipes")
CANNOT_WORK = 78
"""Exit code of a recipe whose spec cannot work: another attempt would fail like this one."""
BATCH_LINES = 2000
BATCH_BYTES = 4 << 20
OUTPUT_BYTES = 64 << 10
"""Of a process's output so much is kept with the run, from its end if it wrote more; the whole file stays in the folder."""
LEAST_FREE_BYTES = 512 << 20
_LAUNCHER = re.compile(r"[WE]\d{4} .*torch/distributed/")
MARK = "STUDIO_ATTEMPT"
"""Environment variable by which every descendant of an attempt can be found, whatever group it moved to."""

_PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "PYTHONPATH",
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "HF_HOME",
    "HSA_OVERRIDE_GFX_VERSION", "ROCR_VISIBLE_DEVICES",
)  # fmt: skip


@dataclass(frozen=True)
class Supervision:
    """How this worker looks after its runs; the times are settings, shortened in tests."""

    home: Path
    """Folder of this machine; run folders lie in ``runs/``."""
    lease_seconds: float = 60.0
    heartbeat_seconds: float = 10.0
    cancel_grace_seconds: float = 15.0
    drain_grace_seconds: float = 30.0
    pause_seconds: float = 10.0
    stall_seconds: float = 1800.0
    """No event for so long: the child hangs, and another attempt may not."""
    ship_seconds: float = 0.5
    command: Sequence[str] = RECIPES
    drain: Path | None = None
    """Once this file exists the run is brought to a checkpoint and given back."""
    devices: Mapping[int, str] = field(default_factory=dict)
    """Slot → accelerator, where a slot has one of its own."""


# --- who is who on this machine ----------------------------------------------------------------------------------


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # containers share the boot but not the process ids
    except OSError:
        return str(int(psutil.boot_time()))


def place(pid: int | None = None) -> str:
    """Boot, process id and start of a process: a later process with the same id is another place."""
    process = psutil.Process(pid)
    return f"{_boot()}|{process.pid}|{process.create_time():.2f}"


def is_gone(where: str) -> bool:
    """Whether the process at *where* certainly does not live: it was of this boot, and is not there now."""
    boot, _, rest = where.partition("|")
    pid, _, _ = rest.partition("|")
    if boot != _boot() or not pid.isdigit():
        return False
    try:
        process = psutil.Process(int(pid))
        return place(int(pid)) != where or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def mark_of(sessions: Sessions, run_id: int, fence: int) -> str:
    """What the processes of one attempt carry; it names the studio too, for two of them can share a machine."""
    url = sessions.kw["bind"].url
    return f"{url.host}:{url.port}/{url.database}#{run_id}.{fence}"


def sweep(mark: str) -> int:
    """Kill every process that carries *mark* in its environment; answers how many there were."""
    found = 0
    for process in psutil.process_iter(["pid"]):
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                process.kill()
                found += 1
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError):
            continue
    return found


# --- the event file ----------------------------------------------------------------------------------------------


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


def lay_out(artifacts: Artifacts, manifest: Manifest, folder: Path) -> Path:
    """Rebuild a stored folder and check every byte of it. Raises ``OSError`` or ``ValueError`` if one is wrong."""
    artifacts.checkout(manifest, folder)
    for entry in manifest:
        if sha256_of(folder / entry.name) != entry.sha256:
            raise ValueError(f"{entry.name} is damaged")
    return folder


# --- one attempt -------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """The lease is lost: leave without a word to the database."""


class Attempt:
    """A claimed run in the hands of this process, from its folder to its end."""

    def __init__(self, sessions: Sessions, claimed: Claimed, how: Supervision) -> None:
        self._sessions, self._claimed, self._how = sessions, claimed, how
        self._artifacts: Artifacts = sessions.kw["info"]["artifacts"]
        self.folder = how.home.resolve() / "runs" / str(claimed.run_id) / f"a{claimed.attempt}"
        self.mark = mark_of(sessions, claimed.run_id, claimed.fence)
        self._lost = threading.Event()
        self._cancel = threading.Event()
        self._over = threading.Event()  # the child has ended: the follower reads to the end and stops
        self._told = threading.Event()  # everything it said is recorded
        self._heard = time.monotonic()
        self._failed: said.Failed | None = None
        self._finished: said.Finished | None = None
        self._broken: str | None = None
        self._command: Sequence[str] = how.command
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
        """*work* in a transaction of its own, repeated until the database answers. Raises :class:`_Stopped`."""
        wait = 0.2
        while True:
            try:
                with self._unit() as session:
                    return work(session)
            except LeaseLost as error:
                self._lost.set()
                raise _Stopped(str(error)) from error
            except UNREACHABLE as error:
                if self._lost.is_set():
                    raise _Stopped(str(error)) from error
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
        except _Stopped:
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
            lambda session: leases.record(
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

    def _output(self) -> leases.Output | None:
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
        return leases.Output(data.decode(errors="replace"), self._output_at)

    # before, during, after

    def _prepare(self) -> Path:
        """Lay model, rows and checkpoint into the attempt's folder; answers the path of ``spec.json``."""
        claimed = self._claimed
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        free = shutil.disk_usage(self.folder).free
        materials = self._insist(lambda session: leases.materials(session, claimed.run_id))
        others = materials.other_models
        needed = LEAST_FREE_BYTES + 4 * materials.base_model.size() + 2 * sum(files.size() for files in others.values())
        if free < needed:
            raise OSError(f"only {free >> 20} MiB of disk are free here, and the run needs {needed >> 20}")
        base = self._lay_out_model(materials.base_model, "base")
        resume, step = self._resume()
        launch = Launch(
            spec=materials.spec,
            run_id=claimed.run_id,
            attempt=claimed.attempt,
            folder=self.folder,
            base_model=base.folder,
            adapter_base=base.adapter_base,
            models={model_id: self._lay_out_model(files, f"models/{model_id}") for model_id, files in others.items()},
            rows=materials.rows.resolve(),
            row_type=materials.row_type,
            resume_from=resume,
        )
        self._command = command(self._how.command, launch.spec.devices)
        path = self.folder / "spec.json"
        path.write_text(launch.model_dump_json(indent=1))
        self._insist(
            lambda session: leases.begin_attempt(session, claimed.run_id, claimed.fence, str(self.folder), step)
        )
        return path

    def _lay_out_model(self, files: leases.ModelFiles, name: str) -> ModelFolder:
        base = self.folder / f"{name}-base"
        return ModelFolder(
            folder=lay_out(self._artifacts, files.model, self.folder / name),
            adapter_base=lay_out(self._artifacts, files.adapter_base, base) if files.adapter_base is not None else None,
        )

    def _resume(self) -> tuple[Path | None, int]:
        claimed = self._claimed
        for saved in self._insist(lambda session: leases.saved_states(session, claimed.run_id)):
            folder = self.folder / "resume" / f"step-{saved.step}"
            try:
                return lay_out(self._artifacts, saved.manifest, folder), saved.step
            except (OSError, ValueError) as error:
                shutil.rmtree(folder, ignore_errors=True)
                why = str(error)
                self._insist(
                    lambda session, saved=saved, why=why: leases.checkpoint_is_damaged(  # type: ignore[misc]
                        session, claimed.run_id, claimed.fence, saved, why
                    )
                )
        return None, 0

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in _PASSED_ON}
        if device := self._how.devices.get(self._claimed.slot):
            kept["CUDA_VISIBLE_DEVICES"] = device
        else:
            kept["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
        return kept | {
            MARK: self.mark,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }

    def _start(self, spec: Path) -> "subprocess.Popen[bytes]":
        with (self.folder / "output.log").open("ab") as output:
            return subprocess.Popen(
                [*self._command, str(spec)],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=self._environment(),
                cwd=Path(__file__).resolve().parents[1],
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )

    def _end(self, child: "subprocess.Popen[bytes]") -> None:
        """Kill the child's whole group, and whoever of its descendants left it."""
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
        sweep(self.mark)

    def _watch(self, child: "subprocess.Popen[bytes]") -> str | None:
        """Until the child ends; answers why it was made to, if it was: ``lost``, ``cancel``, ``drain``, ``stall`` or ``broken``."""
        why: str | None = None
        asked_at = 0.0
        asked = 0
        while child.poll() is None:
            time.sleep(0.05)
            now = time.monotonic()
            if self._lost.is_set():
                self._end(child)
                return "lost"
            if self._broken is not None:
                self._end(child)
                return "broken"
            if why is None:
                if self._cancel.is_set():
                    why = "cancel"
                elif self._how.drain is not None and self._how.drain.exists():
                    why = "drain"
                elif now - self._heard > self._how.stall_seconds:
                    self._end(child)
                    return "stall"
            if why is None:
                continue
            grace = self._how.cancel_grace_seconds if why == "cancel" else self._how.drain_grace_seconds
            if asked == 0:  # end the step, save, leave
                child.send_signal(signal.SIGTERM)
                asked, asked_at = 1, now
            elif asked == 1 and now - asked_at > grace * 0.8:
                self._signal_group(child, signal.SIGTERM)
                asked = 2
            elif asked == 2 and now - asked_at > grace:
                self._end(child)
        return why

    @staticmethod
    def _signal_group(child: "subprocess.Popen[bytes]", sig: int) -> None:
        try:
            os.killpg(child.pid, sig)
        except ProcessLookupError:
            pass

    def run(self) -> str:
        """Carry the run out; answers how the attempt ended (for the worker's log)."""
        claimed = self._claimed
        keeper = threading.Thread(target=self._keep_lease, name=f"lease-{claimed.run_id}", daemon=True)
        keeper.start()
        try:
            return self._run()
        except _Stopped:
            return "lost"
        finally:
            self._told.set()
            keeper.join(1)

    def _run(self) -> str:
        try:
            spec = self._prepare()
        except (OSError, ValueError) as error:
            return self._conclude(Ending("lost", f"The run's folder could not be prepared: {error}"))
        if self._cancel.is_set():
            return self._conclude(Ending("cancelled"))
        child = self._start(spec)
        follower = threading.Thread(target=self._follow, name=f"follow-{claimed_name(self._claimed)}", daemon=True)
        self._heard = time.monotonic()
        follower.start()
        try:
            why = self._watch(child)
        finally:
            self._end(child)
            self._over.set()
        follower.join()
        if why == "lost" or self._lost.is_set():
            return "lost"
        return self._conclude(self._ending(child.returncode, why))

    def _ending(self, code: int, why: str | None) -> Ending:
        finished, failed = self._finished, self._failed
        if self._broken is not None:
            return Ending("lost", self._broken)
        if code == 0 and finished is not None and finished.outcome == "completed":
            try:
                model = self._artifacts.put_folder(self.folder / finished.model) if finished.model else None
            except (OSError, ValueError) as error:
                return Ending("lost", f"The finished model could not be stored: {error}")
            return Ending("succeeded", step=finished.step, model=model)
        if why == "cancel" or self._cancel.is_set():
            return Ending("cancelled")
        if failed is not None or code == CANNOT_WORK:
            reason = failed.reason if failed else "The recipe says that this spec cannot work."
            return Ending("failed", reason, failed.remedy if failed else "Read the log.")
        if why == "drain" or (code == 0 and finished is not None):
            return Ending("drained", "The worker was stopped; the run goes on from its checkpoint.")
        if why == "stall":
            return Ending("lost", f"It said nothing for {self._how.stall_seconds:.0f} s and was killed.")
        return Ending("lost", f"The training process {_how_it_ended(code)}.{self._last_words()}")

    def _last_words(self) -> str:
        try:
            lines = (self.folder / "output.log").read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        launcher = (number for number, line in enumerate(lines) if _LAUNCHER.match(line))
        lines = lines[: next(launcher, len(lines))]  # torchrun repeats at length that a process of it failed
        return f" Its last words: {lines[-1][:300]}" if lines else ""

    def _conclude(self, ending: Ending) -> str:
        claimed = self._claimed

        def work(session: Session) -> None:
            leases.conclude(session, claimed.run_id, claimed.fence, ending, pause_seconds=self._how.pause_seconds)

        try:
            self._insist(work)
        except _Stopped:
            raise
        except leases.LeaseLost:
            return "lost"
        except Exception as error:  # the finished model was refused: say why, once
            log.exception("run %s could not be concluded as %s", claimed.run_id, ending.kind)
            reason = f"The run ended, but its model was not taken: {error}"
            self._insist(
                lambda session: leases.conclude(
                    session,
                    claimed.run_id,
                    claimed.fence,
                    Ending("failed", reason),
                    pause_seconds=self._how.pause_seconds,
                )
            )
            return "failed"
        for name in ("base", "base-base", "models", "merged", "resume"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return ending.kind


def claimed_name(claimed: Claimed) -> str:
    """``17.2``: run and attempt."""
    return f"{claimed.run_id}.{claimed.attempt}"


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (often: the machine ran out of memory)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def execute_next(sessions: Sessions, worker: str, how: Supervision) -> str | None:
    """Claim the next run and carry it out, in this process's main thread; ``None`` if there was none to claim."""
    if how.drain is not None and how.drain.exists():
        return None
    with unit_of_work(sessions) as session:
        claimed = leases.claim(session, worker, place(), how.lease_seconds)
    if claimed is None:
        return None
    log.info("run %s, attempt %s begins", claimed.run_id, claimed.attempt)
    ending = Attempt(sessions, claimed, how).run()
    log.info("run %s, attempt %s: %s", claimed.run_id, claimed.attempt, ending)
    return ending


def bury_dead(sessions: Sessions, worker: str, *, pause_seconds: float) -> int:
    """Give up what *worker* holds through processes of this machine that are gone, and kill what they left behind."""
    with unit_of_work(sessions) as session:
        held = leases.places_held(session, worker)
    buried = 0
    for run_id, fence, where in held:
        if is_gone(where):
            sweep(mark_of(sessions, run_id, fence))
            with unit_of_work(sessions) as session:
                leases.give_up(session, run_id, fence, "Its worker process ended.", pause_seconds=pause_seconds)
            buried += 1
    return buried
