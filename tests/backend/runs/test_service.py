"""Submitting, cancelling and reading: on a real Postgres, with threads where two could meet."""

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from backend.accounts.actors import Actor
from backend.db import Sessions, unit_of_work
from backend.errors import Forbidden, NotFound
from backend.runs import events as said
from backend.runs import metrics, service
from backend.runs.checks import InvalidSpec
from backend.runs.leases import Ending
from backend.runs.specs import RewardSpec, SFTSpec
from backend.runs.tables import Run
from tests.backend.runs.material import Material, claim, conclude, hello, record, started, steps, submit
from tests.conftest import MakeActor


def test_submit_checks_what_it_names(sessions: Sessions, engineer: Actor, material: Material) -> None:
    with sessions() as session:
        cases: list[tuple[Any, str]] = [
            (material.spec().model_copy(update={"base_model": 999}), "base_model"),
            (material.spec().model_copy(update={"dataset": 999}), "dataset"),
            (SFTSpec(base_model=material.model_id, dataset=material.version_id), "dataset"),
        ]
        for spec, field in cases:
            with pytest.raises(InvalidSpec) as refused:
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
