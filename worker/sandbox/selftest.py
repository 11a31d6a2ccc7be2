"""Whether the sandbox holds on this machine: attacks must fail and honest programs must pass, at every start of a worker.

``python -m worker.sandbox`` prints the report as JSON.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker.sandbox.attacks import ATTACKS, HONEST, Attack
from worker.sandbox.cage import INSIDE, TIERS, Tier
from worker.sandbox.cases import Call, Calls
from worker.sandbox.limits import Limits
from worker.sandbox.pool import Pool, SandboxUnavailable, Verdict, pool_size, survey

ESCAPED = Calls((Call("attack", (), {}, "escaped"),))


@dataclass(frozen=True)
class Report:
    """What protects programs here, and that it was tried."""

    tier: Tier
    kernel: str
    abi: int
    """Of landlock; 0 where it is missing."""
    python: str
    """Version of the interpreter that programs run on."""
    user: int
    """The user that runs them; never root."""
    suite: str
    """Hash of the attacks and of what runs inside: two reports with the same one tried the same."""
    attacks: int
    """Attacks tried; all failed."""
    honest: int
    """Honest programs tried; all passed."""
    passed_over: dict[str, str]
    """Better tiers that do not work here, and why."""

    @property
    def line(self) -> str:
        """A sentence for the log of a run."""
        why = "".join(f" ({tier} does not work here: {reason})" for tier, reason in self.passed_over.items())
        return (
            f"Programs run in the {self.tier} sandbox on Python {self.python} as user {self.user}, kernel {self.kernel}{why}; "
            f"{self.attacks} attacks failed and {self.honest} honest programs passed (suite {self.suite})."
        )

    def plain(self) -> dict[str, Any]:
        """For the wire."""
        return asdict(self)


def suite_hash(attacks: Iterable[Attack] = ATTACKS) -> str:
    """Twelve digits that name what was tried, and with which inside."""
    text = "\n".join([INSIDE, repr(HONEST), *(attack.program("") for attack in attacks)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def escapes(pool: Pool, attacks: Iterable[Attack], folder: Path, *, seconds: float = 2.0) -> dict[str, Verdict]:
    """Those of *attacks* that were not contained. *folder*: readable and writable for the sandbox's user, with nothing in it."""
    chosen = list(attacks)
    targets = [folder / f"target{index}" for index in range(len(chosen))]
    for target in targets:
        target.write_bytes(b"secret")
        target.chmod(0o666)
    programs = [attack.program(str(target)) for attack, target in zip(chosen, targets, strict=True)]
    verdicts = pool.grade_all([(program, ESCAPED) for program in programs], seconds=seconds)
    found = {}
    for attack, target, verdict in zip(chosen, targets, verdicts, strict=True):
        touched = not target.exists() or target.read_bytes() != b"secret" or target.stat().st_mode & 0o777 != 0o666
        if verdict.kind in ("ok", "infra_error") or touched or target.stat().st_mtime < 10:
            found[attack.name] = verdict
    known = {path.name for path in targets}
    return found | {
        path.name: Verdict("ok", 1, 1, "was written") for path in folder.iterdir() if path.name not in known
    }


def honest_failures(pool: Pool) -> dict[str, Verdict]:
    """Honest programs that did not pass."""
    work = [(one.program, Calls((Call("work", (one.argument,), {}, one.result),))) for one in HONEST]
    verdicts = zip(HONEST, pool.grade_all(work), strict=True)
    return {one.name: verdict for one, verdict in verdicts if verdict.kind != "ok"}


def open_pool(
    tiers: Iterable[Tier] = TIERS, *, size: int | None = None, limits: Limits | None = None
) -> tuple[Pool, Report]:
    """The best tier that works here and holds. Raises :class:`SandboxUnavailable`."""
    found, slot = survey(tiers)
    pool = Pool(found, size or pool_size(), limits or Limits(), slot)
    chosen = [attack for attack in ATTACKS if attack.at_start]
    try:
        with tempfile.TemporaryDirectory(prefix="sandbox-test-") as name:
            os.chmod(name, 0o777)
            broken = escapes(pool, chosen, Path(name))
        failed = honest_failures(pool)
        if broken or failed:
            words = "; ".join(f"{what}: {v.kind} {v.detail}".strip() for what, v in {**broken, **failed}.items())
            raise SandboxUnavailable(
                f"the {found['tier']} sandbox does not hold on {os.uname().nodename}: {words}",
                "Do not run programs here; report this with the output of `python -m worker.sandbox`.",
            )
    except BaseException:
        pool.close()
        raise
    report = Report(
        tier=found["tier"],
        kernel=found["kernel"],
        abi=found["abi"],
        python=found["interpreter"]["version"],
        user=found["user"],
        suite=suite_hash(),
        attacks=len(chosen),
        honest=len(HONEST),
        passed_over=found["reasons"],
    )
    return pool, report
