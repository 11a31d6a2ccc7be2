"""Whether a completion's program passes the row's hidden tests, run in the sandbox. Chen et al. 2021, arXiv:2107.03374.

Expected results stay outside; what goes in and comes back is :mod:`worker.sandbox`'s business. If the sandbox itself
fails, the rollout is unscored; whatever the program does (loops, eats memory, exits, prints a lot) is a failed test.

How often it fails is charted (``rewards/<name>/infra_error``) and watched over the last thousand programs: from 1 in 100 on the
run's log warns, from 1 in 10 on the attempt ends, because what is left to learn from is chosen by the machine's troubles.
The run is then tried again from its last checkpoint, after a pause, with a sandbox that is tried anew.
"""

import re
import textwrap
from collections import deque
from collections.abc import Iterable, Sequence

from backend.runs.specs.rewards import CodeTests
from worker.report import SpecCannotWork
from worker.rewards.rollouts import Rollout, Row, Score, Scorer, refuse
from worker.sandbox import Sandbox, SandboxUnavailable, Tests, TestsUnreadable, Verdict, read_tests

_FENCE = re.compile(r"[ \t]*(```|~~~)[ \t]*([\w+-]*)")
_PYTHON = frozenset({"", "python", "python3", "py"})
_FAILURES = ("wrong", "runtime_error", "timeout", "memory", "output_limit", "malformed", "infra_error")

_FEWEST, _WATCHED = 100, 1000
"""Programs of which a share is said at the earliest, and the last ones that it is of."""
_ODD, _BROKEN = 0.01, 0.1
"""Shares of them that the sandbox failed, from which on it is said, and from which on the attempt ends."""


class SandboxBroken(Exception):
    """The machine fails too many programs. No fault of the spec: the run is tried again from its last checkpoint."""


class Watch:
    """How often the sandbox failed lately."""

    def __init__(self) -> None:
        self._failed = deque[bool](maxlen=_WATCHED)
        self._why, self._said = "", False

    def look(self, verdicts: Iterable[Verdict]) -> None:
        """Take note of *verdicts*. Raises :class:`SandboxBroken`."""
        for verdict in verdicts:
            self._failed.append(not verdict.scored)
            self._why = self._why if verdict.scored else verdict.detail
        if self._share() >= _BROKEN:
            raise SandboxBroken(
                f"{self._sentence()} Give the machine more memory or fewer runs at once, look at its log, restart the worker."
            )

    def warnings(self) -> list[str]:
        """One sentence, once, if there is reason for it."""
        if self._said or self._share() < _ODD:
            return []
        self._said = True
        return [f"{self._sentence()} Their completions are not scored. From one in ten on the run is broken off."]

    def _share(self) -> float:
        return sum(self._failed) / len(self._failed) if len(self._failed) >= _FEWEST else 0.0

    def _sentence(self) -> str:
        failed, seen = sum(self._failed), len(self._failed)
        return f"Of the last {seen} programs {failed} were not graded, through no fault of their own (the last: {self._why})."


def program(rollout: Rollout) -> str:
    """The last closed fenced block in Python; else all of the completion, after a plain prompt that it continues.

    It continues the prompt if its first line is indented: the body of a function that the prompt began.
    """
    if (block := _last_block(rollout.completion)) is not None:
        return textwrap.dedent(block)
    first = next((line for line in rollout.completion.splitlines() if line.strip()), "")
    continues = isinstance(rollout.prompt, str) and first[:1] in (" ", "\t")
    return f"{rollout.prompt}{rollout.completion}" if continues else rollout.completion


def _last_block(text: str) -> str | None:
    """The code in the last fenced block that is closed and Python's, or no language's."""
    last, opened, code = None, None, list[str]()
    for line in text.splitlines(keepends=True):
        if opened is not None and line.strip() == opened[1]:
            last = "".join(code) if opened[2].lower() in _PYTHON else last
            opened = None
        elif opened is None:
            opened, code = _FENCE.match(line), []
        else:
            code.append(line)
    return last


class Programs(Scorer):
    """Share of passed tests, or 1 only if all pass."""

    at_once = 64

    def __init__(self, spec: CodeTests, field: str) -> None:
        self.spec = spec
        self._last: list[Verdict | None] = []
        self._watch = Watch()
        try:
            self._sandbox = Sandbox.open()
        except SandboxUnavailable as error:
            raise SpecCannotWork(str(error), remedy=error.remedy, field=field) from error

    def check(self, rows: Sequence[Row], field: str) -> None:
        """Every row has tests that can be read."""
        problems = {}
        for i, row in enumerate(rows):
            try:
                self._tests(row)
            except TestsUnreadable as error:
                problems[i] = str(error)
        refuse(
            rows,
            problems,
            what=f"have tests in {self.spec.column!r} that cannot be read",
            remedy="Use a JSON list of calls with expected results, or Python assertions, and leave other rows out.",
            field=f"{field}.column",
        )

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """All of them, spread over the sandbox's slots; the same program runs on the same tests once.

        Raises :class:`SandboxBroken` if the machine fails too many of them.
        """
        jobs: dict[tuple[str, ...], tuple[str, Tests]] = {}
        keys: list[tuple[str, ...] | None] = []
        for rollout in rollouts:
            key = (program(rollout), repr(rollout.row.get(self.spec.column)), self._setup(rollout.row))
            try:
                jobs.setdefault(key, (key[0], self._tests(rollout.row)))
                keys.append(key)
            except TestsUnreadable:
                keys.append(None)
        graded = self._sandbox.grade_all(list(jobs.values()), seconds=self.spec.seconds)
        self._watch.look(graded)
        verdicts = dict(zip(jobs, graded, strict=True))
        self._last = [None if key is None else verdicts[key] for key in keys]
        return [self._score(verdict) for verdict in self._last]

    def _score(self, verdict: Verdict | None) -> Score:
        if verdict is None or not verdict.scored:
            return None
        return float(verdict.kind == "ok") if self.spec.all_or_nothing else verdict.passed / verdict.total

    def _tests(self, row: Row) -> Tests:
        return read_tests(row.get(self.spec.column), prelude=self._setup(row))

    def _setup(self, row: Row) -> str:
        """Most rows of a dataset that has the column have nothing there."""
        return str(row.get(self.spec.setup) or "") if self.spec.setup else ""

    def extras(self) -> dict[str, list[Score]]:
        """How programs failed: 1 under the kind of failure, 0 under the others."""
        return {
            kind: [None if verdict is None else float(verdict.kind == kind) for verdict in self._last]
            for kind in _FAILURES
        }

    def notes(self) -> list[str]:
        """Which sandbox protects this machine, and that it was tried."""
        return [self._sandbox.report.line]

    def warnings(self) -> list[str]:
        """That the machine fails programs."""
        return self._watch.warnings()

    def close(self) -> None:
        """End the sandbox."""
        self._sandbox.close()
