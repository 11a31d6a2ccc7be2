"""The sandbox as recipes use it: a few small processes, programs and tests in, verdicts out.

Expected values stay in this process. Nothing that a program does can make its verdict an ``infra_error``: that word is kept
for what the machine did, before the program's first line ran or by losing the process beside us; it is tried three times.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from worker.sandbox.cage import TIERS, Tier
from worker.sandbox.cases import Calls, Check, Dialogs, Tests
from worker.sandbox.limits import PATIENCE, Limits
from worker.sandbox.protocol import Malformed, OutOfMemory, Raised, Thing, call, decode, equal

Kind = Literal["ok", "wrong", "runtime_error", "timeout", "memory", "output_limit", "malformed", "infra_error"]
TRIES = 3
ANSWER_SECONDS = 60.0
"""A process beside us that says nothing for so much longer than the program may run is replaced."""

ROOT = Path(__file__).resolve().parents[2]
REMEDY = (
    "Install bubblewrap (apt install bubblewrap) and allow user namespaces to it: on Ubuntu 24.04 give /usr/bin/bwrap an AppArmor "
    "profile with `userns,`, or sysctl kernel.apparmor_restrict_unprivileged_userns=0; in Docker run with "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined (or a profile that allows unshare and mount). Or run a "
    "kernel with landlock (5.13 or later, `landlock` in /sys/kernel/security/lsm): that needs no installation. A Python that "
    "every user may run must be there (apt install python3)."
)


class SandboxUnavailable(Exception):
    """No tier works on this machine: programs are not run at all."""

    def __init__(self, reason: str, remedy: str = REMEDY) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Verdict(NamedTuple):
    """What came of one program."""

    kind: Kind
    """The worst thing that happened; ``ok`` if every test passed."""
    passed: int
    total: int
    detail: str = ""
    """A few words for people, never more than 300 characters."""

    @property
    def scored(self) -> bool:
        """Whether this says anything about the program."""
        return self.kind != "infra_error"


class SlotLost(Exception):
    """The process beside us is gone or mute."""


class Slot:
    """The process beside us, from here."""

    def __init__(self, number: int) -> None:
        command = [sys.executable, "-S", "-m", "worker.sandbox.slot", str(number)]
        # Nothing of our environment: it may hold keys. Started without a hook, so that Python may use vfork.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env={"PATH": "/usr/bin:/usr/local/bin:/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.id = self._process.pid

    def send(self, message: dict[str, Any]) -> None:
        """Hand over a line. Raises :class:`SlotLost`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise SlotLost(str(error)) from None

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Hand over a line and wait for its answer. Raises :class:`SlotLost`."""
        assert self._process.stdout is not None
        watch = threading.Timer(PATIENCE * seconds + ANSWER_SECONDS, self._process.kill)
        watch.start()
        try:
            self.send(message)
            line = self._process.stdout.readline()
        except OSError as error:
            raise SlotLost(str(error)) from None
        finally:
            watch.cancel()
        if not line.endswith(b"\n"):
            raise SlotLost("the process beside the recipe ended")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def end(self) -> None:
        """Close it: its end of the pipe tells it to take its program along."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def pool_size() -> int:
    """Cores less two, at least one: the trainer and the studio keep theirs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, cores - 2)


class Pool:
    """Grades programs, as many at once as there are processes beside us. Safe to use from several threads."""

    def __init__(self, survey: dict[str, Any], size: int, limits: Limits, first: Slot | None = None) -> None:
        self.survey, self.limits = survey, limits
        self.tier: Tier = survey["tier"]
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._slots: set[Slot] = set()
        self._numbers = 0
        for index in range(size):
            self._free.put(self._told(first) if first is not None and not index else None)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="sandbox")

    def _told(self, slot: Slot | None = None) -> Slot:
        with self._lock:
            self._numbers += 1
            number = self._numbers
        slot = slot or Slot(number)
        slot.send({"tier": self.tier, "interpreter": self.survey["interpreter"]})
        with self._lock:
            self._slots.add(slot)
        return slot

    def _do(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Run *job* in a free slot; the outcome of the last try."""
        outcome: dict[str, Any] = {"state": "infra", "detail": ""}
        slot = self._free.get()
        try:
            for _ in range(TRIES):
                try:
                    slot = slot or self._told()
                    outcome = slot.ask(job, seconds)
                except (SlotLost, OSError, ValueError) as error:
                    outcome = {"state": "infra", "detail": str(error)}
                    if slot is not None:
                        self._drop(slot)
                    slot = None
                if outcome["state"] != "infra":
                    break
        finally:
            self._free.put(slot)
        return outcome

    def _drop(self, slot: Slot) -> None:
        with self._lock:
            self._slots.discard(slot)
        slot.end()

    # --- verdicts --------------------------------------------------------------------------------------------------

    def grade_all(self, work: Iterable[tuple[str, Tests]], seconds: float = 4.0) -> list[Verdict]:
        """The verdict on each program, in order. *seconds*: the longest a program may run."""
        return list(self._threads.map(lambda pair: self.grade(*pair, seconds=seconds), list(work)))

    def grade(self, program: str, tests: Tests, *, seconds: float = 4.0) -> Verdict:
        """The verdict on one program."""
        limits = replace(self.limits, seconds=seconds)
        job: dict[str, Any] = {"program": program, "stdin": "", "lines": [], "limits": limits.plain()}
        match tests:
            case Calls(cases):
                lines = [call(case.name, case.args, case.kwargs) for case in cases]
                outcome = self._do({**job, "role": "serve", "lines": lines}, seconds)
                return _of_calls(tests, outcome)
            case Dialogs(cases):
                verdicts = []
                for case in cases:
                    outcome = self._do({**job, "role": "run", "stdin": case.stdin}, seconds)
                    verdicts.append(_of_dialog(case.stdout, outcome))
                    if verdicts[-1].kind in ("timeout", "infra_error"):
                        break  # each further run would take as long again
                return _together(verdicts, len(cases))
            case Check():
                check = {key: getattr(tests, key) for key in ("source", "prelude", "entry_point", "names", "modules")}
                return _of_check(tests, self._do({**job, "role": "check", "check": check}, seconds))

    def close(self) -> None:
        """End the processes beside us, and with them everything that runs."""
        self._threads.shutdown(cancel_futures=True)
        with self._lock:
            slots, self._slots = self._slots, set()
        for slot in slots:
            slot.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def survey(tiers: Iterable[Tier] = TIERS) -> tuple[dict[str, Any], Slot]:
    """What works here, and the process that found out. Raises :class:`SandboxUnavailable`."""
    slot = Slot(0)
    try:
        found = slot.ask({"survey": list(tiers)}, 120)
    except SlotLost as error:
        slot.end()
        raise SandboxUnavailable(f"the sandbox does not start: {error}") from None
    if "refused" in found:
        slot.end()
        raise SandboxUnavailable(
            f"programs are never run as root, and {found['refused']}", "Start the worker as an ordinary user."
        )
    if found["tier"] is None:
        slot.end()
        reasons = "; ".join(f"{tier}: {why}" for tier, why in found["reasons"].items())
        raise SandboxUnavailable(f"no sandbox works on {os.uname().nodename}: {reasons}")
    return found, slot


