"""Runs: asked for by people, carried out by workers, watched by both.

People's side: submit, cancel, look. Workers' side: :func:`claim` gives a lease with a *fence*; every later write names run
and fence, and finds no row once the lease went to somebody else (:class:`LeaseLost`: kill the child, publish nothing).
All of a run's writes lock its row first, so its events are numbered in the order in which they are committed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor, Permission
from backend.artifacts import FileEntry, Manifest
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.datasets.tables import DatasetVersion
from backend.errors import Conflict, Invalid, NotFound
from backend.jobs import EXECUTE_RUN, enqueue
from backend.live import ring
from backend.registry import service as registry
from backend.registry.tables import Model
from backend.runs import events as said
from backend.runs import metrics
from backend.runs.lifecycle import LEASED, TERMINAL, State, move
from backend.runs.specs import NEEDS, SPEC, DPOSpec, RewardSpec, SFTSpec
from backend.runs.tables import NOW, Run, RunAttempt, RunCheckpoint, RunCompletion, RunEvent, Worker

AnySpec = SFTSpec | RewardSpec | DPOSpec

FRUITLESS_ATTEMPTS = 3
"""So many attempts in a row without a new checkpoint end a run."""
LONGEST_PAUSE_SECONDS = 300.0
REAP_LOCK = 7305114


class NoSuchRun(NotFound):
    """There is no such run."""


class InvalidSpec(Invalid):
    """This run cannot be submitted."""


class IdempotencyKeyReused(Invalid):
    """This idempotency key was used for another request."""


class RunAlreadyFinished(Conflict):
    """The run has finished."""


class LeaseLost(Conflict):
    """The run belongs to another worker, or to none."""


# --- people ------------------------------------------------------------------------------------------------------


def _find(
    session: Session, actor: Actor, run_id: int, permission: Permission = Permission.VIEW, *, lock: bool = False
) -> Run:
    run = session.get(Run, run_id, with_for_update={"of": Run} if lock else None, populate_existing=lock)
    if run is None:
        raise NoSuchRun("There is no such run, or it is not yours to see.")
    actor.require(permission, run.project_id)
    return run


def check_spec(session: Session, actor: Actor, project_id: int, spec: AnySpec) -> tuple[Model, DatasetVersion]:
    """The model and the rows that *spec* names, if they fit each other and the project. Raises with ``field`` and remedy."""
    try:
        model = registry.get_model(session, actor, spec.base_model)
        if model.project_id != project_id:
            raise NotFound("")
    except NotFound:
        raise InvalidSpec(
            f"The project has no model {spec.base_model}.", field="base_model", remedy="Choose a model of the project."
        ) from None
    try:
        version = datasets.get_version(session, actor, spec.dataset)
        if version.dataset.project_id != project_id:
            raise NotFound("")
    except NotFound:
        raise InvalidSpec(
            f"The project has no dataset version {spec.dataset}.",
            field="dataset",
            remedy="Choose a dataset version of the project.",
        ) from None
    if model.kind != "language" and spec.method != "reward":
        raise InvalidSpec(
            f"“{model.name}” is a reward model: it gives numbers, no words.",
            field="base_model",
            remedy="Choose a language model.",
        )
    if RowType(version.row_type) not in NEEDS[spec.method]:
        needed = " or ".join(sorted(kind.value.replace("_", " ") for kind in NEEDS[spec.method]))
        raise InvalidSpec(
            f"{spec.method.upper()} learns from {needed} rows; “{version.dataset.name}” version {version.number} holds "
            f"{version.row_type.replace('_', ' ')} rows.",
            field="dataset",
            remedy=f"Choose a version with {needed} rows, or another method.",
        )
    if spec.optimization.warmup_steps > spec.optimization.steps:
        raise InvalidSpec(
            "The warm-up is longer than the run.", field="optimization.warmup_steps", remedy="Shorten the warm-up."
        )
    return model, version


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
            name=(name or _name(spec, model)).strip(),
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
    _say(session, run, [("state", {"state": "queued", "by": actor.name})])
    _announce(session, run)
    enqueue(session, EXECUTE_RUN, run.id)
    return run


def _name(spec: AnySpec, model: Model) -> str:
    method = {"sft": "SFT", "reward": "Reward model", "dpo": "DPO"}[spec.method]
    if isinstance(spec, DPOSpec):
        method = "IPO" if spec.loss.kind == "ipo" else method
        return f"{method} on {model.name}, β {spec.beta:g}"
    return f"{method} on {model.name}"


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
            _finish(session, run, "cancelled")
        else:
            _move(session, run, "cancelling", reason=run.exit_reason)
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
FORGOTTEN_SECONDS = 86400.0
"""A worker that was not heard for a day and holds nothing is gone, not silent."""


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
    return _checkpoints(session, run_id, damaged=True)


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


# --- what every write of a run shares ----------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """*value* without NUL characters, which Postgres stores neither in text nor in JSON."""
    if isinstance(value, str):
        return value.replace("\0", "\u2400")
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


_SAY = text("""
insert into run_event (run_id, seq, kind, attempt, at, data)
select :run, s, k, :attempt, coalesce(a, clock_timestamp()), d
from unnest(cast(:seqs as bigint[]), cast(:kinds as text[]), cast(:ats as timestamptz[]), cast(:docs as jsonb[])) as u (s, k, a, d)
""")


def _say(session: Session, run: Run, lines: Sequence[tuple[Any, ...]]) -> None:
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
            "docs": [json.dumps(_plain(line[1]), ensure_ascii=False) for line in lines],
        },
    )


def _announce(session: Session, run: Run) -> None:
    ring(session, f"run:{run.id}")
    ring(session, f"project:{run.project_id}")


def _move(session: Session, run: Run, to: State, **more: Any) -> None:
    """Move the locked *run*, say so in its record, and wake who watches."""
    move(run, to)
    facts = {"state": to, "attempt": run.attempt, **more}
    _say(session, run, [("state", {key: value for key, value in facts.items() if value is not None})])
    _announce(session, run)


def _release(run: Run) -> None:
    """Nobody holds *run* any more: what still carries its fence is refused from now on."""
    run.fence += 1
    run.lease_owner = run.lease_until = run.lease_place = run.lease_slot = None


def _finish(session: Session, run: Run, to: State, *, reason: str | None = None, remedy: str | None = None) -> None:
    if run.lease_owner is not None:
        _release(run)
    if reason is not None:
        run.exit_reason, run.remedy = reason, remedy
    run.finished_at = NOW
    _move(session, run, to, reason=run.exit_reason)


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
        _finish(session, run, "cancelled")
        return
    if fault:
        saved = select(RunCheckpoint.id).where(RunCheckpoint.run_id == run.id, RunCheckpoint.attempt == run.attempt)
        run.fruitless_attempts = 0 if session.scalar(saved.limit(1)) else run.fruitless_attempts + 1
        if run.fruitless_attempts >= FRUITLESS_ATTEMPTS:
            _finish(
                session,
                run,
                "failed",
                reason=f"{FRUITLESS_ATTEMPTS} attempts in a row ended without a new checkpoint. The last: {reason}",
                remedy="Read the log, mend the cause and clone the run; saving more often helps if workers are lost.",
            )
            return
    pause = min(LONGEST_PAUSE_SECONDS, pause_seconds * (2**run.fruitless_attempts - 1)) if fault else 0.0
    _release(run)
    run.not_before = NOW + func.make_interval(0, 0, 0, 0, 0, 0, pause)
    run.sent_at = NOW
    run.exit_reason = reason
    _move(session, run, "queued", reason=reason)
    if not pause:
        enqueue(session, EXECUTE_RUN, run.id)


# --- workers -----------------------------------------------------------------------------------------------------


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
    _move(session, run, "starting", worker=worker)
    return Claimed(run.id, run.fence, run.attempt, slot, run.method)


def _held(session: Session, run_id: int, fence: int) -> Run:
    """The run, locked, if *fence* is still its fence."""
    run = session.scalar(
        select(Run)
        .where(Run.id == run_id, Run.fence == fence, Run.lease_owner.is_not(None))
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if run is None:
        raise LeaseLost(f"Run {run_id} is no longer held under fence {fence}.")
    return run


class Materials(NamedTuple):
    """What an attempt needs on its machine."""

    spec: AnySpec
    name: str
    base_model: Manifest
    adapter_base: Manifest | None
    rows: Path
    row_type: RowType


def materials(session: Session, run_id: int) -> Materials:
    """What the run's spec names, ready to be laid into the attempt's folder."""
    run = session.get_one(Run, run_id)
    chain = registry.chain_of(session, session.get_one(Model, run.base_model_id))
    version = session.get_one(DatasetVersion, run.dataset_version_id)
    return Materials(
        SPEC.validate_python(run.spec),
        run.name,
        registry.manifest_of(chain[-1]),
        registry.manifest_of(chain[-2]) if len(chain) > 1 else None,
        datasets.rows_path(session, version),
        RowType(version.row_type),
    )


class Saved(NamedTuple):
    """A checkpoint in the artifact store."""

    id: int
    step: int
    manifest: Manifest


def _checkpoints(session: Session, run_id: int, *, damaged: bool) -> list[RunCheckpoint]:
    query = select(RunCheckpoint).where(RunCheckpoint.run_id == run_id)
    if not damaged:
        query = query.where(RunCheckpoint.damaged_at.is_(None))
    return list(session.scalars(query.order_by(RunCheckpoint.step.desc(), RunCheckpoint.attempt.desc())))


def saved_states(session: Session, run_id: int) -> list[Saved]:
    """Checkpoints to go on from, newest first."""
    return [
        Saved(row.id, row.step, [FileEntry(*entry) for entry in row.manifest])
        for row in _checkpoints(session, run_id, damaged=False)
    ]


def artifacts_needed(session: Session) -> set[str]:
    """Hashes of the files that checkpoints are made of."""
    return {sha256 for manifest in session.scalars(select(RunCheckpoint.manifest)) for _, _, sha256 in manifest}


def _forget_older(session: Session, run: Run) -> None:
    """Only as many saved states as the spec keeps; their files go with the next sweep."""
    session.flush()
    keep = SPEC.validate_python(run.spec).checkpoints.keep
    for old in _checkpoints(session, run.id, damaged=False)[keep:]:
        session.delete(old)


def checkpoint_is_damaged(session: Session, run_id: int, fence: int, saved: Saved, why: str) -> None:
    """Never go on from *saved* again, and say so."""
    run = _held(session, run_id, fence)
    session.execute(update(RunCheckpoint).where(RunCheckpoint.id == saved.id).values(damaged_at=NOW))
    words = f"The checkpoint of step {saved.step} is damaged ({why}); the one before it is taken."
    _say(session, run, [("log", {"level": "warning", "text": words})])
    _announce(session, run)


def begin_attempt(session: Session, run_id: int, fence: int, folder: str, resume_step: int) -> None:
    """The attempt goes on after *resume_step* in *folder*; points beyond that step are taken back."""
    run = _held(session, run_id, fence)
    session.add(
        RunAttempt(
            run_id=run_id,
            attempt=run.attempt,
            fence=fence,
            worker=run.lease_owner,
            folder=folder,
            resume_step=resume_step,
        )
    )
    metrics.rewind(session, run_id, resume_step if run.attempt > 1 and resume_step else -1)
    session.execute(
        text("delete from run_completion where run_id = :run and step > :step"),
        {"run": run_id, "step": resume_step if resume_step else -1},
    )
    run.progress_step = resume_step
    if run.attempt > 1:
        words = (
            f"Attempt {run.attempt} goes on after step {resume_step}."
            if resume_step
            else f"Attempt {run.attempt} begins anew."
        )
        _say(session, run, [("log", {"level": "info", "text": words})])
    _announce(session, run)


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


def lines_read(session: Session, run_id: int, attempt: int) -> tuple[int, int]:
    """Lines of the attempt's event file and bytes of its output that are recorded."""
    row = session.get_one(RunAttempt, (run_id, attempt), populate_existing=True)
    return row.lines_read, row.output_read


