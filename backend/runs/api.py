"""Runs over REST: ask, list, watch, cancel; one stream of server-sent events per run, with catch-up."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from backend.accounts.access import Engineer, SignedIn, Viewer
from backend.accounts.actors import Permission
from backend.errors import NotFound
from backend.runs import lengths, readout, service
from backend.runs.following import follow
from backend.runs.specs import METHODS, Spec, spec_schema
from backend.web.streams import last_event_id
from backend.web.units import UnitOfWork

if TYPE_CHECKING:
    from backend.runs.tables import Run

router = APIRouter(prefix="/api/v1", tags=["runs"])

EXAMPLE: dict[str, Any] = {
    "name": "DPO on the demo's pairs",
    "spec": {
        "method": "dpo",
        "base_model": 1,
        "dataset": 2,
        "beta": 0.5,
        "weights": {"kind": "lora", "rank": 8, "alpha": 16},
        "optimization": {"steps": 100, "batch_size": 32, "learning_rate": 1e-3},
    },
}


class NewRun(BaseModel):
    """What to do, and optionally what to call it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, json_schema_extra={"examples": [EXAMPLE]})

    spec: Spec
    """The method and its hyperparameters; ``GET /specs/{method}`` describes them."""
    name: str | None = None
    """A name for people; made from the spec if left out."""
    parent_id: int | None = None
    """The run that this one was cloned from."""
    idempotency_key: str | None = Field(None, max_length=200)
    """Sending the same request twice with the same key makes one run."""


class SeveralRuns(NewRun):
    """The same run with several seeds."""

    seeds: int = Field(ge=1, le=service.MOST_SEEDS)
    """How many runs: with the spec's seed, and the ones after it."""


class ModelMade(BaseModel):
    """A model that a run made."""

    id: int
    name: str
    kind: str
    step: int | None


class RunView(BaseModel):
    """A run, for programs. Durations are seconds by the database clock."""

    id: int
    project_id: int
    name: str
    method: str
    state: str
    attempt: int
    step: int
    total: int
    base_model_id: int
    dataset_version_id: int
    parent_id: int | None
    exit_reason: str | None
    remedy: str | None
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    seconds: float | None
    """From the first claim to the end; ``None`` until it has ended."""
    worker: str | None
    rate: float | None = None
    """Steps per second."""
    left_seconds: float | None = None
    silent_seconds: float | None = None
    spec: dict[str, Any] | None = None
    """Left out of lists."""
    models: list[ModelMade] = []


class RowLengths(BaseModel):
    """How long rows are in a model's tokens, of about 200 rows from evenly spread places, shortest first."""

    rows: list[int]
    """Prompt and the longest completion, without what a chat template adds."""
    prompts: list[int]
    """Prompt alone."""


class RunList(BaseModel):
    """A page of runs, newest first."""

    items: list[RunView]
    next: int | None


def _view(run: "Run", **more: Any) -> RunView:
    seconds = (run.finished_at - run.started_at).total_seconds() if run.finished_at and run.started_at else None
    return RunView(
        id=run.id,
        project_id=run.project_id,
        name=run.name,
        method=run.method,
        state=run.state,
        attempt=run.attempt,
        step=run.progress_step,
        total=run.total_steps,
        base_model_id=run.base_model_id,
        dataset_version_id=run.dataset_version_id,
        parent_id=run.parent_id,
        exit_reason=run.exit_reason,
        remedy=run.remedy,
        queued_at=run.queued_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        seconds=seconds,
        worker=run.lease_owner,
        **more,
    )


@router.get("/specs/{method}")
def read_spec(actor: SignedIn, method: str) -> dict[str, Any]:
    """JSON schema of a method's spec: every field with its sentence, default and bounds."""
    try:
        return spec_schema(method)
    except KeyError:
        raise NotFound(f"There is no method “{method}”.", remedy=f"Methods: {', '.join(METHODS)}.") from None


