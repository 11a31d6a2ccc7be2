"""Runs as people see them: submit, cancel, look.

Whoever asks is checked here, and a run never changes what it was asked for: its spec, model and rows are fixed when it is
submitted. Carrying a run out is the workers' side (``leases``, ``attempts``); both write through ``history``.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor, Permission
from backend.errors import Conflict, Invalid, NotFound
from backend.jobs import EXECUTE_RUN, enqueue
from backend.registry.tables import Model
from backend.runs import history, metrics
from backend.runs.checks import FORGOTTEN_SECONDS, InvalidSpec, check_spec
from backend.runs.lifecycle import LEASED, TERMINAL
from backend.runs.naming import name_of
from backend.runs.specs import AnySpec
from backend.runs.tables import NOW, Run, RunCheckpoint, RunCompletion, RunEvent, Worker


class NoSuchRun(NotFound):
    """There is no such run."""


class IdempotencyKeyReused(Invalid):
    """This idempotency key was used for another request."""


class RunAlreadyFinished(Conflict):
    """The run has finished."""


# --- people ------------------------------------------------------------------------------------------------------


def _find(
    session: Session, actor: Actor, run_id: int, permission: Permission = Permission.VIEW, *, lock: bool = False
) -> Run:
    run = session.get(Run, run_id, with_for_update={"of": Run} if lock else None, populate_existing=lock)
    if run is None:
        raise NoSuchRun("There is no such run, or it is not yours to see.")
    actor.require(permission, run.project_id)
    return run


def submit_run(
    session: Session,
    actor: Actor,
    project_id: int,
    spec: AnySpec,
    *,
    name: str | None = None,
    parent_id: int | None = None,
    idempotency_key: str | None = None,
) -> Run:
    """A queued run. The same *idempotency_key* with the same request answers the run that it made the first time."""
    actor.require(Permission.ENGINEER, project_id)
    model, version = check_spec(session, actor, project_id, spec)
    if parent_id is not None:
        parent = session.get(Run, parent_id)
        if parent is None or parent.project_id != project_id:
            raise InvalidSpec(f"The project has no run {parent_id}.", field="parent_id", remedy="Leave it out.")
    if name is not None and (not name.strip() or len(name) > 200):
        raise InvalidSpec("A run's name has 1 to 200 characters.", field="name", remedy="Shorten it, or leave it out.")
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= 200:
        raise InvalidSpec("An idempotency key has 1 to 200 characters.", field="idempotency_key", remedy="Send a UUID.")
    document = spec.model_dump(mode="json")
    request = json.dumps([document, name, parent_id], sort_keys=True, ensure_ascii=False).encode()
    sha256 = hashlib.sha256(request).hexdigest()
    made = session.scalar(
        insert(Run)
        .values(
            project_id=project_id,
            name=(name or name_of(spec, model.name)).strip(),
            method=spec.method,
            spec=document,
            base_model_id=model.id,
            dataset_version_id=version.id,
            parent_id=parent_id,
            submitted_by_id=actor.person_id,
            idempotency_key=idempotency_key,
            request_sha256=sha256,
            total_steps=spec.optimization.steps,
        )
        .on_conflict_do_nothing(index_elements=["project_id", "idempotency_key"])
        .returning(Run.id)
    )
    if made is None:
        first = session.scalars(
            select(Run).where(Run.project_id == project_id, Run.idempotency_key == idempotency_key)
        ).one()
        if first.request_sha256 != sha256:
            raise IdempotencyKeyReused(
                f"Run {first.id} was submitted with this key and another request.",
                field="idempotency_key",
                remedy="Send a new key for a new run.",
            )
        return first
    run = session.get_one(Run, made, with_for_update=True)
    history.say(session, run, [("state", {"state": "queued", "by": actor.name})])
    history.announce(session, run)
    enqueue(session, EXECUTE_RUN, run.id)
    return run


MOST_SEEDS = 8
"""So many can be compared on one page."""


def submit_seeds(
    session: Session,
    actor: Actor,
    project_id: int,
    spec: AnySpec,
    seeds: int,
    *,
    name: str | None = None,
    parent_id: int | None = None,
    idempotency_key: str | None = None,
) -> list[Run]:
    """Queued runs that differ in their seed only; none if one is refused. The key is spread over the runs."""
    if spec.seed + seeds > 2**31:
        raise InvalidSpec("There are no seeds so large.", field="seed", remedy="Begin with a smaller seed.")
    runs = []
    for seed in range(spec.seed, spec.seed + seeds):
        one = spec.model_copy(update={"seed": seed})
        title = f"{name.strip()}, seed {seed}" if name and name.strip() else None
        key = f"{idempotency_key} {seed}" if idempotency_key is not None else None
        runs.append(submit_run(session, actor, project_id, one, name=title, parent_id=parent_id, idempotency_key=key))
    return runs


def cancel_run(session: Session, actor: Actor, run_id: int) -> Run:
    """Cancel at once if it is queued; else its worker ends the step, saves and stops (within half a minute). Idempotent."""
    run = _find(session, actor, run_id, Permission.ENGINEER, lock=True)
    if run.state in TERMINAL:
        if run.state == "cancelled":
            return run
        raise RunAlreadyFinished(f"Run {run.id} has {run.state}.", remedy="Nothing is left to cancel.", state=run.state)
    if run.cancel_requested_at is None:
        run.cancel_requested_at = NOW
        run.exit_reason = f"Cancelled by {actor.name}."
        if run.state == "queued":
            history.finish(session, run, "cancelled")
        else:
            history.move(session, run, "cancelling", reason=run.exit_reason)
    session.flush()
    return run


def get_run(session: Session, actor: Actor, run_id: int) -> Run:
    """The run, if the actor may see it."""
    return _find(session, actor, run_id)


def list_runs(
    session: Session,
    actor: Actor,
    project_id: int,
    *,
    states: Sequence[str] = (),
    method: str | None = None,
    after: int | None = None,
    limit: int = 50,
) -> list[Run]:
    """The project's runs, newest first; *after* is the id of the last one seen."""
    actor.require(Permission.VIEW, project_id)
    query = select(Run).where(Run.project_id == project_id).order_by(Run.id.desc()).limit(limit)
    if states:
        query = query.where(Run.state.in_(states))
    if method is not None:
        query = query.where(Run.method == method)
    if after is not None:
        query = query.where(Run.id < after)
    return list(session.scalars(query))


