"""Pages of runs: the list, the form of a new one, one run with its tabs, comparing, workers and the queue."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from sqlalchemy.orm import Session

from backend.accounts.access import Engineer, Viewer
from backend.accounts.actors import Actor, Permission
from backend.datasets import service as datasets
from backend.errors import NotFound
from backend.registry import service as registry
from backend.runs import glossary, metrics, readout, service, specs, views
from backend.runs.readout import Link
from backend.web.rendering import render
from backend.web.units import UnitOfWork

if TYPE_CHECKING:
    from backend.runs.tables import Run

router = APIRouter(include_in_schema=False)

ACTIVE = ("starting", "running", "cancelling")
STATES = ("queued", *ACTIVE, "succeeded", "failed", "cancelled")
TABS = ("overview", "charts", "completions", "logs", "spec", "lineage")
Tab = Literal["overview", "charts", "completions", "logs", "spec", "lineage"]
PAGE = 50
MOST_COMPARED = 8


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
    spec: specs.TrainingSpec
    model: Link | None = None
    version: Link | None = None
    decides: views.Change | None = None
    rate: float | None = None
    left: float | None = None
    by: str | None = None
    checkpoint_step: int | None = None
    last_seq: int = 0
    place: int | None = None
    failure: Said | None = None
    waits: Said | None = None
    chosen: bool = False

    @property
    def active(self) -> bool:
        """Whether a worker holds it."""
        return self.state in ACTIVE

    @property
    def cancellable(self) -> bool:
        """Whether *Cancel* makes sense."""
        return self.state in ("queued", "starting", "running")


def _views(session: Session, runs: Sequence["Run"], *, whole: bool = False) -> list[View]:
    """Runs as pages show them; *whole* also reads what only the run's own page shows."""
    moment = readout.now(session)
    models = readout.model_links(session, [run.base_model_id for run in runs])
    versions = readout.version_links(session, [run.dataset_version_id for run in runs])
    decides = readout.deciding(session, runs)
    by = readout.submitters(session, runs)
    saved = readout.last_checkpoints(session, [run.id for run in runs]) if whole else {}
    made = []
    for run in runs:
        now = service.status(session, run.id) if whole else None
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
                silent_seconds=readout.silent_seconds(run, moment),
                worker=run.lease_owner,
                parent_id=run.parent_id,
                spec=views.parse(run.spec),
                model=models.get(run.base_model_id),
                version=versions.get(run.dataset_version_id),
                decides=decides.get(run.id),
                rate=now.rate if now else None,
                left=now.left_seconds if now else None,
                by=by.get(run.submitted_by_id) if run.submitted_by_id is not None else None,
                checkpoint_step=saved.get(run.id),
                last_seq=run.seq,
                failure=_failure(run),
                waits=_waits(session, run) if whole and run.state == "queued" else None,
            )
        )
    return made


def _failure(run: "Run") -> Said | None:
    if run.state != "failed":
        return None
    kept = (
        "Its checkpoints and everything it measured are kept."
        if run.progress_step
        else "No step was done; the spec is kept."
    )
    reason = run.exit_reason or "The recipe ended without saying why."
    return Said(f"The run failed at step {run.progress_step:,}", " ".join(filter(None, [reason, run.remedy, kept])))


def _waits(session: Session, run: "Run") -> Said:
    place = next((place for place, other in enumerate(readout.queue(session), 1) if other.id == run.id), None)
    again = f"{run.exit_reason} It resumes from its last checkpoint." if run.exit_reason and run.attempt else ""
    heard = [one for one in readout.workers(session) if not one.silent and not one.worker.draining]
    if not heard:
        return Said("No worker is there", f"The run starts as soon as one comes. {again}".strip())
    if sum(one.worker.slots - len(one.runs) for one in heard) > 0 and place == 1:
        return Said("A worker takes it in a moment", again)
    return Said(
        f"Place {place} in the queue" if place else "It waits in the queue", f"All slots are busy. {again}".strip()
    )


