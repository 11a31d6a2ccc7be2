"""Runs programs that a model wrote, and says whether they pass tests. Standard library only; no Docker.

    tests = read_tests('[{"call": "add", "args": [1, 2], "expected": 3}]')
    with Sandbox.open() as sandbox:
        sandbox.grade("def add(a, b): return a + b", tests)       # Verdict(kind="ok", passed=1, total=1)

From the outside in:

    recipe       holds tests and expected values; compares what comes back                         pool, protocol, cases
    slot         a small process, an ordinary user, no secrets; one program after another          slot
    cage         tier 1: bubblewrap's namespaces; tier 2: landlock. Around both the same filter    cage, bubblewrap, landlock,
                 of system calls and the same limits; no new processes, so nothing can be left     seccomp, limits
    inside       a bare Python without packages; answers as data over a private pipe               inside, interpreter

:meth:`Sandbox.open` takes the best tier that works, attacks it (:mod:`worker.sandbox.selftest`), and refuses to run programs
where none works or one does not hold. The tier never changes while a sandbox is open.

What is not promised: the kernel itself is shared (a hole in it is a way out; for strangers' models use a machine of its own), processor
time is bounded per program and not for all together, and tier 2 lets a program see that a path exists.
"""

from collections.abc import Iterable
from typing import Self

from worker.sandbox.cage import TIERS, Tier
from worker.sandbox.cases import Tests, TestsUnreadable, read_tests
from worker.sandbox.limits import Limits
from worker.sandbox.pool import Kind, Pool, SandboxUnavailable, Verdict
from worker.sandbox.selftest import Report, open_pool

__all__ = [
    "Kind",
    "Limits",
    "Report",
    "Sandbox",
    "SandboxUnavailable",
    "Tests",
    "TestsUnreadable",
    "Verdict",
    "read_tests",
]


class Sandbox:
    """A tried sandbox and its processes. One per recipe; safe to use from several threads."""

    def __init__(self, pool: Pool, report: Report) -> None:
        self._pool, self.report = pool, report
        self.grade, self.grade_all, self.close = pool.grade, pool.grade_all, pool.close

    @classmethod
    def open(cls, tiers: Iterable[Tier] = TIERS, *, size: int | None = None, limits: Limits | None = None) -> Self:
        """The best of *tiers* that works here and holds. Raises :class:`SandboxUnavailable`."""
        return cls(*open_pool(tiers, size=size, limits=limits))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