# --- outcomes to verdicts ------------------------------------------------------------------------------------------


def _words(text: str) -> str:
    """What a program said, fit to be stored and shown: a program may say anything."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return plain.encode("utf-8", "replace").decode()[:300].strip()


def _early(outcome: dict[str, Any], passed: int, total: int) -> Verdict | None:
    """The verdict if the outcome has one before its answers are looked at."""
    detail = _words(outcome.get("detail") or "")
    match outcome["state"]:
        case "infra":
            return Verdict("infra_error", 0, total, detail or "the sandbox did not start")
        case "timeout":
            return Verdict("timeout", passed, total, "ran too long")
        case "output_limit":
            return Verdict("output_limit", passed, total, "printed, answered or wrote too much")
        case "malformed":
            return Verdict("malformed", 0, total, "answered what was not asked")
    return None


def _how_it_began(outcome: dict[str, Any], total: int) -> Verdict | None:
    """The verdict if the program did not get as far as its first test."""
    answers = outcome["answers"]
    if not answers or answers[0] == '"ready"':
        return None
    try:
        said = decode(answers[0])
    except Malformed as error:
        return Verdict("malformed", 0, total, _words(str(error)))
    match said:
        case Raised(name, words):
            return Verdict("runtime_error", 0, total, _words(f"{name}: {words}"))
        case OutOfMemory():
            return Verdict("memory", 0, total, "ran out of memory")
        case _:
            return Verdict("malformed", 0, total, "not an answer")


def _of_calls(tests: Calls, outcome: dict[str, Any]) -> Verdict:
    total, passed = len(tests), 0
    if outcome["state"] == "infra":
        return _early(outcome, 0, total) or Verdict("infra_error", 0, total)
    if began := _how_it_began(outcome, total):
        return began
    worst: Kind = "ok"
    detail = ""
    rank: list[Kind] = ["ok", "runtime_error", "memory", "wrong"]
    for case, line in zip(tests.cases, outcome["answers"][1:], strict=False):
        try:
            got = decode(line)
        except Malformed as error:
            return Verdict("malformed", 0, total, _words(str(error)))
        if equal(got, case.expected, tolerance=case.tolerance, loose=case.loose):
            passed += 1
            continue
        kind, said = _what_is_wrong(case.name, got)
        if rank.index(kind) > rank.index(worst):
            worst, detail = kind, _words(said)
    if early := _early(outcome, passed, total):
        return early
    if len(outcome["answers"]) <= total:
        return Verdict("runtime_error", passed, total, _words(f"ended before it answered; {outcome['detail']}"))
    return Verdict(worst, passed, total, detail)


def _what_is_wrong(name: str, got: Any) -> tuple[Kind, str]:
    """How an answer that is not the expected one counts, in a word and in words."""
    match got:
        case Raised(error, words):
            return "runtime_error", f"{error}: {words}"
        case OutOfMemory():
            return "memory", "ran out of memory"
        case Thing(kind):
            return "wrong", f"{name}(…) returned a {kind}"
        case _:
            return "wrong", f"{name}(…) returned {_short(got)}"


def _short(value: Any) -> str:
    """The beginning of a value's text; a number with many digits has none in decimal."""
    try:
        return repr(value)[:80]
    except ValueError:
        return "a very large number"