def rail_counts(session: Session, actor: Actor, project_id: int) -> dict[str, int]:
    """All runs, those on a worker, those that wait, and workers that fell silent, for the rail and the home page."""
    if not actor.may(Permission.VIEW, project_id):
        return {}
    waiting = func.count().filter(Run.state == "queued")
    mine = select(func.count(), func.count(Run.lease_owner), waiting).where(Run.project_id == project_id)
    quiet = func.extract("epoch", NOW - Worker.heard_at)
    silent = select(func.count()).select_from(Worker).where(quiet.between(SILENT_SECONDS, FORGOTTEN_SECONDS))
    runs, running, queued = session.execute(mine).one()
    return {"runs": runs, "running": running, "queued": queued, "silent": session.scalar(silent) or 0}


def models_of(session: Session, run: Run) -> list[Model]:
    """The models that the run made."""
    return list(session.scalars(select(Model).where(Model.run_id == run.id).order_by(Model.id)))


# --- reading -----------------------------------------------------------------------------------------------------


class Status(NamedTuple):
    """What the head of a run's page says; all durations in seconds, by the database clock."""

    state: str
    attempt: int
    step: int
    total: int
    rate: float | None
    """Steps per second of the present attempt."""
    left_seconds: float | None
    worker: str | None
    silent_seconds: float | None
    """How long the worker has said nothing, if that is longer than it should be."""
    elapsed_seconds: float | None
    seq: int
    reason: str | None
    resumed_step: int
    """Where the present attempt went on from; points beyond it from earlier attempts do not count."""


class Heard(NamedTuple):
    """One event of a run."""

    seq: int
    kind: str
    at: datetime
    data: dict[str, Any]


_STATUS = text("""
select r.state, r.attempt, r.progress_step, r.total_steps, r.lease_owner, r.seq, r.exit_reason, coalesce(a.resume_step, 0),
  extract(epoch from clock_timestamp() - r.heard_at),
  extract(epoch from coalesce(r.finished_at, clock_timestamp()) - r.started_at),
  extract(epoch from r.progress_at - a.working_at)
from run r left join run_attempt a on a.run_id = r.id and a.attempt = r.attempt where r.id = :run
""")

SILENT_SECONDS = 25.0


def status(session: Session, run_id: int) -> Status:
    """The run's state in one query. The caller has checked who asks."""
    row = session.execute(_STATUS, {"run": run_id}).one()
    state, attempt, step, total, worker, seq, reason, resumed, quiet, elapsed, worked = row
    rate = left = None
    if state in LEASED and worked and worked > 0 and step > resumed:
        rate = round((step - resumed) / float(worked), 4)
        left = round(max(0, total - step) / rate, 1) if rate else None
    silent = round(float(quiet), 1) if state in LEASED and quiet is not None and quiet > SILENT_SECONDS else None
    return Status(
        state, attempt, step, total, rate, left, worker, silent, None if elapsed is None else round(float(elapsed), 1),
        seq, reason, resumed,
    )  # fmt: skip


