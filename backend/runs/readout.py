"""What the pages of runs read, a handful of queries per page whatever its length: names, first and last values, workers, the queue.

Read only. Moments are judged by the database clock, so that a browser or a web machine with a wrong clock tells no lies.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from backend.accounts import service as accounts
from backend.datasets.tables import Dataset, DatasetVersion
from backend.registry.tables import Model
from backend.runs import checks, export, glossary, metrics, service, specs, views
from backend.runs.diagnosis import Series
from backend.runs.lifecycle import LEASED
from backend.runs.tables import MetricKey, MetricPoint, Run, RunAttempt, RunCheckpoint, RunEvent, Worker

_FLAGS = {1: math.nan, 2: math.inf, 3: -math.inf}


@dataclass(frozen=True)
class Link:
    """A model or a dataset version that a run names."""

    id: int
    label: str
    sub: str = ""


def model_links(session: Session, ids: Iterable[int]) -> dict[int, Link]:
    """Names of models by id."""
    query = select(Model.id, Model.name, Model.step, Model.run_id).where(Model.id.in_(set(ids)))
    return {
        row.id: Link(row.id, row.name, f"run #{row.run_id}, step {row.step}" if row.run_id else "base")
        for row in session.execute(query)
    }


def scoring_models(session: Session, compared: Sequence[specs.TrainingSpec]) -> dict[tuple[str, Any], str]:
    """Names of the models that rewards consist of, by the field that names them and its value."""
    links = model_links(session, [model for spec in compared for model in spec.other_models()])
    return {
        (leaf.path, leaf.value): ", ".join(links[i].label if i in links else str(i) for i in _ids(leaf.value))
        for spec in compared
        if links
        for leaf in views.leaves(spec)
        if leaf.name in ("model", "models")
    }


def _ids(value: Any) -> Sequence[int]:
    return value if isinstance(value, tuple) else (value,)


def version_links(session: Session, ids: Iterable[int]) -> dict[int, Link]:
    """Names of dataset versions by id."""
    query = select(DatasetVersion.id, Dataset.name, DatasetVersion.number, DatasetVersion.row_count)
    query = query.join(Dataset).where(DatasetVersion.id.in_(set(ids)))
    return {
        row.id: Link(row.id, f"{row.name} v{row.number}", f"{row.row_count:,} rows") for row in session.execute(query)
    }


def _value(value: float | None, flag: int | None) -> float:
    return value if value is not None else _FLAGS.get(flag or 1, math.nan)


def deciding(session: Session, runs: Sequence[Run]) -> dict[int, views.Change]:
    """First and last value of each run's deciding held-out metric."""
    if not runs:
        return {}
    keys = {
        row.name: row.id
        for row in session.execute(select(MetricKey).where(MetricKey.name.in_(glossary.DECIDES.values()))).scalars()
    }
    wanted = [
        and_(MetricPoint.run_id == run.id, MetricPoint.key_id == keys[glossary.DECIDES[run.method]])
        for run in runs
        if glossary.DECIDES.get(run.method) in keys
    ]
    if not wanted:
        return {}
    found: dict[int, list[tuple[int, float]]] = {}
    for order in (MetricPoint.step.asc(), MetricPoint.step.desc()):
        query = select(MetricPoint.run_id, MetricPoint.step, MetricPoint.value, MetricPoint.flag).where(or_(*wanted))
        for row in session.execute(query.ext(distinct_on(MetricPoint.run_id)).order_by(MetricPoint.run_id, order)):
            points = found.setdefault(row.run_id, [])
            if not points or points[-1][0] != row.step:
                points.append((row.step, _value(row.value, row.flag)))
    by_id = {run.id: run for run in runs}
    changes = {run_id: views.change(glossary.DECIDES[by_id[run_id].method], points) for run_id, points in found.items()}
    return {run_id: change for run_id, change in changes.items() if change is not None}


def points(session: Session, run_id: int, keys: Iterable[str], *, most: int = 400) -> dict[str, Series]:
    """(step, value) by key, thinned out to about *most* each; what is not finite stays so."""
    found = metrics.series(session, run_id, sorted(set(keys)), most)
    return {
        key: [(step, float(value)) for step, value in zip(one.steps, one.values, strict=True) if value is not None]
        for key, one in found.items()
    }


def last_checkpoints(session: Session, run_ids: Iterable[int]) -> dict[int, int]:
    """Step of each run's newest checkpoint."""
    query = select(RunCheckpoint.run_id, func.max(RunCheckpoint.step)).where(RunCheckpoint.run_id.in_(set(run_ids)))
    query = query.where(RunCheckpoint.damaged_at.is_(None)).group_by(RunCheckpoint.run_id)
    return {row[0]: row[1] for row in session.execute(query)}


