"""Leases: how workers take runs, keep them, and end or lose them. What they read and write meanwhile: ``attempts``.

:func:`claim` gives a lease with a *fence*; every later write names run and fence, and finds no row once the lease went to
somebody else (:class:`LeaseLost`: kill the child, publish nothing). So at most one worker ever writes a run, however late
another wakes. The caller has no actor: a worker is part of the studio and may carry out any run.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from backend.artifacts import Manifest
from backend.errors import Conflict
from backend.jobs import EXECUTE_RUN, enqueue
from backend.live import ring
from backend.registry import service as registry
from backend.registry.tables import Model
from backend.runs import history
from backend.runs.specs import REWARD_MODELS
from backend.runs.tables import NOW, Run, RunAttempt, RunCheckpoint, Worker

FRUITLESS_ATTEMPTS = 3
"""So many attempts in a row without a new checkpoint end a run."""
LONGEST_PAUSE_SECONDS = 300.0
REAP_LOCK = 7305114


class LeaseLost(Conflict):
    """The run belongs to another worker, or to none."""


@dataclass(frozen=True)
class Machine:
    """What a worker says of itself."""

    name: str
    host: str
    slots: int
    devices: list[dict[str, Any]]
    cores: int
    memory_bytes: int
    memory_used_bytes: int
    disk_free_bytes: int
    version: str
    sandbox: dict[str, Any] | None = None
    """What the sandbox's last self-test said here; ``None``: not yet tried."""


def worker_heard(session: Session, machine: Machine, *, draining: bool = False, fresh: bool = False) -> None:
    """Keep the worker's row; *fresh*: it has just started."""
    values = {**vars(machine), "draining": draining, "heard_at": NOW}
    if fresh:
        values["started_at"] = NOW
    session.execute(insert(Worker).values(**values).on_conflict_do_update(index_elements=["name"], set_=values))
    ring(session, "workers")


class Claimed(NamedTuple):
    """A run that is ours while the lease lasts."""

    run_id: int
    fence: int
    attempt: int
    slot: int
    method: str