def _capacity(session: Session) -> dict[str, int]:
    """Slots of the workers that speak, how many are free, and how many runs wait."""
    heard = [one for one in readout.workers(session) if not one.silent and not one.worker.draining]
    total = sum(one.worker.slots for one in heard)
    return {
        "total": total,
        "free": max(0, total - sum(len(one.runs) for one in heard)),
        "waiting": len(readout.queue(session)),
    }


# ---- the list ----------------------------------------------------------------------------------------------------


@router.get("/projects/{project_id}/runs")
def list_page(
    request: Request,
    actor: Viewer,
    session: UnitOfWork,
    project_id: int,
    state: str = "",
    method: str = "",
    after: int | None = None,
) -> HTMLResponse:
    """The project's runs, newest first."""
    found = service.list_runs(
        session, actor, project_id, states=[state] if state else [], method=method or None, after=after, limit=PAGE + 1
    )
    rows = _views(session, found[:PAGE])
    return render(
        request,
        "runs/list.html",
        project_id=project_id,
        rows=rows,
        state=state,
        method=method,
        states=STATES,
        methods=list(specs.METHODS),
        filters=urlencode({key: value for key, value in (("state", state), ("method", method)) if value}),
        paged=after is not None,
        next=found[PAGE - 1].id if len(found) > PAGE else None,
        live=any(row.active or row.state == "queued" for row in rows),
        may_launch=actor.may(Permission.ENGINEER, project_id),
    )


# ---- a new run ---------------------------------------------------------------------------------------------------


def _stock(rows: Sequence[Any]) -> str:
    return f"{len(rows)} dataset version{'' if len(rows) == 1 else 's'}" if rows else "none yet"


@router.get("/projects/{project_id}/runs/new")
def new_page(
    request: Request, actor: Engineer, session: UnitOfWork, project_id: int, method: str = "", clone: int | None = None
) -> HTMLResponse:
    """What do you have → the method → one form from its schema."""
    actor.require(Permission.ENGINEER, project_id)
    parent = service.get_run(session, actor, clone) if clone is not None else None
    if parent is not None:
        if parent.project_id != project_id:
            raise NotFound("There is no such run in this project.")
        method = method or parent.method
    if method and method not in specs.METHODS:
        raise NotFound(f"There is no method “{method}”.", remedy="The methods are " + ", ".join(specs.METHODS) + ".")
    fitting = {
        name: datasets.list_project_versions(session, actor, project_id, row_types=specs.NEEDS[name])
        for name in specs.METHODS
    }
    models = _base_models(session, actor, project_id, method)
    choice = next((choice for choice in views.CHOICES if choice.method == method), None)
    context: dict[str, Any] = {
        "project_id": project_id,
        "parent": parent,
        "method": method,
        "title": choice.title if choice else "",
        "because": choice.because if choice else "",
        "chooser": [asdict(choice) | {"stock": _stock(fitting[choice.method])} for choice in views.CHOICES],
        "ready": False,
        "missing": None,
    }
    if method:
        versions = fitting[method]
        context["ready"] = bool(versions and models)
        if not models:
            context["missing"] = {
                "title": "There is no model to start from",
                "text": "A run starts from a base model or from what an earlier run made.",
                "href": f"/projects/{project_id}/models",
                "does": "Register a base model",
            }
        elif not versions:
            needs = " or ".join(sorted(kind.replace("_", " ") for kind in specs.NEEDS[method]))
            context["missing"] = {
                "title": "No dataset version fits",
                "text": f"This method learns from {needs} rows. Import some, or freeze the judgments of a labeling session.",
                "href": f"/projects/{project_id}/datasets",
                "does": "Import a dataset",
            }
        else:
            context |= _form(session, project_id, method, models, versions, parent)
    return render(request, "runs/new.html", **context)


def _base_models(session: Session, actor: Actor, project_id: int, method: str) -> list[dict[str, Any]]:
    found = registry.list_models(session, actor, project_id, kind="language", limit=200)
    if method == "sft":  # the first step of a chain starts from a base; later ones from the newest model
        found = sorted(found, key=lambda model: model.run_id is not None)
    return [{"id": model.id, "label": _model_label(model)} for model in found]


