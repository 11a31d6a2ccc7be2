"""The sandbox on HumanEval's and MBPP's reference solutions: ``python -m tests.benchmarks.sandbox <HumanEval.jsonl[.gz]> <mbpp.jsonl>``.

For each tier that works here: how many reference solutions pass (the others by name and why), how many answers that are wrong on purpose
pass (each task is given another task's program under its own names), programs per second, and what is left running.
"""

import ast
import gzip
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from worker.sandbox import Sandbox, SandboxUnavailable, Tests, Verdict, read_tests
from worker.sandbox.cage import TIERS
from worker.sandbox.cases import Check


class Task(NamedTuple):
    name: str
    program: str
    tests: Tests


def lines(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def humaneval(path: Path) -> list[Task]:
    return [
        Task(
            row["task_id"],
            row["prompt"] + row["canonical_solution"],
            read_tests(row["test"], entry_point=row["entry_point"], prelude=row["prompt"]),
        )
        for row in lines(path)
    ]


def mbpp(path: Path) -> list[Task]:
    return [
        Task(
            f"MBPP/{row['task_id']}",
            row["code"].replace("\r\n", "\n"),
            read_tests(row["test_list"] + row["challenge_test_list"], prelude=row["test_setup_code"]),
        )
        for row in lines(path)
    ]


def functions(program: str) -> list[str]:
    return [node.name for node in ast.parse(program).body if isinstance(node, ast.FunctionDef)]


def swapped(tasks: list[Task]) -> list[tuple[str, Tests]]:
    """Every task with the next one's program, its last function under the name that is asked for."""
    work = []
    for task, other in zip(tasks, [*tasks[1:], tasks[0]], strict=True):
        wanted, given = functions(task.program), functions(other.program)
        work.append((f"{other.program}\n\n{wanted[-1]} = {given[-1]}\n" if wanted and given else "pass", task.tests))
    return work


def left_running(user: int) -> int:
    """Processes of the sandbox's user; only meaningful if that user runs nothing else."""
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                count += FIRST <= entry.stat().st_uid < FIRST + 256 if os.geteuid() == 0 else _is_ours(entry.name)
            except OSError:
                continue
    return count


FIRST = 60600


def _is_ours(pid: str) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"bwrap" in words or b"worker.sandbox" in words or b"What runs inside the sandbox" in words


def timed(sandbox: Sandbox, work: list[tuple[str, Tests]]) -> tuple[list[Verdict], float]:
    began = time.monotonic()
    verdicts = sandbox.grade_all(work, seconds=10)
    return verdicts, time.monotonic() - began


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        sys.exit("usage: python -m tests.benchmarks.sandbox <HumanEval.jsonl[.gz]> <mbpp.jsonl>")
    sets = {"HumanEval": humaneval(Path(arguments[0])), "MBPP": mbpp(Path(arguments[1]))}
    for tier in TIERS:
        try:
            sandbox = Sandbox.open([tier], size=len(os.sched_getaffinity(0)))
        except SandboxUnavailable as error:
            print(f"{tier}: {error}")
            continue
        with sandbox:
            print(sandbox.report.line)
            for name, tasks in sets.items():
                second = sum(isinstance(task.tests, Check) for task in tasks)
                verdicts, seconds = timed(sandbox, [(task.program, task.tests) for task in tasks])
                passed = sum(verdict.kind == "ok" for verdict in verdicts)
                print(
                    f"{tier}: {name}: {passed} of {len(tasks)} pass ({second} of them need a second sandbox for their tests); "
                    f"{len(tasks) / seconds:.0f} programs/s"
                )
                for task, verdict in zip(tasks, verdicts, strict=True):
                    if verdict.kind != "ok":
                        print(f"    {task.name}: {verdict}")
                verdicts, seconds = timed(sandbox, swapped(tasks))
                kinds = {kind: [v.kind for v in verdicts].count(kind) for kind in sorted({v.kind for v in verdicts})}
                print(f"{tier}: {name} with the next task's program: {kinds}; {len(tasks) / seconds:.0f} programs/s")
                print("    paid:", *[t.name for t, v in zip(tasks, verdicts, strict=True) if v.kind == "ok"])
            tests = read_tests([{"call": "f", "args": [1], "expected": 2}])
            times = []
            for _ in range(100):
                began = time.monotonic()
                sandbox.grade("def f(x):\n    return x + 1", tests)
                times.append(1000 * (time.monotonic() - began))
            print(
                f"{tier}: one program at a time: median {statistics.median(times):.1f} ms, p95 {sorted(times)[94]:.1f} ms"
            )
        time.sleep(0.05)
        print(f"{tier}: {left_running(sandbox.report.user)} processes left 50 ms after closing")


if __name__ == "__main__":
    main(sys.argv[1:])