def claim(session: Session, worker: str, place: str, lease_seconds: float) -> Claimed | None:
    """The next run that is due, if *worker* has a free slot and does not drain. A message is only a reason to ask."""
    row = session.scalar(select(Worker).where(Worker.name == worker).with_for_update())
    if row is None or row.draining:
        return None
    busy = set(session.scalars(select(Run.lease_slot).where(Run.lease_owner == worker)))
    slot = next((number for number in range(row.slots) if number not in busy), None)
    if slot is None:
        return None
    run = session.scalar(
        select(Run)
        .where(Run.state == "queued", Run.not_before <= NOW)
        .order_by(Run.priority.desc(), Run.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    if run is None:
        return None
    run.attempt += 1
    run.fence += 1
    run.lease_owner, run.lease_place, run.lease_slot = worker, place, slot
    run.lease_until = NOW + func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds)
    run.heard_at = NOW
    run.exit_reason = run.remedy = None
    if run.started_at is None:
        run.started_at = NOW
    history.move(session, run, "starting", worker=worker)
    return Claimed(run.id, run.fence, run.attempt, slot, run.method)


def held(session: Session, run_id: int, fence: int) -> Run:
    """The run, locked, if *fence* is still its fence; every write of its holder begins so. Raises :class:`LeaseLost`."""
    run = session.scalar(
        select(Run)
        .where(Run.id == run_id, Run.fence == fence, Run.lease_owner.is_not(None))
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if run is None:
        raise LeaseLost(f"Run {run_id} is no longer held under fence {fence}.")
    return run


def heartbeat(session: Session, run_id: int, fence: int, lease_seconds: float) -> bool:
    """Keep the run; answers whether somebody asked to cancel it. Raises :class:`LeaseLost`."""
    row = session.execute(
        update(Run)
        .where(Run.id == run_id, Run.fence == fence, Run.lease_owner.is_not(None))
        .values(lease_until=NOW + func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds), heard_at=NOW)
        .returning(Run.cancel_requested_at)
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"Run {run_id} is no longer held under fence {fence}.")
    return row[0] is not None


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, as its supervisor saw it."""

    kind: Literal["succeeded", "failed", "cancelled", "drained", "lost"]
    """``drained``: the worker goes, no fault of the run. ``lost``: the process died; another attempt may do better."""
    reason: str | None = None
    remedy: str | None = None
    step: int = 0
    model: Manifest | None = None
    """Files of the finished model, in the artifact store."""


def _end_attempt(session: Session, run: Run, ending: str) -> None:
    session.execute(
        update(RunAttempt)
        .where(RunAttempt.run_id == run.id, RunAttempt.attempt == run.attempt)
        .values(ended_at=NOW, ending=ending[:2000])
    )


def _again(session: Session, run: Run, reason: str, *, fault: bool, pause_seconds: float) -> None:
    """The attempt of the locked *run* is over but the run is not: back into the queue, or failed if it leads nowhere."""
    _end_attempt(session, run, reason)
    if run.cancel_requested_at is not None:
        history.finish(session, run, "cancelled")
        return
    if fault:
        saved = select(RunCheckpoint.id).where(RunCheckpoint.run_id == run.id, RunCheckpoint.attempt == run.attempt)
        run.fruitless_attempts = 0 if session.scalar(saved.limit(1)) else run.fruitless_attempts + 1
        if run.fruitless_attempts >= FRUITLESS_ATTEMPTS:
            history.finish(
                session,
                run,
                "failed",
                reason=f"{FRUITLESS_ATTEMPTS} attempts in a row ended without a new checkpoint. The last: {reason}",
                remedy="Read the log, mend the cause and clone the run; saving more often helps if workers are lost.",
            )
            return
    pause = min(LONGEST_PAUSE_SECONDS, pause_seconds * (2**run.fruitless_attempts - 1)) if fault else 0.0
    history.release(run)
    run.not_before = NOW + func.make_interval(0, 0, 0, 0, 0, 0, pause)
    run.sent_at = NOW
    run.exit_reason = reason
    history.move(session, run, "queued", reason=reason)
    if not pause:
        enqueue(session, EXECUTE_RUN, run.id)


def conclude(session: Session, run_id: int, fence: int, ending: Ending, *, pause_seconds: float) -> Model | None:
    """End the attempt, and with it the run or not; registers the finished model. Raises :class:`LeaseLost`."""
    run = held(session, run_id, fence)
    if ending.kind in ("drained", "lost"):
        _again(session, run, ending.reason or "", fault=ending.kind == "lost", pause_seconds=pause_seconds)
        return None
    _end_attempt(session, run, ending.reason or ending.kind)
    if ending.kind == "failed" or ending.kind == "cancelled":
        history.finish(session, run, ending.kind, reason=ending.reason, remedy=ending.remedy)
        return None
    if run.state == "starting":  # all was said in the batch that is written last
        history.move(session, run, "running", worker=run.lease_owner)
    model = None
    if ending.model is not None:
        adapter = any(entry.name == "adapter_config.json" for entry in ending.model)
        model = registry.register_model(
            session,
            project_id=run.project_id,
            name=f"{run.name} (run {run.id})",
            kind="reward" if run.method in REWARD_MODELS else "language",
            manifest=ending.model,
            adapter_of_id=run.base_model_id if adapter else None,
            run_id=run.id,
            step=ending.step,
            created_by=run.submitted_by_id,
        )
    run.progress_step = max(run.progress_step, ending.step)
    run.progress_at = NOW
    run.exit_reason = None
    history.finish(session, run, "succeeded")
    return model


def places_held(session: Session, worker: str) -> list[tuple[int, int, str]]:
    """``(run, fence, place)`` of every run that *worker* holds."""
    query = select(Run.id, Run.fence, Run.lease_place).where(Run.lease_owner == worker)
    return [(run_id, fence, place or "") for run_id, fence, place in session.execute(query)]


def give_up(session: Session, run_id: int, fence: int, reason: str, *, pause_seconds: float) -> None:
    """The holder is known to be dead (its own machine looked): do not wait for the lease to end."""
    try:
        run = held(session, run_id, fence)
    except LeaseLost:
        return
    _again(session, run, reason, fault=True, pause_seconds=pause_seconds)


def reap(session: Session, *, lease_seconds: float, pause_seconds: float) -> list[int]:
    """Return runs whose lease is over to the queue, and send forgotten queued ones again. Level-triggered: asks the rows anew each time.

    Nobody is reaped while many leases end at once, or within one lease of a restart of Postgres: then it is more likely
    that the clock jumped or that nobody could speak. Whoever stays silent for another lease is reaped all the same.
    """
    if not session.scalar(text("select pg_try_advisory_xact_lock(:lock)"), {"lock": REAP_LOCK}):
        return []
    expired, leased, restarted = session.execute(
        text("""
            select count(*) filter (where lease_until < clock_timestamp()), count(*),
                   pg_postmaster_start_time() > clock_timestamp() - make_interval(secs => :lease)
            from run where lease_owner is not null
        """),
        {"lease": lease_seconds},
    ).one()
    patience = lease_seconds if restarted or (expired > 3 and expired * 2 > leased) else 0.0
    lost = list(
        session.scalars(
            select(Run)
            .where(
                Run.lease_owner.is_not(None),
                Run.lease_until < NOW - func.make_interval(0, 0, 0, 0, 0, 0, patience),
            )
            .order_by(Run.id)
            .with_for_update(skip_locked=True)
            .execution_options(populate_existing=True)
        )
    )
    for run in lost:
        _again(session, run, f"The worker {run.lease_owner} fell silent.", fault=True, pause_seconds=pause_seconds)
    session.flush()
    for run in _due(session, pause_seconds, free_slots(session)):
        run.sent_at = NOW
        enqueue(session, EXECUTE_RUN, run.id)
    return [run.id for run in lost]


def offer(session: Session, worker: str) -> list[int]:
    """Send every run again that *worker*, who has just come, could take now.

    A message that came before it was heard of (its row still said that it drains) found nobody.
    """
    due = _due(session, 0.0, free_slots(session, worker))
    for run in due:
        run.sent_at = NOW
        enqueue(session, EXECUTE_RUN, run.id)
    return [run.id for run in due]


def free_slots(session: Session, worker: str | None = None) -> int:
    """Slots of live workers (or of *worker* alone) that hold no run."""
    free = session.scalar(
        text("""
            select coalesce(sum(greatest(0, w.slots - (select count(*) from run r where r.lease_owner = w.name))), 0)
            from worker w
            where not w.draining and w.heard_at > clock_timestamp() - interval '90 s'
              and (cast(:name as text) is null or w.name = :name)
        """),
        {"name": worker},
    )
    return int(free or 0)


def _due(session: Session, unsent_seconds: float, limit: int) -> list[Run]:
    """Queued runs that could start but whose message seems lost; no more than could start now."""
    if limit <= 0:
        return []
    query = (
        select(Run)
        .where(
            Run.state == "queued",
            Run.not_before <= NOW,
            Run.sent_at < NOW - func.make_interval(0, 0, 0, 0, 0, 0, unsent_seconds),
        )
        .order_by(Run.priority.desc(), Run.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(session.scalars(query))


def waits(session: Session, worker: str, seconds: float) -> bool:
    """Whether a run has been due for *seconds* while *worker* has a free slot: its message was lost, or nobody carries any."""
    overdue = text("""
        select exists (select 1 from run where state = 'queued' and not_before <= clock_timestamp()
                       and greatest(not_before, queued_at) < clock_timestamp() - make_interval(secs => :seconds))
    """)
    return bool(free_slots(session, worker) and session.scalar(overdue, {"seconds": seconds}))