def _model_label(model: Any) -> str:
    said = "adapter" if model.adapter_of_id is not None else ("base" if model.run_id is None else "whole weights")
    of_run = (
        f", run #{model.run_id}" + (f" step {model.step}" if model.step is not None else "") if model.run_id else ""
    )
    return f"{model.name} · {said}{of_run}"


def _version_label(version: Any) -> str:
    return f"{version.dataset.name} v{version.number}"


def _form(
    session: Session,
    project_id: int,
    method: str,
    models: list[dict[str, Any]],
    versions: Sequence[Any],
    parent: "Run | None",
) -> dict[str, Any]:
    """The JSON blocks that ``<spec-form>`` is built from."""
    same_method = parent is not None and parent.method == method
    return {
        "schema": specs.spec_schema(method),
        "options": {
            "models": models,
            "versions": [
                {
                    "id": version.id,
                    "label": f"{_version_label(version)} · {version.row_count:,} rows",
                    "rows": version.row_count,
                    "row_type": version.row_type,
                }
                for version in versions
            ],
            "pace": readout.pace(session, project_id, method),
        },
        "presets": [asdict(preset) for preset in views.PRESETS[method]],
        "start": {
            "name": "",
            "parent": parent.id if parent is not None and same_method else None,
            "spec": parent.spec if parent is not None and same_method else None,
            "home": f"/projects/{project_id}/runs",
        },
        "workers": _capacity(session),
    }


# ---- one run -----------------------------------------------------------------------------------------------------


@router.get("/runs/{run_id}")
def run_page(
    request: Request,
    actor: Viewer,
    session: UnitOfWork,
    run_id: int,
    tab: Tab = "overview",
    step: int | None = None,
    against: str = "",
) -> HTMLResponse:
    """One run: what it does, what it measured, what it wrote, what it was asked, where it came from."""
    found = service.get_run(session, actor, run_id)
    view = _views(session, [found], whole=True)[0]
    keys = metrics.keys_of(session, run_id)
    steps = service.completion_steps(session, actor, run_id)
    counts = {"charts": len({glossary.bare(key) for key in keys}) or None, "completions": len(steps) or None}
    context: dict[str, Any] = {
        "run": view,
        "tab": tab,
        "tabs": [
            (
                name.capitalize(),
                f"/runs/{run_id}" + ("" if name == "overview" else f"?tab={name}"),
                name == tab,
                counts.get(name),
            )
            for name in TABS
        ],
        "may_launch": actor.may(Permission.ENGINEER, view.project_id),
    }
    if tab == "overview":
        context |= _overview(session, actor, view, keys, steps)
    elif tab == "charts":
        context["groups"] = [
            (name, [(chart, views.lines(chart, run_id)) for chart in charts]) for name, charts in glossary.grouped(keys)
        ]
    elif tab == "completions":
        context |= _completions(
            session, actor, run_id, steps, step, int(against) if against.isascii() and against.isdigit() else None
        )
    elif tab == "logs":
        context["lines"] = readout.log(session, run_id)
    elif tab == "spec":
        context |= _spec(session, actor, view)
    else:
        context |= _lineage(session, actor, view)
    return render(request, "runs/run.html", **context)


def _overview(session: Session, actor: Actor, view: View, keys: Sequence[str], steps: Sequence[int]) -> dict[str, Any]:
    decisive = glossary.DECISIVE[view.method]
    wanted = (
        {key for chart in decisive for key, _ in chart.keys}
        | {key for key in keys if glossary.is_held_out(key)}
        | {"grad_norm"}
    )
    series = readout.points(session, view.id, wanted & set(keys))
    samples = service.completions(session, actor, view.id, step=steps[-1], limit=64) if steps else []
    return {
        "changes": views.changes(view.method, series),
        "findings": glossary.diagnose(view.method, series, finished=not view.active),
        "charts": [(chart, views.lines(chart, view.id)) for chart in decisive],
        "samples": samples,
        "samples_step": steps[-1] if steps else None,
        "reward_names": _reward_names(samples),
        "against": None,
    }


def _reward_names(samples: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(name for sample in samples for name in sample.rewards))


