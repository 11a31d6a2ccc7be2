"""Submitting, leases and fences, recording once, giving back: on a real Postgres, with threads where two could meet."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.artifacts import FileEntry
from backend.db import Sessions, unit_of_work
from backend.errors import Forbidden, NotFound
from backend.runs import events as said
from backend.runs import metrics, service
from backend.runs.service import Ending, LeaseLost
from backend.runs.specs import RewardSpec, SFTSpec
from backend.runs.tables import Run
from tests.backend.runs.material import Material, claim, hello, started, state_of, submit
from tests.conftest import MakeActor

MANIFEST = [FileEntry("state.bin", 3, "0" * 64)]


def record(sessions: Sessions, c: service.Claimed, first: int, lines: list[Any], **more: Any) -> None:
    with unit_of_work(sessions) as session:
        service.record(session, c.run_id, c.fence, c.attempt, first, lines, **more)


def expire(sessions: Sessions, run_id: int, seconds: float = 1000) -> None:
    with unit_of_work(sessions) as session:
        session.execute(
            text("update run set lease_until = clock_timestamp() - make_interval(secs => :s) where id = :r"),
            {"s": seconds, "r": run_id},
        )


def reap(sessions: Sessions) -> list[int]:
    with unit_of_work(sessions) as session:
        return service.reap(session, lease_seconds=60, pause_seconds=0)


def conclude(sessions: Sessions, c: service.Claimed, ending: Ending) -> None:
    with unit_of_work(sessions) as session:
        service.conclude(session, c.run_id, c.fence, ending, pause_seconds=0)


# --- asking ------------------------------------------------------------------------------------------------------


def test_submit_checks_what_it_names(sessions: Sessions, engineer: Actor, material: Material) -> None:
    with sessions() as session:
        cases: list[tuple[Any, str]] = [
            (material.spec().model_copy(update={"base_model": 999}), "base_model"),
            (material.spec().model_copy(update={"dataset": 999}), "dataset"),
            (SFTSpec(base_model=material.model_id, dataset=material.version_id), "dataset"),
        ]
        for spec, field in cases:
            with pytest.raises(service.InvalidSpec) as refused:
                service.submit_run(session, engineer, material.project_id, spec)
            assert refused.value.fields["field"] == field
            assert refused.value.remedy
        spec = RewardSpec(base_model=material.model_id, dataset=material.version_id)
        assert service.submit_run(session, engineer, material.project_id, spec).state == "queued"


def test_only_engineers_ask(sessions: Sessions, make_actor: MakeActor, material: Material) -> None:
    with sessions() as session:
        with pytest.raises(Forbidden):
            service.submit_run(session, make_actor("viewer"), material.project_id, material.spec())
        with pytest.raises(NotFound):
            service.submit_run(session, make_actor("outsider"), material.project_id, material.spec())


def test_the_rail_counts_runs_and_silent_workers(sessions: Sessions, engineer: Actor, material: Material) -> None:
    hello(sessions)
    hello(sessions, "gpu-2")
    hello(sessions, "forgotten")
    submit(sessions, engineer, material)
    submit(sessions, engineer, material)
    claim(sessions)
    with unit_of_work(sessions) as session:
        session.execute(text("update worker set heard_at = heard_at - interval '1 minute' where name = 'gpu-2'"))
        session.execute(text("update worker set heard_at = heard_at - interval '3 days' where name = 'forgotten'"))
        counts = service.rail_counts(session, engineer, material.project_id)
    assert counts == {"runs": 2, "running": 1, "queued": 1, "silent": 1}


def test_same_key_is_one_run(sessions: Sessions, engineer: Actor, material: Material) -> None:
    made: list[int] = []
    threads = [
        threading.Thread(target=lambda: made.append(submit(sessions, engineer, material, idempotency_key="k")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    with pytest.raises(service.IdempotencyKeyReused):
        submit(sessions, engineer, material, idempotency_key="k", beta=0.3)


def test_cancel_queued_at_once(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    for _ in range(2):
        with unit_of_work(sessions) as session:
            assert service.cancel_run(session, engineer, run_id).state == "cancelled"


def test_cancel_running_is_told_by_heartbeat_and_record(
    sessions: Sessions, engineer: Actor, material: Material
) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    c = claim(sessions)
    with unit_of_work(sessions) as session:
        assert not service.record(session, run_id, c.fence, c.attempt, 0, [started()])
        assert not service.heartbeat(session, run_id, c.fence, 60)
        assert service.cancel_run(session, engineer, run_id).state == "cancelling"
    with unit_of_work(sessions) as session:
        assert service.heartbeat(session, run_id, c.fence, 60)
        assert service.record(session, run_id, c.fence, c.attempt, 1, [said.Metrics(step=1, values={"loss": 1.0})])
    conclude(sessions, c, Ending("cancelled"))
    assert state_of(sessions, run_id) == "cancelled"
    with sessions() as session, pytest.raises(LeaseLost):
        service.heartbeat(session, run_id, c.fence, 60)


# --- claiming ----------------------------------------------------------------------------------------------------


def test_fifty_messages_are_one_attempt(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions, slots=50)
    claims: list[Any] = []

    def work() -> None:
        with unit_of_work(sessions) as session:
            claims.append(service.claim(session, "gpu-1", "here", 60))

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
        assert service.claim(session, "gpu-1", "here", 60) is None
        assert service.claim(session, "unknown", "here", 60) is None


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
        lambda s: service.heartbeat(s, run_id, old.fence, 60),
        lambda s: service.record(s, run_id, old.fence, 1, 1, [said.Metrics(step=1, values={"loss": 9.0})]),
        lambda s: service.conclude(s, run_id, old.fence, Ending("succeeded"), pause_seconds=0),
        lambda s: service.begin_attempt(s, run_id, old.fence, "z", 0),
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
        service.conclude(session, run_id, c.fence, Ending("lost", "x"), pause_seconds=10)
    with unit_of_work(sessions) as session:
        wait = session.scalar(
            text(f"select extract(epoch from not_before - clock_timestamp()) from run where id = {run_id}")
        )
        assert 8 < float(wait) <= 10
        assert service.claim(session, "gpu-1", "here", 60) is None


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
        other.execute(text("select pg_advisory_xact_lock(:l)"), {"l": service.REAP_LOCK})
        assert reap(sessions) == []
    assert reap(sessions) == [run_id]


# --- recording ---------------------------------------------------------------------------------------------------


def steps(first: int, last: int, scale: float = 1.0) -> list[Any]:
    return [said.Metrics(step=n, values={"loss": scale / n, "grad_norm": float(n)}) for n in range(first, last + 1)]


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


def test_not_finite_is_kept_as_a_flag(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    values: list[Any] = [1.0, "nan", "inf", "-inf", 2.0]
    record(
        sessions,
        claim(sessions),
        0,
        [started(), *(said.Metrics(step=n, values={"loss": v}) for n, v in enumerate(values))],
    )
    with sessions() as session:
        assert [v for _, v in metrics.points_of(session, run_id, "loss")] == values
        one = service.series(session, engineer, run_id, ["loss"], 100)["loss"]
        assert one.values == values
        assert one.last == 2.0
        assert one.n == 5
        assert service.series(session, engineer, run_id, ["loss"], 1)["loss"].values == ["-inf"]


def test_nul_characters_do_not_stop_a_run(sessions: Sessions, engineer: Actor, material: Material) -> None:
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    sample = said.Completion(prompt="a\0b", completion="\0", tokens=1, ended=True)
    record(sessions, claim(sessions), 0, [said.Note(text="x\0y"), said.Completions(step=0, samples=[sample])])
    with sessions() as session:
        assert service.completions(session, engineer, run_id)[0].prompt == "a␀b"
        assert "x␀y" in [line.data["text"] for line in service.log_lines(session, engineer, run_id)]


@pytest.mark.parametrize("points", [7, 100, 500])
def test_buckets_have_the_exact_extremes(sessions: Sessions, engineer: Actor, material: Material, points: int) -> None:
    run_id = submit(sessions, engineer, material)
    with unit_of_work(sessions) as session:
        at = datetime.now(UTC)
        raw = [(n, float((n * 7919) % 10007)) for n in range(0, 30_000, 2)]
        for start in range(0, len(raw), 5000):
            metrics.store(session, run_id, 1, [metrics.Point("loss", n, v, at) for n, v in raw[start : start + 5000]])
    with sessions() as session:
        one = metrics.series(session, run_id, ["loss"], points)["loss"]
    assert one.n == len(raw)
    assert one.last == raw[-1][1]
    assert len(one.steps) <= points + 1
    assert one.steps == sorted(set(one.steps))
    assert one.steps[-1] == raw[-1][0]
    before = -1
    for step, low, high in zip(one.steps, one.low, one.high, strict=True):
        inside = [v for n, v in raw if before < n <= step]
        assert (low, high) == (min(inside), max(inside))
        before = step


def test_reader_never_misses_an_event(sessions: Sessions, engineer: Actor, material: Material) -> None:
    """Two writers (the run's holder and a person who cancels) and a reader that follows by number."""
    run_id = submit(sessions, engineer, material)
    hello(sessions)
    c = claim(sessions)
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while True:
            ended = stop.is_set()
            with sessions() as session:
                found = service.events_after(session, run_id, seen[-1] if seen else 0, limit=7)
            seen.extend(event.seq for event in found)
            if ended and not found:
                return

    reader = threading.Thread(target=read)
    reader.start()
    record(sessions, c, 0, [started()])
    for n in range(1, 60):
        record(sessions, c, n, steps(n, n))
        if n == 30:
            with unit_of_work(sessions) as session:
                service.cancel_run(session, engineer, run_id)
    conclude(sessions, c, Ending("cancelled"))
    stop.set()
    reader.join(20)
    with sessions() as session:
        assert seen == list(range(1, session.get_one(Run, run_id).seq + 1))


def test_forgotten_runs_are_sent_again_only_to_free_slots(
    sessions: Sessions, engineer: Actor, material: Material
) -> None:
    for _ in range(3):
        submit(sessions, engineer, material)
    hello(sessions, slots=2)
    time.sleep(0.05)
    with unit_of_work(sessions) as session:
        before = session.scalar(text("select clock_timestamp()"))
        assert service.waits(session, "gpu-1", 0.01)
        service.reap(session, lease_seconds=60, pause_seconds=0.01)
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
        assert [state.step for state in service.saved_states(session, run_id)] == [30, 20]
        assert {entry.sha256 for entry in MANIFEST} <= service.artifacts_needed(session)