def started(session: Session, run_id: int) -> dict[str, Any] | None:
    """What the newest attempt said when it began: device, rows, parameters, packages."""
    query = select(RunEvent.data).where(RunEvent.run_id == run_id, RunEvent.kind == "started")
    return session.scalar(query.order_by(RunEvent.seq.desc()).limit(1))


def notes_before_start(session: Session, run_id: int) -> list[str]:
    """What the newest attempt said of its rows and of the machine before its first step: left out, cut, the sandbox."""
    newest = select(func.max(RunEvent.seq)).where(RunEvent.run_id == run_id, RunEvent.kind == "started")
    begun = session.scalar(newest)
    if begun is None:
        return []
    before = select(func.coalesce(func.max(RunEvent.seq), 0)).where(
        RunEvent.run_id == run_id, RunEvent.kind == "state", RunEvent.seq < begun
    )
    query = select(RunEvent.data).where(
        RunEvent.run_id == run_id,
        RunEvent.kind == "log",
        RunEvent.seq < begun,
        RunEvent.seq > before.scalar_subquery(),
    )
    return [str(data.get("text", "")) for data in session.scalars(query.order_by(RunEvent.seq))]


def script(session: Session, run: Run) -> tuple[str, str]:
    """The run as one Python file: (name, text), with the versions it was made with. Raises ``Conflict`` where there is none."""
    spec = specs.stored(run.spec)
    begun = started(session, run.id)
    text = export.script(spec, title=f"#{run.id} {run.name}", packages=begun["packages"] if begun else None)
    return export.file_name(run.id, spec), text


@dataclass(frozen=True)
class LogLine:
    """One line of the log."""

    at: datetime
    level: str
    text: str

    @property
    def clock(self) -> str:
        """Time of day, UTC."""
        return self.at.strftime("%H:%M:%S")


def log(session: Session, run_id: int, *, limit: int = 500) -> list[LogLine]:
    """The last lines, in order."""
    query = select(RunEvent.seq, RunEvent.kind, RunEvent.at, RunEvent.data)
    query = query.where(RunEvent.run_id == run_id, RunEvent.kind != "metrics")
    rows = [service.Heard(*row) for row in session.execute(query.order_by(RunEvent.seq.desc()).limit(limit))]
    return [LogLine(row.at, row.data.get("level", "info"), service.sentence(row)) for row in reversed(rows)]


def log_length(session: Session, run_id: int, upto: int) -> int:
    """How many lines the log has up to event number *upto*."""
    query = select(func.count()).select_from(RunEvent)
    query = query.where(RunEvent.run_id == run_id, RunEvent.kind != "metrics", RunEvent.seq <= upto)
    return session.scalar(query) or 0


def pace(session: Session, project_id: int, method: str) -> dict[str, Any] | None:
    """Seconds a step took in the project's last finished run of *method*, from its first step on: loading happens once."""
    last = and_(RunAttempt.run_id == Run.id, RunAttempt.attempt == Run.attempt)
    took = func.extract("epoch", Run.progress_at - RunAttempt.working_at)
    query = select(Run.id, took / (Run.progress_step - RunAttempt.resume_step))
    query = query.join(RunAttempt, last).where(
        Run.project_id == project_id,
        Run.method == method,
        Run.state == "succeeded",
        Run.progress_step > RunAttempt.resume_step,
        Run.progress_at > RunAttempt.working_at,
    )
    found = session.execute(query.order_by(Run.id.desc()).limit(1)).one_or_none()
    return None if found is None else {"run": found[0], "seconds": float(found[1])}


def models_made(session: Session, run_id: int) -> list[Link]:
    """Models registered from the run, by step."""
    query = select(Model.id, Model.name, Model.step).where(Model.run_id == run_id).order_by(Model.step, Model.id)
    return [
        Link(row.id, row.name, f"step {row.step}" if row.step is not None else "") for row in session.execute(query)
    ]


def now(session: Session) -> datetime:
    """The database's clock."""
    moment: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return moment


@dataclass(frozen=True)
class Speaking:
    """A worker with how long ago it spoke."""

    worker: Worker
    heard_seconds: float
    runs: Sequence[Run]

    @property
    def silent(self) -> bool:
        """Whether it missed two heartbeats."""
        return self.heard_seconds > service.SILENT_SECONDS


def workers(session: Session) -> list[Speaking]:
    """Workers heard within a day, or that hold runs, with what they do."""
    found = [Speaking(worker, seconds, runs) for worker, seconds, runs in service.list_workers(session)]
    return [one for one in found if one.heard_seconds < checks.FORGOTTEN_SECONDS or one.runs]


def queue(session: Session) -> Sequence[Run]:
    """Runs that wait, in the order in which they are claimed."""
    query = select(Run).where(Run.state == "queued").order_by(Run.priority.desc(), Run.id).limit(200)
    return session.scalars(query).all()


