"""Every pair of states: the function and the trigger allow the same moves."""

import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from backend.accounts.actors import Actor
from backend.db import Sessions
from backend.runs.lifecycle import LEASED, MOVES, STATES, TERMINAL, IllegalMove, move
from tests.backend.runs.material import Material, submit

ROOT = Path(__file__).parents[3]


def test_moves() -> None:
    for a, b in product(STATES, STATES):
        run = SimpleNamespace(state=a)
        if b in MOVES[a]:
            move(run, b)
            assert run.state == b
        else:
            with pytest.raises(IllegalMove):
                move(run, b)
            assert run.state == a
    assert all(not MOVES[state] for state in TERMINAL)


def test_trigger_allows_the_same(sessions: Sessions, engineer: Actor, material: Material) -> None:
    """Each pair is tried on a row that is brought into the first state with the triggers off."""
    run_id = submit(sessions, engineer, material)
    put = """update run set state = :s, lease_owner = :o, lease_until = case when :l then clock_timestamp() end,
             finished_at = case when :f then clock_timestamp() end where id = :r"""

    def values(state: str) -> dict[str, object]:
        leased = state in LEASED
        return {"s": state, "o": "w" if leased else None, "l": leased, "f": state in TERMINAL, "r": run_id}

    allowed = set()
    for a, b in product(STATES, STATES):
        if a == b:
            continue
        with sessions() as session:
            session.execute(text("set session_replication_role = replica"))
            session.execute(text(put), values(a))
            session.execute(text("set session_replication_role = origin"))
            try:
                session.execute(text(put), values(b))
                allowed.add((a, b))
            except DatabaseError as error:
                if f"cannot go from {a} to {b}" not in str(error):
                    raise
            session.rollback()
    assert allowed == {(a, b) for a in STATES for b in MOVES[a]}


@pytest.mark.parametrize(
    "change",
    [
        "fence = fence - 1",
        "attempt = attempt - 1",
        "spec = '{}'",
        "lease_owner = 'x'",
        "finished_at = now()",
        "seq = seq - 1",
    ],
)
def test_row_refuses(sessions: Sessions, engineer: Actor, material: Material, change: str) -> None:
    run_id = submit(sessions, engineer, material)
    with sessions() as session, pytest.raises(DatabaseError):
        session.execute(text(f"update run set {change} where id = {run_id}"))


def test_record_is_append_only(sessions: Sessions, engineer: Actor, material: Material) -> None:
    submit(sessions, engineer, material)
    for change in ("update run_event set seq = seq + 1", "delete from run_event"):
        with sessions() as session, pytest.raises(DatabaseError, match="append-only"):
            session.execute(text(change))


def test_nothing_else_writes_a_state() -> None:
    writes = re.compile(r"\b\w+\.state = |state=\"|values\([^)]*\bstate=")
    for path in [*(ROOT / "backend/runs").glob("*.py"), *(ROOT / "worker").glob("*.py")]:
        if path.name != "lifecycle.py":
            found = [line for line in path.read_text().splitlines() if writes.search(line) and "app.state" not in line]
            assert not found, f"{path}: {found}"