@router.get("/versions/{version_id}/lengths")
def read_lengths(actor: Viewer, session: UnitOfWork, version_id: int, model: int) -> RowLengths | None:
    """How long the rows of a dataset version are in the tokens of *model*: what ``max_length`` would cut.

    ``null`` if the model came without a ``tokenizer.json``.
    """
    found = lengths.sample(session, actor, model, version_id)
    return None if found is None else RowLengths(rows=found.rows, prompts=found.prompts)


@router.post("/projects/{project_id}/runs", status_code=201)
def submit(actor: Engineer, session: UnitOfWork, project_id: int, body: NewRun) -> RunView:
    """Queue a run. A spec that cannot work is refused with the field at fault and the remedy."""
    run = service.submit_run(
        session,
        actor,
        project_id,
        body.spec,
        name=body.name,
        parent_id=body.parent_id,
        idempotency_key=body.idempotency_key,
    )
    session.refresh(run)
    return _view(run, spec=run.spec)


@router.post("/projects/{project_id}/runs/seeds", status_code=201)
def submit_seeds(actor: Engineer, session: UnitOfWork, project_id: int, body: SeveralRuns) -> RunList:
    """Queue the same run with seeds s, s + 1 …: all of them, or none. What is chance shows in their spread."""
    runs = service.submit_seeds(
        session,
        actor,
        project_id,
        body.spec,
        body.seeds,
        name=body.name,
        parent_id=body.parent_id,
        idempotency_key=body.idempotency_key,
    )
    for run in runs:
        session.refresh(run)
    return RunList(items=[_view(run, spec=run.spec) for run in runs], next=None)