def submitters(session: Session, runs: Sequence[Run]) -> Mapping[int, str]:
    """Names of who asked for the runs."""
    ids = [run.submitted_by_id for run in runs if run.submitted_by_id is not None]
    return accounts.names(session, ids) if ids else {}


def silent_seconds(run: Run, moment: datetime) -> float | None:
    """How long the run's worker has said nothing, if that is too long."""
    if run.state not in LEASED or run.heard_at is None:
        return None
    seconds = (moment - run.heard_at).total_seconds()
    return seconds if seconds > service.SILENT_SECONDS else None


# ---- runs as pages show them ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A title with its sentence."""

    title: str
    text: str


@dataclass(frozen=True)
class View:
    """A run as its pages show it."""

    id: int
    project_id: int
    name: str
    method: str
    state: str
    step: int
    total: int
    attempt: int
    created_at: datetime
    started_at: datetime | None
    seconds: float | None
    """From start to end, or to now."""
    silent_seconds: float | None
    """How long the worker has said nothing, if that is too long for *running* to be true."""
    worker: str | None
    parent_id: int | None
    spec: specs.AnySpec
    model: Link | None = None
    version: Link | None = None
    decides: views.Change | None = None
    rate: float | None = None
    left: float | None = None
    by: str | None = None
    checkpoint_step: int | None = None
    last_seq: int = 0
    failure: Said | None = None
    waits: Said | None = None
    chosen: bool = False

    @property
    def active(self) -> bool:
        """Whether a worker holds it."""
        return self.state in LEASED

    @property
    def cancellable(self) -> bool:
        """Whether *Cancel* makes sense."""
        return self.state in ("queued", "starting", "running")


def shown(session: Session, runs: Sequence[Run], *, whole: bool = False) -> list[View]:
    """Runs as pages show them; *whole* also reads what only the run's own page shows."""
    moment = now(session)
    models = model_links(session, [run.base_model_id for run in runs])
    versions = version_links(session, [run.dataset_version_id for run in runs])
    decides = deciding(session, runs)
    by = submitters(session, runs)
    saved = last_checkpoints(session, [run.id for run in runs]) if whole else {}
    made = []
    for run in runs:
        pace_now = service.status(session, run.id) if whole else None
        end = run.finished_at or moment
        made.append(
            View(
                id=run.id,
                project_id=run.project_id,
                name=run.name,
                method=run.method,
                state=run.state,
                step=run.progress_step,
                total=run.total_steps,
                attempt=run.attempt,
                created_at=run.queued_at,
                started_at=run.started_at,
                seconds=(end - run.started_at).total_seconds() if run.started_at else None,
                silent_seconds=silent_seconds(run, moment),
                worker=run.lease_owner,
                parent_id=run.parent_id,
                spec=views.parse(run.spec),
                model=models.get(run.base_model_id),
                version=versions.get(run.dataset_version_id),
                decides=decides.get(run.id),
                rate=pace_now.rate if pace_now else None,
                left=pace_now.left_seconds if pace_now else None,
                by=by.get(run.submitted_by_id) if run.submitted_by_id is not None else None,
                checkpoint_step=saved.get(run.id),
                last_seq=run.seq,
                failure=_failure(run),
                waits=_waits(session, run) if whole and run.state == "queued" else None,
            )
        )
    return made


def _failure(run: Run) -> Said | None:
    if run.state != "failed":
        return None
    kept = (
        "Its checkpoints and everything it measured are kept."
        if run.progress_step
        else "No step was done; the spec is kept."
    )
    reason = run.exit_reason or "The recipe ended without saying why."
    return Said(f"The run failed at step {run.progress_step:,}", " ".join(filter(None, [reason, run.remedy, kept])))


def _waits(session: Session, run: Run) -> Said:
    place = next((place for place, other in enumerate(queue(session), 1) if other.id == run.id), None)
    again = f"{run.exit_reason} It resumes from its last checkpoint." if run.exit_reason and run.attempt else ""
    slots = capacity(session)
    if not slots["total"]:
        return Said("No worker is there", f"The run starts as soon as one comes. {again}".strip())
    if slots["free"] and place == 1:
        return Said("A worker takes it in a moment", again)
    return Said(
        f"Place {place} in the queue" if place else "It waits in the queue", f"All slots are busy. {again}".strip()
    )


def capacity(session: Session) -> dict[str, int]:
    """Slots of the workers that speak, how many are free, and how many runs wait."""
    heard = [one for one in workers(session) if not one.silent and not one.worker.draining]
    total = sum(one.worker.slots for one in heard)
    return {
        "total": total,
        "free": max(0, total - sum(len(one.runs) for one in heard)),
        "waiting": len(queue(session)),
    }