def _completions(
    session: Session, actor: Actor, run_id: int, steps: Sequence[int], step: int | None, against: int | None
) -> dict[str, Any]:
    if not steps:
        return {"steps": []}
    shown = step if step is not None and step in steps else steps[-1]
    place = steps.index(shown)
    rows = service.completions(session, actor, run_id, step=shown, limit=64)
    earlier = None
    if against is not None and against in steps and against != shown:
        earlier = {
            sample.prompt: sample.completion
            for sample in service.completions(session, actor, run_id, step=against, limit=64)
        }
    return {
        "steps": list(reversed(steps)),
        "step": shown,
        "rows": rows,
        "reward_names": _reward_names(rows),
        "against": earlier,
        "against_step": against if earlier is not None else None,
        "earlier": steps[place - 1] if place else None,
        "later": steps[place + 1] if place + 1 < len(steps) else None,
    }


@dataclass(frozen=True)
class SpecRow:
    """A field of the spec beside its default and the parent's value."""

    indent: str
    name: str
    value: str
    href: str | None
    default: str
    changed: bool
    parent: str
    parent_changed: bool
    means: str


def _spec(session: Session, actor: Actor, view: View) -> dict[str, Any]:
    parent = service.get_run(session, actor, view.parent_id) if view.parent_id is not None else None
    of_parent = {leaf.path: leaf.value for leaf in views.leaves(views.parse(parent.spec))} if parent else {}
    words = {"base_model": view.model, "dataset": view.version}
    inherited_words: dict[str, str] = {}
    if parent is not None:
        inherited_words = {
            "base_model": readout.model_links(session, [parent.base_model_id])[parent.base_model_id].label,
            "dataset": readout.version_links(session, [parent.dataset_version_id])[parent.dataset_version_id].label,
        }
    rows = []
    for leaf in views.leaves(view.spec):
        link = words.get(leaf.path)
        inherited = of_parent.get(leaf.path, views.ABSENT)
        rows.append(
            SpecRow(
                leaf.indent,
                leaf.name,
                link.label if link else views.said(leaf.value),
                views.href_of(leaf.path, leaf.value),
                "none" if leaf.default is views.ABSENT else views.said(leaf.default),
                leaf.changed,
                "does not apply"
                if inherited is views.ABSENT
                else inherited_words.get(leaf.path) or views.said(inherited),
                parent is not None and inherited != leaf.value,
                leaf.means,
            )
        )
    return {
        "fields": rows,
        "changed": sum(row.changed for row in rows),
        "parent_id": parent.id if parent else None,
        "parent_changed": sum(row.parent_changed for row in rows),
        "started": readout.started(session, view.id),
    }


@router.get("/runs/{run_id}/spec.json")
def spec_file(actor: Viewer, session: UnitOfWork, run_id: int) -> JSONResponse:
    """The spec as *New run* imports it."""
    return JSONResponse(service.get_run(session, actor, run_id).spec)


@router.post("/runs/{run_id}/cancel")
def cancel(actor: Engineer, session: UnitOfWork, run_id: int) -> RedirectResponse:
    """Ask the run to stop after its step."""
    service.cancel_run(session, actor, run_id)
    return RedirectResponse(f"/runs/{run_id}", status_code=303)


# ---- comparing ---------------------------------------------------------------------------------------------------


def _ids(given: Sequence[str]) -> list[int]:
    """``runs=1&runs=2`` and ``runs=1,2`` mean the same; what is no number is left out."""
    parts = [part for text in given for part in text.split(",")]
    return list(dict.fromkeys(int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 18))


@router.get("/projects/{project_id}/compare")
def compare_page(
    request: Request,
    actor: Viewer,
    session: UnitOfWork,
    project_id: int,
    runs: Annotated[list[str] | None, Query()] = None,
    prompt: int = 0,
) -> HTMLResponse:
    """Two to eight runs side by side; the address holds the choice."""
    actor.require(Permission.VIEW, project_id)
    found = [service.get_run(session, actor, run_id) for run_id in _ids(runs or [])[:MOST_COMPARED]]
    chosen = _views(session, [run for run in found if run.project_id == project_id])
    recent = _views(session, service.list_runs(session, actor, project_id, limit=30))
    by_id = {view.id: view for view in [*chosen, *recent]}
    picked = {view.id for view in chosen}
    context: dict[str, Any] = {
        "project_id": project_id,
        "runs": chosen,
        "choices": [replace(view, chosen=view.id in picked) for view in by_id.values()],
        "may_launch": actor.may(Permission.ENGINEER, project_id),
    }
    if len(chosen) >= 2:
        context |= _compared(session, actor, chosen, prompt)
    return render(request, "runs/compare.html", **context)


