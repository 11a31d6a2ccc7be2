r"""Whether an answer is mathematically the row's: 1/2 and 0.5, sets, intervals, matrices, by math-verify.

Where the answer is, is decided here; the rest happens in :mod:`worker.rewards.equivalence`, a process that the kernel
ends when a comparison takes too long. Such a comparison has no answer, so the rollout is unscored.

Bare LaTeX in a sentence is read badly (of ``the answer is 3\sqrt{13}`` math-verify reads 3), so what was located is
handed over as a formula; only in the whole completion does math-verify search, and there answers belong into ``\boxed{}``.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from backend.runs.specs.rewards import MathAnswer
from worker.report import SpecCannotWork
from worker.rewards import answers
from worker.rewards.rollouts import Rollout, Row, Score, Scorer, refuse

_SERVER = Path(__file__).with_name("equivalence.py")
_ENVIRONMENT = re.compile(r"(?<!\\)\$|\\\(|\\\[|\\boxed|\\begin\{(?:equation|align|math|displaymath)")
_DOLLAR = re.compile(r"(?<!\\)\$")
_PROSE = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|[A-Za-z]+:)")
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "min", "max", "gcd", "lcm", "mod"}
)


def formula(text: str) -> str:
    """*text* as math-verify reads a formula: as it is if it marks its mathematics itself, else between dollars."""
    if len(_DOLLAR.findall(text)) == 1:  # an amount of money
        text = _DOLLAR.sub("", text)
    return text if _ENVIRONMENT.search(text) else f"${text}$"


def reference(content: object) -> str | None:
    r"""The row's answer: in the last ``\boxed{}``; of several lines, after the last marker; or all of it."""
    text = "" if content is None or isinstance(content, bool) else str(content).strip()
    marked = answers.locate(text, "after_marker") if "\n" in text else None
    text = answers.locate(text, "boxed") or marked or text
    return formula(text) if text else None


def statement(completion: str, spec: MathAnswer) -> str | None:
    """What of *completion* is compared."""
    found = answers.locate(completion, spec.answer)
    if found is None:
        return None
    if spec.answer != "whole":
        return formula(found)
    words = [word for word in _PROSE.findall(found) if word not in _FUNCTIONS]
    return found if words or "\n" in found else formula(found)


class Mathematics(Scorer):
    """1 if the answer is mathematically the row's, 0 if not."""

    at_once = 256

    def __init__(self, spec: MathAnswer) -> None:
        self.spec = spec
        self._judges = Judges()

    def check(self, rows: Sequence[Row], field: str) -> None:
        """Every row's answer reads as mathematics."""
        golds = [reference(row.get(self.spec.column)) for row in rows]
        distinct = sorted({gold for gold in golds if gold is not None})
        readable = dict(zip(distinct, self._judges.ask([["read", gold] for gold in distinct]), strict=True))
        refuse(
            rows,
            {
                i: "it is empty" if gold is None else repr(rows[i].get(self.spec.column))
                for i, gold in enumerate(golds)
                if gold is None or not readable[gold]
            },
            what=f"have no answer in {self.spec.column!r} that reads as mathematics",
            remedy="Name the column with the answers; for words use an exact answer instead.",
            field=f"{field}.column",
        )

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """All of them, spread over the processes; the same pair is compared once."""
        pairs = [
            (reference(rollout.row.get(self.spec.column)), statement(rollout.completion, self.spec))
            for rollout in rollouts
        ]
        asked = sorted({(gold, answer) for gold, answer in pairs if gold is not None and answer is not None})
        verdicts = dict(zip(asked, self._judges.ask([["same", *pair] for pair in asked]), strict=True))
        scores: list[Score] = []
        for rollout, (gold, answer) in zip(rollouts, pairs, strict=True):
            if gold is None:
                scores.append(None)
            elif rollout.completion.strip() == str(rollout.row[self.spec.column]).strip():
                scores.append(1.0)  # also where only people can read it
            elif answer is None:
                scores.append(0.0)
            else:
                verdict = verdicts[gold, answer]
                scores.append(None if verdict is None else float(verdict))
        return scores

    def close(self) -> None:
        """End the processes."""
        self._judges.close()


class Judges:
    """Processes that compare, started when they are first asked."""

    def __init__(self, seconds: float = 5, megabytes: int = 2048, processes: int = 0) -> None:
        """*seconds* of processor time and *megabytes* of address space for each comparison."""
        self._arguments = [str(seconds), str(megabytes)]
        self._count = processes or max(1, min(8, (os.cpu_count() or 2) - 1))
        self._idle: SimpleQueue[subprocess.Popen[str] | None] = SimpleQueue()
        for _ in range(self._count):
            self._idle.put(None)

    def ask(self, jobs: Sequence[Sequence[str]]) -> list[bool | None]:
        """An answer to each job, ``None`` where it took too long or broke. Raises :class:`SpecCannotWork`."""
        with ThreadPoolExecutor(self._count) as threads:
            return list(threads.map(self._one, jobs))

    def _one(self, job: Sequence[str]) -> bool | None:
        judge = self._idle.get()
        try:
            judge = judge or self._start()
            verdict = _verdict(judge, job)
        except (OSError, ValueError):  # its time was over: the kernel has ended it
            verdict = None
            if judge is not None:
                _end(judge)
                judge = None
        finally:
            self._idle.put(judge)
        return verdict

    def _start(self) -> subprocess.Popen[str]:
        judge = subprocess.Popen(
            [sys.executable, "-P", str(_SERVER), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},  # SymPy's order follows the seed
        )
        assert judge.stdout is not None
        if judge.stdout.readline() != "ready\n":
            _end(judge)
            raise SpecCannotWork(
                "math-verify does not start on this worker",
                remedy="Install the worker's dependencies, or compare answers as numbers or texts.",
                field="rewards.components",
            )
        return judge

    def close(self) -> None:
        """End all of them."""
        for _ in range(self._count):
            if (judge := self._idle.get()) is not None:
                _end(judge)
            self._idle.put(None)


def _verdict(judge: subprocess.Popen[str], job: Sequence[str]) -> bool | None:
    """Its answer. Raises ``OSError`` or ``ValueError`` if it ended instead."""
    assert judge.stdin is not None
    assert judge.stdout is not None
    judge.stdin.write(json.dumps(job) + "\n")
    judge.stdin.flush()
    verdict: bool | None = json.loads(judge.stdout.readline())
    return verdict


def _end(judge: subprocess.Popen[str]) -> None:
    judge.kill()
    judge.communicate()