@dataclass(frozen=True)
class Output:
    """A piece of what the process wrote to its output, and where in the file it ends."""

    text: str
    end: int


def record(
    session: Session,
    run_id: int,
    fence: int,
    attempt: int,
    first_line: int,
    lines: Sequence[Any],
    *,
    manifests: Mapping[int, Manifest] | None = None,
    output: Output | None = None,
) -> bool:
    """Write what *lines* (events, the first of them line number *first_line* of the file, counted from 0) say.

    The position in the file moves in the same transaction: what was recorded already is skipped, so a replay changes
    nothing. *manifests*: line number → files of the checkpoint that it names. Answers whether somebody asked to cancel
    the run, as :func:`heartbeat` does. Raises :class:`LeaseLost`.
    """
    run = _held(session, run_id, fence)
    place = session.get_one(RunAttempt, (run_id, attempt), populate_existing=True)
    if first_line > place.lines_read:
        raise ValueError(f"lines {place.lines_read} to {first_line} of run {run_id} are missing")
    lines, first_line = lines[place.lines_read - first_line :], place.lines_read
    told: list[tuple[Any, ...]] = []
    points: list[metrics.Point] = []
    written: dict[tuple[int, int], dict[str, Any]] = {}
    step, state = run.progress_step, run.state
    for number, line in enumerate(lines, first_line):
        data = line.model_dump(mode="json", exclude={"kind", "at"})
        match line:
            case said.Started():
                told.append(("started", data, line.at))
                run.total_steps = line.total_steps
                place.working_at = NOW
                if state == "starting":
                    state = "running"
            case said.Metrics():
                told.append(("metrics", data, line.at))
                points += [metrics.Point(_plain(key), line.step, value, line.at) for key, value in line.values.items()]
                step = max(step, line.step)
            case said.Completions():
                told.append(("completions", {"step": line.step, "count": len(line.samples)}, line.at))
                for index, sample in enumerate(line.samples):
                    written[line.step, index] = {
                        "run_id": run_id, "step": line.step, "index": index, "attempt": attempt, **_plain(sample.model_dump(mode="json"))
                    }  # fmt: skip
            case said.Checkpoint():
                manifest = (manifests or {}).get(number)
                if manifest is None:
                    raise ValueError(f"line {number} of run {run_id} names a checkpoint without its files")
                size = sum(entry.size for entry in manifest)
                session.add(
                    RunCheckpoint(
                        run_id=run_id, step=line.step, attempt=attempt, fence=fence, manifest=[list(e) for e in manifest], size_bytes=size
                    )
                )  # fmt: skip
                told.append(("checkpoint", {"step": line.step, "size_bytes": size}, line.at))
                step = max(step, line.step)
            case said.Note():
                told.append(("log", data, line.at))
            case said.Failed():
                words = line.reason + (f"\n{line.trace}" if line.trace else "")
                told.append(("log", {"level": "error", "text": words}, line.at))
            case said.Finished():
                words = "All steps are taken." if line.outcome == "completed" else f"Stopped after step {line.step}."
                told.append(("log", {"level": "info", "text": words}, line.at))
                step = max(step, line.step)
    if output is not None and output.end > place.output_read:
        told += [
            ("log", {"level": "output", "text": text_line})
            for text_line in output.text.splitlines()
            if text_line.strip()
        ]
        place.output_read = output.end
    if step > run.progress_step:
        run.progress_step, run.progress_at = step, NOW
    place.lines_read = first_line + len(lines)
    metrics.store(session, run_id, attempt, points)
    if written:
        statement = insert(RunCompletion).values(list(written.values()))
        columns = ("attempt", "prompt", "completion", "tokens", "ended", "rewards")
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["run_id", "step", "index"], set_={name: statement.excluded[name] for name in columns}
            )
        )
    if manifests:
        _forget_older(session, run)
    _say(session, run, told)
    if state != run.state:
        _move(session, run, "running", worker=run.lease_owner)
    elif told:
        ring(session, f"run:{run_id}")
    session.flush()
    return run.cancel_requested_at is not None


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