def _compared(session: Session, actor: Actor, chosen: Sequence[View], prompt: int) -> dict[str, Any]:
    named: dict[tuple[str, int], str] = {}
    for view in chosen:
        if view.model:
            named["base_model", view.model.id] = view.model.label
        if view.version:
            named["dataset", view.version.id] = view.version.label
    differing, count = views.differences([view.spec for view in chosen], named)
    measured = {view.id: metrics.keys_of(session, view.id) for view in chosen}
    held_out = {
        view.id: readout.points(session, view.id, [key for key in measured[view.id] if glossary.is_held_out(key)])
        for view in chosen
    }
    charts = []
    for chart in views.overlaid([view.method for view in chosen]):
        key = chart.keys[0][0]
        if any(key in keys for keys in measured.values()):
            charts.append(
                (
                    chart,
                    [
                        {
                            "run": view.id,
                            "key": key,
                            "label": f"#{view.id}",
                            "slot": slot,
                            "held_out": glossary.is_held_out(key),
                        }
                        for slot, view in enumerate(chosen, 1)
                    ],
                )
            )
    return {
        "differing": differing,
        "field_count": count,
        "charts": charts,
        "live": any(view.active for view in chosen),
        "finals": views.finals([(view.method, held_out[view.id], view.active) for view in chosen]),
        "same_address": "?" + urlencode({"runs": ",".join(str(view.id) for view in chosen)}),
        **_same_prompt(session, actor, chosen, prompt),
    }


@dataclass(frozen=True)
class Beside:
    """One run's completion of the shared prompt."""

    run_id: int
    step: int
    text: str | None = None
    tokens: int = 0
    ended: bool = True


def _same_prompt(session: Session, actor: Actor, chosen: Sequence[View], wanted: int) -> dict[str, Any]:
    last: dict[int, tuple[int, dict[str, Any]]] = {}
    for view in chosen:
        steps = service.completion_steps(session, actor, view.id)
        samples = service.completions(session, actor, view.id, step=steps[-1], limit=64) if steps else []
        last[view.id] = (steps[-1] if steps else 0, {sample.prompt: sample for sample in samples})
    prompts = list(dict.fromkeys(text for _, by_prompt in last.values() for text in by_prompt))
    shared = [text for text in prompts if sum(text in by_prompt for _, by_prompt in last.values()) > 1]
    if not shared:
        return {"prompt": None, "prompt_index": 0, "prompt_count": 0, "samples": []}
    index = max(0, min(wanted, len(shared) - 1))
    beside = []
    for view in chosen:
        step, by_prompt = last[view.id]
        sample = by_prompt.get(shared[index])
        beside.append(
            Beside(view.id, step)
            if sample is None
            else Beside(view.id, step, sample.completion, sample.tokens, sample.ended)
        )
    return {"prompt": shared[index], "prompt_index": index, "prompt_count": len(shared), "samples": beside}


