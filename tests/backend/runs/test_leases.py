"""Leases and fences, recording once, giving back: on a real Postgres, with threads where two could meet.

Then a state machine of workers, zombies, cancels and reapers against the same SQL; and mutants of it that must be caught:
a test that cannot fail proves nothing, so the same machine runs against a lease core with one safeguard taken away.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.artifacts import FileEntry
from backend.db import Sessions, unit_of_work
from backend.runs import attempts, history, leases, metrics, service
from backend.runs import events as said
from backend.runs.leases import Ending, LeaseLost
from backend.runs.tables import Run
from tests.backend.runs.material import (
    WORKER,
    Material,
    claim,
    conclude,
    hello,
    record,
    started,
    state_of,
    steps,
    submit,
)

MANIFEST = [FileEntry("state.bin", 3, "0" * 64)]
BUDGET = int(os.environ.get("STUDIO_LEASE_EXAMPLES", "12"))
WORKERS = st.sampled_from(["w0", "w1", "w2"])


def expire(sessions: Sessions, run_id: int, seconds: float = 1000) -> None:
    with unit_of_work(sessions) as session:
        session.execute(
            text("update run set lease_until = clock_timestamp() - make_interval(secs => :s) where id = :r"),
            {"s": seconds, "r": run_id},
        )


def reap(sessions: Sessions) -> list[int]:
    with unit_of_work(sessions) as session:
        return leases.reap(session, lease_seconds=60, pause_seconds=0)


def test_a_worker_that_comes_is_offered_what_its_predecessor_gave_back(
    sessions: Sessions, engineer: Actor, material: Material
) -> None:
    """The message of a drained run reached the new worker while its row still said that it drains."""
    first, second = (submit(sessions, engineer, material) for _ in range(2))
    hello(sessions)
    conclude(sessions, claim(sessions), Ending("drained"))
    with unit_of_work(sessions) as session:
        leases.worker_heard(session, WORKER, draining=True)
        assert leases.claim(session, "gpu-1", "nowhere|1|gpu-1", 60) is None
        assert leases.offer(session, "gpu-1") == []
    hello(sessions)
    with unit_of_work(sessions) as session:
        assert leases.offer(session, "gpu-1") == [first]  # it has one slot, and the older run goes first
        assert leases.reap(session, lease_seconds=60, pause_seconds=60) == []
    assert claim(sessions).run_id == first
    with unit_of_work(sessions) as session:
        assert leases.offer(session, "gpu-1") == []  # the slot is taken
    assert state_of(sessions, second) == "queued"


def test_cancel_running_is_told_by_heartbeat_and_record(
    sessions: Sessions, engineer: Actor, material: Material
) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    c = claim(sessions)
    with unit_of_work(sessions) as session:
        assert not attempts.record(session, run_id, c.fence, c.attempt, 0, [started()])
        assert not leases.heartbeat(session, run_id, c.fence, 60)
        assert service.cancel_run(session, engineer, run_id).state == "cancelling"
    with unit_of_work(sessions) as session:
        assert leases.heartbeat(session, run_id, c.fence, 60)
        assert attempts.record(session, run_id, c.fence, c.attempt, 1, [said.Metrics(step=1, values={"loss": 1.0})])
    conclude(sessions, c, Ending("cancelled"))
    assert state_of(sessions, run_id) == "cancelled"
    with sessions() as session, pytest.raises(LeaseLost):
        leases.heartbeat(session, run_id, c.fence, 60)


def test_fifty_messages_are_one_attempt(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions, slots=50)
    claims: list[Any] = []

    def work() -> None:
        with unit_of_work(sessions) as session:
            claims.append(leases.claim(session, "gpu-1", "here", 60))

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claims) == 50
    assert sum(c is not None for c in claims) == 1
    with sessions() as session:
        run = session.get_one(Run, run_id)
        assert (run.attempt, run.fence, run.state) == (1, 1, "starting")


def test_slots_are_a_limit(sessions: Sessions, engineer: Actor, material: Material) -> None:
    ids = [submit(sessions, engineer, material) for _ in range(3)]
    hello(sessions, slots=2)
    first, second = claim(sessions), claim(sessions)
    assert [first.run_id, second.run_id] == ids[:2]
    assert {first.slot, second.slot} == {0, 1}
    with unit_of_work(sessions) as session:
        assert leases.claim(session, "gpu-1", "here", 60) is None
        assert leases.claim(session, "unknown", "here", 60) is None


def test_expired_lease_goes_round_and_zombie_is_refused(
    sessions: Sessions, engineer: Actor, material: Material
) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    old = claim(sessions)
    record(sessions, old, 0, [started()])
    assert reap(sessions) == []
    expire(sessions, run_id)
    assert reap(sessions) == [run_id]
    assert reap(sessions) == []
    new = claim(sessions)
    assert new.fence > old.fence
    assert new.attempt == 2
    writes: list[Callable[[Session], Any]] = [
        lambda s: leases.heartbeat(s, run_id, old.fence, 60),
        lambda s: attempts.record(s, run_id, old.fence, 1, 1, [said.Metrics(step=1, values={"loss": 9.0})]),
        lambda s: leases.conclude(s, run_id, old.fence, Ending("succeeded"), pause_seconds=0),
        lambda s: attempts.begin(s, run_id, old.fence, "z", 0),
    ]
    for write in writes:
        with sessions() as session, pytest.raises(LeaseLost):
            write(session)
    record(sessions, new, 0, [started()])
    conclude(sessions, new, Ending("succeeded", step=40))
    assert state_of(sessions, run_id) == "succeeded"


def test_three_fruitless_attempts_end_it(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    saved = claim(sessions)
    record(sessions, saved, 0, [started(), said.Checkpoint(step=5, folder="x")], manifests={1: MANIFEST})
    conclude(sessions, saved, Ending("lost", "it died"))  # it saved: counts as progress
    for n in range(3):
        assert state_of(sessions, run_id) == "queued", n
        conclude(sessions, claim(sessions, resume=5), Ending("lost", "it died"))
    assert state_of(sessions, run_id) == "failed"
    with sessions() as session:
        run = session.get_one(Run, run_id)
        assert "it died" in (run.exit_reason or "")
        assert run.remedy


def test_drain_is_no_fault(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    for _ in range(5):
        conclude(sessions, claim(sessions), Ending("drained"))
    assert state_of(sessions, run_id) == "queued"


def test_back_off_grows(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    c = claim(sessions)
    with unit_of_work(sessions) as session:
        leases.conclude(session, run_id, c.fence, Ending("lost", "x"), pause_seconds=10)
    with unit_of_work(sessions) as session:
        wait = session.scalar(
            text(f"select extract(epoch from not_before - clock_timestamp()) from run where id = {run_id}")
        )
        assert 8 < float(wait) <= 10
        assert leases.claim(session, "gpu-1", "here", 60) is None


def test_many_expired_at_once_are_waited_for(sessions: Sessions, engineer: Actor, material: Material) -> None:
    ids = [submit(sessions, engineer, material) for _ in range(5)]
    hello(sessions, slots=9)
    for _ in ids:
        claim(sessions)
    for run_id in ids:
        expire(sessions, run_id, seconds=10)
    assert reap(sessions) == []
    for run_id in ids:
        expire(sessions, run_id, seconds=200)
    assert sorted(reap(sessions)) == ids


def test_one_reaps_at_a_time(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    claim(sessions)
    expire(sessions, run_id)
    with sessions() as other:
        other.execute(text("select pg_advisory_xact_lock(:l)"), {"l": leases.REAP_LOCK})
        assert reap(sessions) == []
    assert reap(sessions) == [run_id]


def test_replay_changes_nothing(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    c = claim(sessions)
    lines = [started(), *steps(1, 30)]
    record(sessions, c, 0, lines[:10])
    for first in (0, 5, 0):
        record(sessions, c, first, lines[first:20])
    record(sessions, c, 20, lines[20:])
    record(sessions, c, 0, lines)
    with sessions() as session:
        assert metrics.points_of(session, run_id, "loss") == [(n, 1.0 / n) for n in range(1, 31)]
        told = service.events_after(session, run_id, 0)
        assert [e.data["step"] for e in told if e.kind == "metrics"] == list(range(1, 31))
        assert [e.seq for e in told] == list(range(1, len(told) + 1))
        run = session.get_one(Run, run_id)
        assert (run.state, run.progress_step, run.seq) == ("running", 30, len(told))


def test_missing_lines_are_refused(sessions: Sessions, engineer: Actor, material: Material) -> None:
    submit(sessions, engineer, material)
    hello(sessions)
    c = claim(sessions)
    with pytest.raises(ValueError, match="missing"):
        record(sessions, c, 3, steps(1, 2))


def test_newer_attempt_wins_and_rewinds(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    c = claim(sessions)
    record(
        sessions,
        c,
        0,
        [started(), *steps(1, 20), said.Checkpoint(step=20, folder="x"), *steps(21, 29, 100)],
        manifests={21: MANIFEST},
    )
    conclude(sessions, c, Ending("lost", "x"))
    c = claim(sessions, resume=20)
    with sessions() as session:
        assert [step for step, _ in metrics.points_of(session, run_id, "loss")] == list(range(1, 21))
        one = service.series(session, engineer, run_id, ["loss"], 5)["loss"]
        assert one.n == 20
        assert max(v for v in one.high if v is not None) == 1.0
    record(sessions, c, 0, [started(first=20), *steps(21, 40)])
    with sessions() as session:
        assert metrics.points_of(session, run_id, "loss") == [(n, 1.0 / n) for n in range(1, 41)]


def test_nul_characters_do_not_stop_a_run(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    sample = said.Completion(prompt="a\0b", completion="\0", tokens=1, ended=True)
    record(sessions, claim(sessions), 0, [said.Note(text="x\0y"), said.Completions(step=0, samples=[sample])])
    with sessions() as session:
        assert service.completions(session, engineer, run_id)[0].prompt == "a␀b"
        assert "x␀y" in [line.data["text"] for line in service.log_lines(session, engineer, run_id)]


def test_forgotten_runs_are_sent_again_only_to_free_slots(
    sessions: Sessions, engineer: Actor, material: Material
) -> None:
    for _ in range(3):
        submit(sessions, engineer, material)
    hello(sessions, slots=2)
    time.sleep(0.05)
    with unit_of_work(sessions) as session:
        before = session.scalar(text("select clock_timestamp()"))
        assert leases.waits(session, "gpu-1", 0.01)
        leases.reap(session, lease_seconds=60, pause_seconds=0.01)
    with sessions() as session:
        assert session.scalar(text("select count(*) from run where sent_at > :t"), {"t": before}) == 2


def test_only_as_many_checkpoints_as_the_spec_keeps(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    c = claim(sessions)
    saved = [said.Checkpoint(step=step, folder="x") for step in (10, 20, 30)]
    record(sessions, c, 0, [started(), *saved[:1]], manifests={1: MANIFEST})
    record(sessions, c, 2, saved[1:], manifests={2: MANIFEST, 3: MANIFEST})
    with sessions() as session:
        assert [state.step for state in attempts.saved_states(session, run_id)] == [30, 20]
        assert {entry.sha256 for entry in MANIFEST} <= attempts.artifacts_needed(session)


# --- any order of workers, zombies, cancels and reapers -------------------------------------------------------------


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
        self.held: dict[str, list[leases.Claimed]] = {}
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
            attempts.record(session, held.run_id, held.fence, held.attempt, 0, [started()])
        self.held.setdefault(worker, []).append(held)

    @rule(worker=WORKERS)
    def heartbeat(self, worker: str) -> None:
        for held in self.held.get(worker, []):
            try:
                with unit_of_work(self.sessions) as session:
                    leases.heartbeat(session, held.run_id, held.fence, 1000)
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
            leases.reap(session, lease_seconds=1000, pause_seconds=0)
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
                    leases.conclude(session, held.run_id, held.fence, Ending(how, "so"), pause_seconds=0)
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

    with mock.patch.object(leases, "held", held):
        yield


@contextmanager
def no_new_fence() -> Iterator[None]:
    """Losing a run and claiming it do not raise its fence."""

    def harmless(run: Run) -> None:
        run.lease_owner = run.lease_until = run.lease_place = run.lease_slot = None

    real_claim = leases.claim

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

    with mock.patch.object(history, "release", harmless), mock.patch.object(leases, "claim", same_fence):
        yield


@contextmanager
def unlocked() -> Iterator[None]:
    """Ending an attempt forgets to say so once: a second terminal event is written."""
    real = history.finish

    def twice(session: Any, run: Run, to: Any, **more: Any) -> None:
        real(session, run, to, **more)
        history.say(session, run, [("state", {"state": to})])

    with mock.patch.object(history, "finish", twice):
        yield


@pytest.mark.parametrize("mutant", [no_fence, no_new_fence, unlocked])
def test_mutants_are_caught(sessions: Sessions, engineer: Actor, material: Material, mutant: Callable[[], Any]) -> None:
    with mutant(), pytest.raises(AssertionError):
        play(sessions, engineer, material, 40)