def conclude(session: Session, run_id: int, fence: int, ending: Ending, *, pause_seconds: float) -> Model | None:
    """End the attempt, and with it the run or not; registers the finished model. Raises :class:`LeaseLost`."""
    run = _held(session, run_id, fence)
    if ending.kind in ("drained", "lost"):
        _again(session, run, ending.reason or "", fault=ending.kind == "lost", pause_seconds=pause_seconds)
        return None
    _end_attempt(session, run, ending.reason or ending.kind)
    if ending.kind == "failed" or ending.kind == "cancelled":
        _finish(session, run, ending.kind, reason=ending.reason, remedy=ending.remedy)
        return None
    if run.state == "starting":  # all was said in the batch that is written last
        _move(session, run, "running", worker=run.lease_owner)
    model = None
    if ending.model is not None:
        adapter = any(entry.name == "adapter_config.json" for entry in ending.model)
        model = registry.register_model(
            session,
            project_id=run.project_id,
            name=f"{run.name} (run {run.id})",
            kind="reward" if run.method == "reward" else "language",
            manifest=ending.model,
            adapter_of_id=run.base_model_id if adapter else None,
            run_id=run.id,
            step=ending.step,
            created_by=run.submitted_by_id,
        )
    run.progress_step = max(run.progress_step, ending.step)
    run.progress_at = NOW
    run.exit_reason = None
    _finish(session, run, "succeeded")
    return model


def places_held(session: Session, worker: str) -> list[tuple[int, int, str]]:
    """``(run, fence, place)`` of every run that *worker* holds."""
    query = select(Run.id, Run.fence, Run.lease_place).where(Run.lease_owner == worker)
    return [(run_id, fence, place or "") for run_id, fence, place in session.execute(query)]


def give_up(session: Session, run_id: int, fence: int, reason: str, *, pause_seconds: float) -> None:
    """The holder is known to be dead (its own machine looked): do not wait for the lease to end."""
    try:
        run = _held(session, run_id, fence)
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