@router.get("/projects/{project_id}/runs")
def list_runs(
    actor: Viewer,
    session: UnitOfWork,
    project_id: int,
    state: Annotated[list[str] | None, Query()] = None,
    method: str | None = None,
    after: int | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> RunList:
    """The project's runs, newest first; ``state`` can be given several times."""
    runs = service.list_runs(
        session, actor, project_id, states=state or (), method=method, after=after, limit=limit + 1
    )
    more = len(runs) > limit
    return RunList(items=[_view(run) for run in runs[:limit]], next=runs[limit - 1].id if more else None)


@router.get("/runs/{run_id}")
def read(actor: Viewer, session: UnitOfWork, run_id: int) -> RunView:
    """One run with its spec, its pace and the models it made."""
    run = service.get_run(session, actor, run_id)
    status = service.status(session, run_id)
    made = [
        ModelMade(id=model.id, name=model.name, kind=model.kind, step=model.step)
        for model in service.models_of(session, run)
    ]
    return _view(
        run,
        spec=run.spec,
        models=made,
        rate=status.rate,
        left_seconds=status.left_seconds,
        silent_seconds=status.silent_seconds,
    )


@router.post("/runs/{run_id}/cancel")
def cancel(actor: Engineer, session: UnitOfWork, run_id: int) -> RunView:
    """Stop after the present step; the last checkpoint stays. Asking twice changes nothing."""
    run = service.cancel_run(session, actor, run_id)
    session.refresh(run)
    return _view(run)


@router.get("/runs/{run_id}/metrics")
def read_metrics(
    actor: Viewer,
    session: UnitOfWork,
    run_id: int,
    keys: Annotated[str, Query(description="Names, separated by commas; all if left out.")] = "",
    points: Annotated[int, Query(ge=1, le=5000)] = 500,
    from_step: Annotated[int, Query(ge=0)] = 0,
    to_step: Annotated[int | None, Query(ge=0)] = None,
) -> dict[str, Any]:
    """Series by name, thinned out to about *points*, with exact extremes; what is not finite is ``"nan"``, ``"inf"``, ``"-inf"``."""
    wanted = [key for key in keys.split(",") if key]
    found = service.series(session, actor, run_id, wanted, points, from_step=from_step, to_step=to_step)
    series = {
        key: {
            "steps": one.steps,
            "values": one.values,
            "min": one.low,
            "max": one.high,
            "seconds": one.seconds,
            "n": one.n,
            "last": one.last,
        }
        for key, one in found.items()
    }
    return {"series": series}


@router.get("/runs/{run_id}/completions")
def read_completions(
    actor: Viewer,
    session: UnitOfWork,
    run_id: int,
    step: Annotated[int | None, Query(ge=0, description="The newest if left out.")] = None,
    after: int = -1,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Held-out prompts completed at one step; ``steps`` lists the steps there are."""
    found = service.completions(session, actor, run_id, step=step, after=after, limit=limit + 1)
    items = [
        {
            "step": one.step,
            "index": one.index,
            "prompt": one.prompt,
            "completion": one.completion,
            "tokens": one.tokens,
            "ended": one.ended,
            "rewards": one.rewards,
        }
        for one in found[:limit]
    ]
    return {
        "items": items,
        "next": found[limit - 1].index if len(found) > limit else None,
        "steps": service.completion_steps(session, actor, run_id),
    }


@router.get("/runs/{run_id}/checkpoints")
def read_checkpoints(actor: Viewer, session: UnitOfWork, run_id: int) -> dict[str, Any]:
    """Saved states, newest first."""
    items = [
        {
            "step": one.step,
            "attempt": one.attempt,
            "size_bytes": one.size_bytes,
            "damaged": one.damaged_at is not None,
            "created_at": one.created_at,
        }
        for one in service.checkpoints(session, actor, run_id)
    ]
    return {"items": items, "next": None}


@router.get("/runs/{run_id}/script", response_class=PlainTextResponse)
def read_script(actor: Viewer, session: UnitOfWork, run_id: int) -> Response:
    """The run as one Python file for trl, transformers and peft; it reproduces the run's losses."""
    return script_file(session, service.get_run(session, actor, run_id))


def script_file(session: Session, run: "Run") -> Response:
    """The download."""
    name, text = readout.script(session, run)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return PlainTextResponse(text, media_type="text/x-python", headers=headers)


@router.get("/runs/{run_id}/log", response_class=PlainTextResponse)
def read_log(actor: Viewer, session: UnitOfWork, run_id: int, after: int = 0) -> str:
    """What happened besides metrics, one line each, as text."""
    lines = service.log_lines(session, actor, run_id, after=after)
    return "".join(f"{line.at:%Y-%m-%d %H:%M:%S} {line.data['text']}\n" for line in lines)


@router.get("/workers")
def list_workers(actor: Viewer, session: UnitOfWork) -> dict[str, Any]:
    """Workers, how long each has said nothing, and which of the runs that you may see it holds."""
    items = []
    for worker, silent, runs in service.list_workers(session):
        is_silent = silent > service.SILENT_SECONDS
        state = "silent" if is_silent else "draining" if worker.draining else "busy" if runs else "idle"
        items.append(
            {
                "name": worker.name,
                "host": worker.host,
                "state": state,
                "slots": worker.slots,
                "device": worker.devices[0]["name"] if worker.devices else "cpu",
                "devices": worker.devices,
                "silent_seconds": silent,
                "runs": [run.id for run in runs if actor.may(Permission.VIEW, run.project_id)],
                "version": worker.version,
                "sandbox": worker.sandbox,
            }
        )
    return {"items": items, "next": None}


# --- the stream --------------------------------------------------------------------------------------------------


@router.get("/runs/{run_id}/events", response_class=StreamingResponse)
def stream(
    request: Request,
    actor: Viewer,
    session: UnitOfWork,
    run_id: int,
    after: int = 0,
    last: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> StreamingResponse:
    """Server-sent events ``run``, ``metrics``, ``completions`` and ``log``; the id is the run-wide sequence number.
    All but ``run`` and ``metrics`` are lines of the log, with their ``kind`` and ``text``.
    Catches up from ``Last-Event-ID`` (or ``?after=``), then follows; ends when the run has.
    """
    service.get_run(session, actor, run_id)  # the check; the stream below holds no connection while it waits
    events = follow(request, run_id, last_event_id(last, after))
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