def events_after(
    session: Session, run_id: int, seq: int, *, limit: int = 1000, kinds: Sequence[str] = ()
) -> list[Heard]:
    """What happened after event number *seq*, in order. The caller has checked who asks."""
    query = (
        select(RunEvent.seq, RunEvent.kind, RunEvent.at, RunEvent.data)
        .where(RunEvent.run_id == run_id, RunEvent.seq > seq)
        .order_by(RunEvent.seq)
        .limit(limit)
    )
    if kinds:
        query = query.where(RunEvent.kind.in_(kinds), RunEvent.kind != "metrics")
    return [Heard(*row) for row in session.execute(query)]


def series(
    session: Session,
    actor: Actor,
    run_id: int,
    keys: Sequence[str] = (),
    points: int = 500,
    *,
    from_step: int = 0,
    to_step: int | None = None,
) -> dict[str, metrics.Series]:
    """Metric name → its points, thinned out to about *points*; no names: all the run has."""
    run = _find(session, actor, run_id)
    wanted = list(keys) or metrics.keys_of(session, run_id)
    return metrics.series(
        session, run_id, wanted, points, from_step=from_step, to_step=to_step, started_at=run.started_at
    )


def completions(
    session: Session, actor: Actor, run_id: int, *, step: int | None = None, after: int = -1, limit: int = 50
) -> list[RunCompletion]:
    """Held-out prompts completed at *step* (the newest by default), by index."""
    _find(session, actor, run_id)
    if step is None:
        step = session.scalar(select(func.max(RunCompletion.step)).where(RunCompletion.run_id == run_id))
    query = (
        select(RunCompletion)
        .where(RunCompletion.run_id == run_id, RunCompletion.step == step, RunCompletion.index > after)
        .order_by(RunCompletion.index)
        .limit(limit)
    )
    return list(session.scalars(query))


def completion_steps(session: Session, actor: Actor, run_id: int) -> list[int]:
    """Steps at which prompts were completed."""
    _find(session, actor, run_id)
    query = select(RunCompletion.step).where(RunCompletion.run_id == run_id).distinct().order_by(RunCompletion.step)
    return list(session.scalars(query))


def checkpoints(session: Session, actor: Actor, run_id: int) -> list[RunCheckpoint]:
    """The run's saved states, newest first."""
    _find(session, actor, run_id)
    query = select(RunCheckpoint).where(RunCheckpoint.run_id == run_id)
    return list(session.scalars(query.order_by(RunCheckpoint.step.desc(), RunCheckpoint.attempt.desc())))


def log_lines(session: Session, actor: Actor, run_id: int, *, after: int = 0, limit: int = 10_000) -> list[Heard]:
    """What happened besides metrics, as lines: states, notes, output. ``data["text"]`` is the sentence."""
    _find(session, actor, run_id)
    kinds = ("state", "started", "checkpoint", "log", "completions")
    return [line._replace(data={**line.data, "text": sentence(line)}) for line in events_after(session, run_id, after, limit=limit, kinds=kinds)]  # fmt: skip


def sentence(event: Heard) -> str:
    """An event as one reads it in a log."""
    data = event.data
    match event.kind:
        case "log":
            return str(data.get("text", ""))
        case "state":
            ended = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was cancelled"}
            words = f"The run {ended.get(data['state'], 'is ' + data['state'])}"
            if data.get("worker"):
                words += f" on {data['worker']}, attempt {data.get('attempt')}"
            return f"{words}." + (f" {data['reason']}" if data.get("reason") else "")
        case "started":
            return (
                f"Training begins after step {data['first_step']} of {data['total_steps']} on {data['device']}: "
                f"{data['train_rows']} rows, {data['held_out_rows']} held out, "
                f"{data['trainable_parameters']} of {data['total_parameters']} parameters trainable."
            )
        case "checkpoint":
            return f"Checkpoint of step {data['step']} saved and verified."
        case "completions":
            return f"{data['count']} held-out prompts completed at step {data['step']}."
    return ""


def list_workers(session: Session) -> list[tuple[Worker, float, list[Run]]]:
    """Every worker with the seconds since it spoke and the runs that it holds."""
    held: dict[str, list[Run]] = {}
    for run in session.scalars(select(Run).where(Run.lease_owner.is_not(None)).order_by(Run.id)):
        held.setdefault(run.lease_owner or "", []).append(run)
    silent = func.extract("epoch", NOW - Worker.heard_at)
    rows = session.execute(select(Worker, silent).order_by(Worker.name))
    return [(worker, round(float(seconds), 1), held.get(worker.name, [])) for worker, seconds in rows]
