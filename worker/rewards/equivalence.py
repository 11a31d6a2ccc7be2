"""The process that asks math-verify whether two answers are the same: run as a file, a JSON line in, a JSON line out.

    ["read", text]            → true if text reads as mathematics
    ["same", gold, answer]    → true, false, or null if the comparison broke

It is a process of its own because a policy's LaTeX can keep SymPy busy for years or fill the memory (5^5^5^5^5), and
math-verify's own limit neither works off the main thread nor breaks into long arithmetic. Here the kernel ends the process
when a job has used its time, and a limit on the address space turns the rest into ``MemoryError``. Nothing of the project
is imported.
"""

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any

WALL_SECONDS = 60
"""Against what waits instead of computing."""


@lru_cache(maxsize=4096)
def read(text: str) -> list[Any]:
    """What *text* says, as SymPy has it and as text; empty if nothing in it is mathematics."""
    from math_verify import parse

    found: list[Any] = parse(text, parsing_timeout=None)
    return found


def same(gold: str, answer: str) -> bool | None:
    """Whether any reading of *answer* equals any reading of *gold*; ``None`` if none does and a comparison broke."""
    from math_verify import verify

    broke = False
    for expected, found in product(read(gold), read(answer)):
        try:
            if verify([expected], [found], timeout_seconds=None, raise_on_error=True):
                return True
        except Exception:
            broke = True
    return None if broke else False


def serve(seconds: float, megabytes: int) -> None:
    """Answer line by line until the input ends or a job is too expensive."""
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    jobs: dict[str, Callable[..., object]] = {"read": lambda text: bool(read(text)), "same": same}
    jobs["read"]("$1$")  # the imports
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        name, *texts = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # processor time: a busy machine changes no verdict
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        try:
            reply = jobs[name](*texts)
        except (RecursionError, MemoryError):
            reply = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]))