def _lineage(session: Session, actor: Actor, view: View) -> dict[str, Any]:
    """What the run learned from, what it started from, what it made."""
    sources = []
    words: list[dict[str, str | None]] = [{"text": f"Run #{view.id} started from ", "href": None}]
    if view.model:
        sources.append(("model", view.model.label, view.model.sub, f"/models/{view.model.id}"))
        words.append({"text": view.model.label, "href": f"/models/{view.model.id}"})
    words.append({"text": " and learned from ", "href": None})
    if view.version:
        sources.append(("data", view.version.label, view.version.sub, f"/versions/{view.version.id}"))
        words.append({"text": view.version.label, "href": f"/versions/{view.version.id}"})
        words.append({"text": f" ({view.version.sub})", "href": None})
    if view.parent_id is not None:
        sources.append(("run", f"#{view.parent_id}", "cloned from", f"/runs/{view.parent_id}"))
        words.append({"text": "; its spec was cloned from ", "href": None})
        words.append({"text": f"#{view.parent_id}", "href": f"/runs/{view.parent_id}"})
    models = readout.models_made(session, view.id)
    words.append(
        {
            "text": ". It made "
            if models
            else ". It has made no model yet."
            if view.active or view.state == "queued"
            else ". It made no model.",
            "href": None,
        }
    )
    for index, model in enumerate(models):
        words.append({"text": ", " if index else "", "href": None})
        words.append({"text": model.label, "href": f"/models/{model.id}"})
    if models:
        words.append({"text": ".", "href": None})
    return {
        "graph": views.draw(
            (f"#{view.id} {view.method}", view.state, f"/runs/{view.id}"),
            sources,
            [(model.label, model.sub, f"/models/{model.id}") for model in models[-6:]],
        ),
        "words": words,
        "checkpoints": service.checkpoints(session, actor, view.id),
    }


# ---- workers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doing:
    """A run that a worker holds, or one that waits; without a name if it belongs to a project that the reader does not see."""

    id: int
    name: str
    method: str
    step: int
    total: int
    created_at: datetime
    waits: str = ""


@dataclass(frozen=True)
class Host:
    """A worker as its page shows it; memory in GiB."""

    name: str
    sub: str
    heard_seconds: float
    silent: bool
    draining: bool
    devices: str
    slots: int
    memory_used: float | None
    memory_total: float
    memory_of: str
    doing: list[Doing] = field(default_factory=list)
    hidden: int = 0


GIB = 2**30


def _host(one: readout.Speaking, actor: Actor) -> Host:
    worker = one.worker
    seen = [run for run in one.runs if actor.may(Permission.VIEW, run.project_id)]
    cards: list[Mapping[str, Any]] = [card for card in worker.devices if card.get("memory_bytes")]
    total = sum(card["memory_bytes"] for card in cards) if cards else worker.memory_bytes
    used = sum(card.get("used_bytes") or 0 for card in cards) if cards else worker.memory_used_bytes
    device = ", ".join(str(card.get("name", "GPU")) for card in worker.devices) or "CPU"
    return Host(
        name=worker.name,
        sub=f"{worker.host}, version {worker.version}",
        heard_seconds=one.heard_seconds,
        silent=one.silent,
        draining=worker.draining,
        devices=f"{device}, {worker.cores} core{'' if worker.cores == 1 else 's'}",
        slots=worker.slots,
        memory_used=used / GIB if total else None,
        memory_total=total / GIB,
        memory_of="GPU memory" if cards else "memory",
        doing=[_doing(run) for run in seen],
        hidden=len(one.runs) - len(seen),
    )


def _doing(run: "Run", waits: str = "") -> Doing:
    return Doing(run.id, run.name, run.method, run.progress_step, run.total_steps, run.queued_at, waits)


@router.get("/workers")
def workers_page(request: Request, actor: Viewer, session: UnitOfWork) -> HTMLResponse:
    """Who trains: hosts, what they hold, when they last spoke, and the queue in its order."""
    spoken = readout.workers(session)
    hosts = [_host(one, actor) for one in spoken]
    moment = readout.now(session)
    able = [host for host in hosts if not host.silent and not host.draining]
    waiting = []
    for run in readout.queue(session):
        if run.not_before > moment:
            waits = f"tries again in {(run.not_before - moment).total_seconds():.0f} s, after attempt {run.attempt}"
        else:
            waits = "a free slot" if able else "a worker"
        shown = _doing(run, waits)
        waiting.append(shown if actor.may(Permission.VIEW, run.project_id) else replace(shown, id=0, name=""))
    return render(
        request,
        "runs/workers.html",
        workers=hosts,
        queue=waiting,
        slots=sum(host.slots for host in able),
        unknown=sum(host.slots for host in hosts if host.silent),
        busy=sum(len(host.doing) + host.hidden for host in able),
        now=moment.astimezone(UTC).strftime("%H:%M:%S"),
    )
