"""A small process beside the recipe that runs one program after another: ``python -S -m worker.sandbox.slot <number>``.

The recipe itself never forks (it holds models, threads and accelerators) and may be root; this process holds neither models nor
secrets nor expected values, becomes an ordinary user for good before it does anything, and ends when the recipe's end of
the pipe closes. One line of JSON in is one job, one line out its outcome.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from worker.sandbox import bubblewrap, landlock, seccomp
from worker.sandbox.cage import TIERS, Cage, Tier
from worker.sandbox.interpreter import Interpreter, find
from worker.sandbox.limits import PATIENCE, Limits

FIRST_USER = 60600
"""Root becomes this user or one of the next ones: numbers that nobody is given by a system."""
BEGIN_SECONDS = 20.0
"""Longest wait for an interpreter to stand; beyond it the machine is at fault, not the program."""
TICK_SECONDS = 0.025


class Abandoned(Exception):
    """The recipe is gone."""


def become_ordinary(number: int) -> None:
    """Give up root for good. Raises ``OSError`` where no other user can be had."""
    if os.geteuid() == 0:
        user = FIRST_USER + number % 256
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if 0 in (*os.getresuid(), *os.getresgid()):
        raise PermissionError("still root")


@dataclass
class Party:
    """A sandboxed process and what it said so far."""

    cage: Cage
    waiting: bytes = b""
    """What is still to be written to it."""
    close_when_written: bool = False
    begun: bool = False
    ended: bool = False
    """Its answers are over."""
    partial: bytes = b""
    answered: int = 0
    printed: int = 0
    output: dict[str, bytes] = field(default_factory=lambda: {"stdout": b"", "stderr": b""})

    def lines(self, data: bytes) -> list[str]:
        """Whole lines of answers in *data* and what came before it."""
        self.answered += len(data)
        *whole, self.partial = (self.partial + data).split(b"\n")
        return [line.decode("ascii", "replace") for line in whole]


class Job:
    """One program, and the tests beside it if they are a program too."""

    def __init__(self, tier: Tier, interpreter: Interpreter, job: dict[str, Any]) -> None:
        self.limits = Limits(**job["limits"])
        self.role: str = job["role"]
        self.asked = len(job["lines"])
        self.answers: list[str] = []
        self.told: list[str] = []
        """What the tests said."""
        self.selector = selectors.DefaultSelector()
        self.parties: list[Party] = []
        self.open_asks = 0
        try:
            program = self._start(tier, interpreter, stdin=self.role == "run")
            role = "serve" if self.role == "check" else self.role
            self._send(program, repr({"role": role, "text": job["program"], "limits": program.cage.limits_inside()}))
            for line in job["lines"]:
                self._send(program, line)
            program.close_when_written = self.role != "check"
            self.stdin = job["stdin"].encode("utf-8", "surrogatepass")
            if self.role == "run":
                self._watch_stdin(program)
            if self.role == "check":
                tests = self._start(tier, interpreter)
                self._send(tests, repr({**job["check"], "role": "check", "limits": tests.cage.limits_inside()}))
        except BaseException:
            self.close()
            raise

    def _start(self, tier: Tier, interpreter: Interpreter, *, stdin: bool = False) -> Party:
        party = Party(Cage(tier, interpreter, self.limits, stdin=stdin))
        self.parties.append(party)
        process = party.cage.process
        self.selector.register(party.cage.answers, selectors.EVENT_READ, (party, "answers"))
        for name in ("stdout", "stderr"):
            stream = getattr(process, name)
            os.set_blocking(stream.fileno(), False)
            self.selector.register(stream, selectors.EVENT_READ, (party, name))
        return party

    def _watch_stdin(self, program: Party) -> None:
        stream = program.cage.process.stdin
        assert stream is not None
        os.set_blocking(stream.fileno(), False)
        self.selector.register(stream, selectors.EVENT_WRITE, (program, "stdin"))

    def _send(self, party: Party, line: str) -> None:
        if party.cage.jobs < 0:
            return
        if not party.waiting:
            self.selector.register(party.cage.jobs, selectors.EVENT_WRITE, (party, "jobs"))
        party.waiting += line.encode("utf-8", "surrogatepass") + b"\n"

    def close(self) -> int:
        """End everything; how the program ended."""
        codes = [party.cage.close() for party in self.parties]
        self.selector.close()
        return codes[0] if codes else 0

    # --- what happens ----------------------------------------------------------------------------------------------

    def _write(self, party: Party) -> None:
        try:
            party.waiting = party.waiting[os.write(party.cage.jobs, party.waiting) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            party.waiting = b""
        if not party.waiting:
            self.selector.unregister(party.cage.jobs)
            if party.close_when_written:
                party.cage.no_more_jobs()

    def _last_word(self, party: Party) -> None:
        """Nothing more will be sent to *party*."""
        party.close_when_written = True
        if not party.waiting:
            party.cage.no_more_jobs()

    def _write_stdin(self, party: Party) -> None:
        stream = party.cage.process.stdin
        assert stream is not None
        with contextlib.suppress(BlockingIOError):
            try:
                self.stdin = self.stdin[os.write(stream.fileno(), self.stdin) :] if self.stdin else b""
            except BrokenPipeError:
                self.stdin = b""
            if not self.stdin:
                self.selector.unregister(stream)
                stream.close()

    def _answers(self, party: Party, data: bytes) -> str | None:
        """Take in what came over the private pipe; a word if that ends the job."""
        if not data:
            self.selector.unregister(party.cage.answers)
            party.ended = True
            if self.role == "check" and party is self.parties[0]:
                self._last_word(self.parties[1])  # the tests learn that the program is gone
                return None
            return "ended" if self.role == "check" else None
        for line in party.lines(data):
            if not party.begun:
                if line != '"begun"':
                    return "infra"
                party.begun = True
                party.cage.begun()
            elif party is self.parties[0]:
                self.answers.append(line)
                if self.role == "check" and len(self.answers) > 1:
                    if not self.open_asks:
                        return "malformed"
                    self.open_asks -= 1
                    self._send(self.parties[1], self.answers.pop())
                elif self.answers[0] != '"ready"':
                    return "ended"
            elif '"ask"' in line[:8]:
                self.open_asks += 1
                self._send(self.parties[0], json.loads(line)["ask"])
            else:
                self.told.append(line)
                if '"done"' in line[:9]:
                    return "ended"
        if party.answered > self.limits.answer_bytes:
            return "output_limit"
        return "ended" if self.role == "serve" and len(self.answers) > self.asked else None

    def _printed(self, party: Party, name: str, stream: Any, data: bytes) -> str | None:
        if not data:
            self.selector.unregister(stream)
            return None
        party.printed += len(data)
        if party is self.parties[0] and party.printed > self.limits.output_bytes:
            return "output_limit"
        kept = party.output[name] + data
        party.output[name] = kept if self.role == "run" and name == "stdout" else kept[-2000:]
        return None

    def _over(self) -> bool:
        """Whether nobody says anything any more."""
        return not any(key.data[1] in ("answers", "stdout", "stderr") for key in self.selector.get_map().values())

    def watch(self, recipe: int) -> str:
        """Until the job is done, or too long, or too loud: in which way."""
        self.selector.register(recipe, selectors.EVENT_READ, (None, "recipe"))
        started = look = time.monotonic()
        deadline, begun = started + BEGIN_SECONDS, False
        try:
            while True:
                now = time.monotonic()
                if now >= deadline:
                    if not begun:
                        return "infra"
                    deadline = self._later(started)
                    if now >= deadline:
                        return "timeout"
                for key, _ in self.selector.select(min(deadline - now, TICK_SECONDS if begun else 1.0)):
                    party, what = key.data
                    word = None
                    if what == "recipe":
                        raise Abandoned
                    if what == "jobs":
                        self._write(party)
                    elif what == "stdin":
                        self._write_stdin(party)
                    else:
                        try:
                            data = os.read(key.fd, 65536)
                        except BlockingIOError:
                            continue
                        if what == "answers":
                            word = self._answers(party, data)
                        else:
                            word = self._printed(party, what, key.fileobj, data)
                    if word:
                        return word
                if not begun and all(party.begun for party in self.parties):
                    begun, started = True, time.monotonic()
                    deadline = started + self.limits.seconds
                if begun and now - look > TICK_SECONDS:
                    look = now
                    if any(party.cage.too_much_written() for party in self.parties):
                        return "output_limit"
                if self._over() or (self.role == "serve" and self.parties[0].ended):
                    return self._left(deadline) if begun else "infra"
        finally:
            with contextlib.suppress(KeyError):
                self.selector.unregister(recipe)

    def _later(self, started: float) -> float:
        """The deadline on a busy machine: time that a program waited for a processor is not its own, up to a point."""
        starved = max(party.cage.starved() for party in self.parties)
        return started + self.limits.seconds + min(starved, (PATIENCE - 1) * self.limits.seconds)

    def _left(self, deadline: float) -> str:
        """All pipes are closed; the program itself may still be there."""
        try:
            self.parties[0].cage.process.wait(max(0.5, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "timeout"
        return "ended"


def carry_out(tier: Tier, interpreter: Interpreter, job: dict[str, Any], recipe: int) -> dict[str, Any]:
    """Run *job* and say what came of it."""
    began = time.monotonic()
    try:
        running = Job(tier, interpreter, job)
    except OSError as error:
        return {"state": "infra", "detail": f"{tier} does not start: {error}"}
    try:
        state = running.watch(recipe)
    except BaseException:
        running.close()
        raise
    code = running.close()
    program = running.parties[0]
    trouble = next((party for party in running.parties if not party.begun), program)
    return {
        "state": state,
        "answers": running.answers,
        "told": running.told,
        "stdout": program.output["stdout"].decode("utf-8", "replace"),
        "detail": trouble.output["stderr"].decode("utf-8", "replace")[-500:],
        "code": code,
        "seconds": time.monotonic() - began,
    }


def survey(wanted: list[Tier], recipe: int) -> dict[str, Any]:
    """The first of the *wanted* tiers that runs a program here, and why those before it did not."""
    reasons: dict[str, str] = {}
    facts = {"user": os.getuid(), "abi": landlock.abi(), "kernel": os.uname().release, "machine": os.uname().machine}
    if not seccomp.supported():
        why = f"the sandbox knows the system calls of {' and '.join(seccomp.MACHINES)} only, not of {facts['machine']}"
        return {**facts, "tier": None, "reasons": dict.fromkeys(wanted, why)}
    try:
        interpreter = find()
    except FileNotFoundError as error:
        return {**facts, "tier": None, "reasons": dict.fromkeys(wanted, str(error))}
    for tier in wanted:
        if tier == "bubblewrap" and bubblewrap.binary() is None:
            reasons[tier] = "bwrap is not installed"
        elif tier == "landlock" and not facts["abi"]:
            reasons[tier] = "landlock is missing in this kernel or switched off"
        else:
            job = {"role": "serve", "program": "def f(): return 1", "lines": ["('call', 'f', (), {})"], "stdin": ""}
            said = carry_out(tier, interpreter, {**job, "limits": Limits().plain()}, recipe)
            if said.get("answers") == ['"ready"', "1"]:
                return {**facts, "tier": tier, "reasons": reasons, "interpreter": interpreter.plain()}
            reasons[tier] = (said.get("detail") or "").strip() or f"the trial program did not answer ({said['state']})"
    return {**facts, "tier": None, "reasons": reasons}


def main(number: int) -> None:
    """Jobs from standard input until it closes."""
    jobs, outcomes = os.dup(0), os.dup(1)
    with open(os.devnull, "r+b") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    os.chdir("/")
    buffer = b""
    tier: Tier | None = None
    interpreter: Interpreter | None = None

    def answer(outcome: dict[str, Any]) -> None:
        line = json.dumps(outcome).encode() + b"\n"
        while line:
            line = line[os.write(outcomes, line) :]

    try:
        become_ordinary(number)
    except OSError as error:
        answer({"refused": f"root cannot become another user here ({error})"})
        return
    with contextlib.suppress(OSError):
        os.nice(5)  # the studio's pages come first, but a step of training waits for this
    while True:
        while b"\n" not in buffer:
            data = os.read(jobs, 1 << 20)
            if not data:
                return
            buffer += data
        line, _, buffer = buffer.partition(b"\n")
        job = json.loads(line)
        if "survey" in job:
            answer(survey([tier for tier in TIERS if tier in job["survey"]], jobs))
        elif "interpreter" in job:
            tier, interpreter = job["tier"], Interpreter.of(job["interpreter"])
        else:
            assert tier is not None
            assert interpreter is not None
            answer(carry_out(tier, interpreter, job, jobs))


if __name__ == "__main__":
    with contextlib.suppress(Abandoned, BrokenPipeError, KeyboardInterrupt):
        main(int(sys.argv[1]))
