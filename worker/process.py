"""One run, one child process: prepare its folder, start it, follow what it says, relay cancel and drain, end it with its run.

Three threads: the main one owns the child (the kernel's parent-death signal is tied to the thread that started it) and
decides; one keeps the lease; one carries the event file to the database. A database that does not answer stops neither
the child nor the supervisor: the file waits. A database that *answers* that the fence is not ours stops both at once.

Checkpoints go into the content-addressed artifact store, not by reference to this machine's disk, so that any other
machine can resume. The recipe's manifest is checked by the hash that the store computes anyway: one pass over the bytes.
"""

import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.orm import Session

import backend.schema  # noqa: F401  # a run's keys lead to tables of every part, and all must be known
from backend.artifacts import Artifacts, FileEntry, Manifest, sha256_of
from backend.db import Sessions, unit_of_work
from backend.embedded import dies_with_parent
from backend.runs import attempts, leases
from backend.runs.leases import Claimed, Ending
from backend.runs.specs import Launch, ModelFolder
from worker.devices import command
from worker.places import MARK, is_gone, mark_of, place, sweep
from worker.recording import Recorder, Stopped
from worker.supervision import Supervision

log = logging.getLogger(__name__)
CANNOT_WORK = 78
"""Exit code of a recipe whose spec cannot work: another attempt would fail like this one."""
LEAST_FREE_BYTES = 512 << 20
_LAUNCHER = re.compile(r"[WE]\d{4} .*torch/distributed/")
"""How a line of torchrun's begins."""
_PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "PYTHONPATH",
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "HF_HOME",
    "HSA_OVERRIDE_GFX_VERSION", "ROCR_VISIBLE_DEVICES",
)  # fmt: skip


def lay_out(artifacts: Artifacts, manifest: Manifest, folder: Path) -> Path:
    """Rebuild a stored folder and check every byte of it. Raises ``OSError`` or ``ValueError`` if one is wrong."""
    artifacts.checkout(manifest, folder)
    for entry in manifest:
        if sha256_of(folder / entry.name) != entry.sha256:
            raise ValueError(f"{entry.name} is damaged")
    return folder


class Attempt(Recorder):
    """A claimed run in the hands of this process, from its folder to its end."""

    def __init__(self, sessions: Sessions, claimed: Claimed, how: Supervision) -> None:
        super().__init__(sessions, claimed, how)
        self.mark = mark_of(sessions, claimed.run_id, claimed.fence)
        self._command: Sequence[str] = how.command

    def _prepare(self) -> Path:
        """Lay model, rows and checkpoint into the attempt's folder; answers the path of ``spec.json``."""
        claimed = self._claimed
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        free = shutil.disk_usage(self.folder).free
        materials = self._insist(lambda session: attempts.materials(session, claimed.run_id))
        others = materials.other_models
        needed = LEAST_FREE_BYTES + 4 * materials.base_model.size() + 2 * sum(files.size() for files in others.values())
        if free < needed:
            raise OSError(f"only {free >> 20} MiB of disk are free here, and the run needs {needed >> 20}")
        laid: dict[tuple[FileEntry, ...], Path] = {}
        base = self._lay_out_model(materials.base_model, "base", laid)
        resume, step = self._resume()
        launch = Launch(
            spec=materials.spec,
            run_id=claimed.run_id,
            attempt=claimed.attempt,
            folder=self.folder,
            base_model=base.folder,
            adapter_base=base.adapter_base,
            models={
                model_id: self._lay_out_model(files, f"models/{model_id}", laid) for model_id, files in others.items()
            },
            rows=materials.rows.resolve(),
            row_type=materials.row_type,
            resume_from=resume,
        )
        self._command = command(self._how.command, launch.spec.devices)
        path = self.folder / "spec.json"
        path.write_text(launch.model_dump_json(indent=1))
        self._insist(lambda session: attempts.begin(session, claimed.run_id, claimed.fence, str(self.folder), step))
        return path

    def _lay_out_model(
        self, files: attempts.ModelFiles, name: str, laid: dict[tuple[FileEntry, ...], Path]
    ) -> ModelFolder:
        """*laid*: whole weights of the same files lie in one folder, by which a recipe knows that two roles stand on them."""

        def whole(manifest: Manifest, where: str) -> Path:
            files = tuple(manifest)
            if files not in laid:
                laid[files] = lay_out(self._artifacts, manifest, self.folder / where)
            return laid[files]

        if files.adapter_base is None:
            return ModelFolder(folder=whole(files.model, name))
        adapter = lay_out(self._artifacts, files.model, self.folder / name)
        return ModelFolder(folder=adapter, adapter_base=whole(files.adapter_base, f"{name}-base"))

    def _resume(self) -> tuple[Path | None, int]:
        claimed = self._claimed
        for saved in self._insist(lambda session: attempts.saved_states(session, claimed.run_id)):
            folder = self.folder / "resume" / f"step-{saved.step}"
            try:
                return lay_out(self._artifacts, saved.manifest, folder), saved.step
            except (OSError, ValueError) as error:
                shutil.rmtree(folder, ignore_errors=True)
                why = str(error)
                self._insist(
                    lambda session, saved=saved, why=why: attempts.checkpoint_is_damaged(  # type: ignore[misc]
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
            "TQDM_DISABLE": "1",  # bars of libraries are no lines for a log
            "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
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
        except Stopped:
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
        except Stopped:
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