def _of_dialog(expected: str, outcome: dict[str, Any]) -> Verdict:
    if early := _early(outcome, 0, 1):
        return early
    if outcome["code"]:
        last = outcome["detail"].strip().rpartition("\n")[2]
        kind: Kind = "memory" if last.startswith("MemoryError") else "runtime_error"
        return Verdict(kind, 0, 1, _words(last or f"ended with {outcome['code']}"))
    if _printed(outcome["stdout"]) == _printed(expected):
        return Verdict("ok", 1, 1)
    return Verdict("wrong", 0, 1, _words(f"printed {outcome['stdout'][:80]!r}"))


def _printed(text: str) -> list[str]:
    """Lines without spaces at their ends, without empty lines at the end."""
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _together(verdicts: list[Verdict], total: int) -> Verdict:
    """One verdict on several runs: unscored if one could not be run, else the first that is not ``ok``; all there are count."""
    passed = sum(verdict.passed for verdict in verdicts)
    if not verdicts[-1].scored:
        return verdicts[-1]._replace(passed=0, total=total)
    bad = next((verdict for verdict in verdicts if verdict.kind != "ok"), verdicts[0])
    return bad._replace(passed=passed, total=total)


def _of_check(tests: Check, outcome: dict[str, Any]) -> Verdict:
    total = len(tests)
    if outcome["state"] == "infra":
        return _early(outcome, 0, total) or Verdict("infra_error", 0, total)
    if began := _how_it_began(outcome, total):
        return began
    held: dict[int, bool] = {}
    why, done = "", None
    for line in outcome["told"]:
        said = json.loads(line)
        if "done" in said:
            done = str(said["done"])
        else:
            index = int(said["test"])
            held[index] = held.get(index, True) and bool(said["ok"])
            why = why or str(said.get("why", ""))
    passed = sum(held.values())
    if early := _early(outcome, passed, total):
        return early
    if passed == total:
        return Verdict("ok", passed, total)
    if "MemoryError" in why:
        return Verdict("memory", passed, total, "ran out of memory")
    if why:
        return Verdict("runtime_error", passed, total, _words(why))
    if done is None:
        return Verdict("infra_error", 0, total, _words(f"the tests ended by themselves: {outcome['detail']}"))
    if len(held) == total:
        return Verdict("wrong", passed, total, "an assertion does not hold")
    return Verdict("runtime_error", passed, total, _words(done))
