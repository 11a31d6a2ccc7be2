"""A run's history: each change of a run and the event that says so, in one transaction.

Both who ask for runs (``service``) and who carry them out (``leases``, ``attempts``) write through here, and only to a run whose row they
have locked: so its events are numbered in the order in which they are committed, and no reader by number misses one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from backend.live import ring
from backend.runs import lifecycle
from backend.runs.lifecycle import State
from backend.runs.tables import NOW, Run


def plain(value: Any) -> Any:
    """*value* without NUL characters, which Postgres stores neither in text nor in JSON."""
    if isinstance(value, str):
        return value.replace("\0", "\u2400")
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


_SAY = text("""
insert into run_event (run_id, seq, kind, attempt, at, data)
select :run, s, k, :attempt, coalesce(a, clock_timestamp()), d
from unnest(cast(:seqs as bigint[]), cast(:kinds as text[]), cast(:ats as timestamptz[]), cast(:docs as jsonb[])) as u (s, k, a, d)
""")


def say(session: Session, run: Run, lines: Sequence[tuple[Any, ...]]) -> None:
    """Append events ``(kind, data[, at])``. The run's row must be locked: its counter numbers them."""
    if not lines:
        return
    first = run.seq + 1
    run.seq += len(lines)
    session.flush()
    session.execute(
        _SAY,
        {
            "run": run.id,
            "attempt": run.attempt,
            "seqs": list(range(first, first + len(lines))),
            "kinds": [line[0] for line in lines],
            "ats": [line[2] if len(line) > 2 else None for line in lines],
            "docs": [json.dumps(plain(line[1]), ensure_ascii=False) for line in lines],
        },
    )


def announce(session: Session, run: Run) -> None:
    """Wake who watches the run or its project, after the commit."""
    ring(session, f"run:{run.id}")
    ring(session, f"project:{run.project_id}")


def move(session: Session, run: Run, to: State, **more: Any) -> None:
    """Move the locked *run*, say so in its record, and wake who watches."""
    lifecycle.move(run, to)
    facts = {"state": to, "attempt": run.attempt, **more}
    say(session, run, [("state", {key: value for key, value in facts.items() if value is not None})])
    announce(session, run)


def release(run: Run) -> None:
    """Nobody holds *run* any more: what still carries its fence is refused from now on."""
    run.fence += 1
    run.lease_owner = run.lease_until = run.lease_place = run.lease_slot = None


def finish(session: Session, run: Run, to: State, *, reason: str | None = None, remedy: str | None = None) -> None:
    """End the locked *run* in the terminal state *to*; whoever held it holds it no more."""
    if run.lease_owner is not None:
        release(run)
    if reason is not None:
        run.exit_reason, run.remedy = reason, remedy
    run.finished_at = NOW
    move(session, run, to, reason=run.exit_reason)
