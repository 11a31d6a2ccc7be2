"""A state machine of workers, zombies, cancels and reapers against the real SQL; and mutants of it that must be caught.

A test that cannot fail proves nothing, so the same machine runs against a lease core with one safeguard taken away.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, text

from backend.accounts.actors import Actor
from backend.db import Sessions, unit_of_work
from backend.runs import service
from backend.runs.service import Ending, LeaseLost
from backend.runs.tables import Run
from tests.backend.runs.material import Material, claim, hello, started, submit

BUDGET = int(os.environ.get("STUDIO_LEASE_EXAMPLES", "12"))
WORKERS = st.sampled_from(["w0", "w1", "w2"])


class Leases(RuleBasedStateMachine):
    """Workers that may wake long after they lost their runs."""

    sessions: ClassVar[Sessions]
    engineer: ClassVar[Actor]
    material: ClassVar[Material]

    @initialize()
    def begin(self) -> None:
        with unit_of_work(self.sessions) as session:
            session.execute(text("set local session_replication_role = replica"))
            for table in ("checkpoint", "run_attempt", "run_event", "run"):
                session.execute(text(f"delete from {table}"))
        self.runs: list[int] = []
        self.held: dict[str, list[service.Claimed]] = {}
        self.ended: list[tuple[int, int, int]] = []
        for name in ("w0", "w1", "w2"):
            hello(self.sessions, name, slots=4)

    @rule()
    def submit(self) -> None:
        if len(self.runs) < 3:
            self.runs.append(submit(self.sessions, self.engineer, self.material))

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        try:
            held = claim(self.sessions, worker, lease=1000)
        except AssertionError:
            return  # nothing is due
        with unit_of_work(self.sessions) as session:
            service.record(session, held.run_id, held.fence, held.attempt, 0, [started()])
        self.held.setdefault(worker, []).append(held)

    @rule(worker=WORKERS)
    def heartbeat(self, worker: str) -> None:
        for held in self.held.get(worker, []):
            try:
                with unit_of_work(self.sessions) as session:
                    service.heartbeat(session, held.run_id, held.fence, 1000)
            except LeaseLost:
                continue
            assert self.fence(held.run_id) == held.fence, "a lease was kept under a fence that is over"

    @rule(worker=WORKERS)
    def steal(self, worker: str) -> None:
        """All leases end, the reaper comes, and another worker claims: the old holders do not know."""
        with unit_of_work(self.sessions) as session:
            session.execute(
                text("update run set lease_until = clock_timestamp() - interval '1 d' where lease_owner is not null")
            )
        with unit_of_work(self.sessions) as session:
            service.reap(session, lease_seconds=1000, pause_seconds=0)
        self.claim(worker)

    @rule(which=st.integers(0, 2))
    def cancel(self, which: int) -> None:
        if which < len(self.runs):
            with unit_of_work(self.sessions) as session:
                run = session.get_one(Run, self.runs[which])
                if run.state not in ("succeeded", "failed"):
                    service.cancel_run(session, self.engineer, run.id)

    @rule(worker=WORKERS, how=st.sampled_from(["succeeded", "lost", "drained", "failed"]))
    def end(self, worker: str, how: Any) -> None:
        for held in self.held.pop(worker, []):
            before, owner = self.fence(held.run_id), self.owner(held.run_id)
            try:
                with unit_of_work(self.sessions) as session:
                    service.conclude(session, held.run_id, held.fence, Ending(how, "so"), pause_seconds=0)
            except LeaseLost:
                assert before != held.fence, "the holder was refused"
                continue
            assert owner == worker, f"{worker} ended a run of {owner}"
            self.ended.append((held.run_id, held.fence, before))

    @rule(old=WORKERS, new=WORKERS, how=st.sampled_from(["succeeded", "lost", "drained"]))
    def late(self, old: str, new: str, how: Any) -> None:
        """The old holder ends its attempt after another worker has the run."""
        if self.held.get(old) and old != new:
            self.steal(new)
            self.end(old, how)

    def owner(self, run_id: int) -> str | None:
        with self.sessions() as session:
            return session.scalars(select(Run.lease_owner).where(Run.id == run_id)).one()

    def fence(self, run_id: int) -> int:
        with self.sessions() as session:
            return session.scalars(select(Run.fence).where(Run.id == run_id)).one()

    @invariant()
    def nothing_is_broken(self) -> None:
        for run_id, mine, current in getattr(self, "ended", []):
            assert mine == current, f"fence {mine} ended run {run_id}, which was at {current}"
        with self.sessions() as session:
            twice = session.execute(
                text("""select run_id from run_event where kind = 'state' and data->>'state' in ('succeeded','failed','cancelled')
                        group by run_id having count(*) > 1""")
            ).all()
            assert not twice
            gaps = session.execute(
                text("select id from run r where seq <> (select count(*) from run_event e where e.run_id = r.id)")
            ).all()
            assert not gaps


def play(sessions: Sessions, engineer: Actor, material: Material, examples: int) -> None:
    Leases.sessions, Leases.engineer, Leases.material = sessions, engineer, material
    run_state_machine_as_test(
        Leases,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate],
            derandomize=True,
        ),
    )


def test_lease_core(sessions: Sessions, engineer: Actor, material: Material) -> None:
    play(sessions, engineer, material, BUDGET)


@contextmanager
def no_fence() -> Iterator[None]:
    """A write checks that somebody holds the run, not who."""

    def held(session: Any, run_id: int, fence: int) -> Run:
        run: Run | None = session.scalar(
            select(Run).where(Run.id == run_id, Run.lease_owner.is_not(None)).with_for_update().execution_options(populate_existing=True)
        )  # fmt: skip
        if run is None:
            raise LeaseLost("nobody has it")
        return run

    with mock.patch.object(service, "_held", held):
        yield


@contextmanager
def no_new_fence() -> Iterator[None]:
    """Losing a run and claiming it do not raise its fence."""

    def harmless(run: Run) -> None:
        run.lease_owner = run.lease_until = run.lease_place = run.lease_slot = None

    real_claim = service.claim

    def same_fence(session: Any, *arguments: Any) -> Any:
        found = real_claim(session, *arguments)
        if found is None:
            return None
        session.flush()
        session.execute(text("set local session_replication_role = replica"))
        session.execute(text(f"update run set fence = 1 where id = {found.run_id}"))
        session.execute(text("set local session_replication_role = origin"))
        session.expire_all()
        return found._replace(fence=1)

    with mock.patch.object(service, "_release", harmless), mock.patch.object(service, "claim", same_fence):
        yield


@contextmanager
def unlocked() -> Iterator[None]:
    """Ending an attempt forgets to say so once: a second terminal event is written."""
    real = service._finish

    def twice(session: Any, run: Run, to: Any, **more: Any) -> None:
        real(session, run, to, **more)
        service._say(session, run, [("state", {"state": to})])

    with mock.patch.object(service, "_finish", twice):
        yield


@pytest.mark.parametrize("mutant", [no_fence, no_new_fence, unlocked])
def test_mutants_are_caught(sessions: Sessions, engineer: Actor, material: Material, mutant: Callable[[], Any]) -> None:
    with mutant(), pytest.raises(AssertionError):
        play(sessions, engineer, material, 40)
