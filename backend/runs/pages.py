"""Pages of runs: the list, the form of a new one, one run with its tabs, comparing, workers and the queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from backend.accounts.access import Engineer, Viewer
from backend.accounts.actors import Actor, Permission
from backend.errors import NotFound
from backend.runs import api, comparing, forms, glossary, metrics, readout, service, specs, tabs, views
from backend.runs.lifecycle import STATES, TERMINAL
from backend.web.rendering import render
from backend.web.units import UnitOfWork

if TYPE_CHECKING:
    from backend.runs.tables import Run

router = APIRouter(include_in_schema=False)

TABS = ("overview", "charts", "completions", "logs", "spec", "lineage")
Tab = Literal["overview", "charts", "completions", "logs", "spec", "lineage"]
PAGE = 50
MOST_COMPARED = 8


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
    rows = readout.shown(session, found[:PAGE])
    return render(
        request,
        "runs/list.html",
        project_id=project_id,
        rows=rows,
        state=state,
        method=method,
        states=STATES,
        methods=specs.TITLES,
        filters=urlencode({key: value for key, value in (("state", state), ("method", method)) if value}),
        paged=after is not None,
        next=found[PAGE - 1].id if len(found) > PAGE else None,
        live=any(row.active or row.state == "queued" for row in rows),
        may_launch=actor.may(Permission.ENGINEER, project_id),
    )


# ---- a new run ---------------------------------------------------------------------------------------------------


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
    return render(request, "runs/new.html", **forms.new_run(session, actor, project_id, method, parent))


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
    view = readout.shown(session, [found], whole=True)[0]
    keys = metrics.keys_of(session, run_id)
    steps = service.completion_steps(session, actor, run_id)
    groups = glossary.grouped(keys)
    logged = readout.log_length(session, run_id, view.last_seq)
    counts = {"charts": sum(len(charts) for _, charts in groups), "completions": len(steps), "logs": logged}
    context: dict[str, Any] = {
        "run": view,
        "tab": tab,
        "tabs": [
            (
                name.capitalize(),
                f"/runs/{run_id}" + ("" if name == "overview" else f"?tab={name}"),
                name == tab,
                counts.get(name) or None,
            )
            for name in TABS
        ],
        "may_launch": actor.may(Permission.ENGINEER, view.project_id),
        "method_title": specs.TITLES[view.method],
        "reward_models": specs.REWARD_MODELS,
        # what the page's clocks tick on from, whatever the reader's own says
        "now": readout.now(session),
        # what the tabs count on from while the run goes on
        "known": {"metrics": keys, "steps": steps, "lines": logged} if view.state not in TERMINAL else None,
    }
    if tab == "overview":
        context |= tabs.overview(session, actor, view, keys, steps)
    elif tab == "charts":
        context["charted"] = len(keys)
        context["groups"] = [
            (name, [(chart, views.lines(chart, run_id)) for chart in charts]) for name, charts in groups
        ]
    elif tab == "completions":
        context |= tabs.completions(
            session, actor, view, steps, step, int(against) if against.isascii() and against.isdigit() else None
        )
    elif tab == "logs":
        context["lines"] = readout.log(session, run_id)
        context["logged"] = logged
    elif tab == "spec":
        context |= tabs.spec(session, actor, view)
    else:
        context |= tabs.lineage(session, actor, view)
    return render(request, "runs/run.html", **context)


@router.get("/runs/{run_id}/spec.json")
def spec_file(actor: Viewer, session: UnitOfWork, run_id: int) -> JSONResponse:
    """The spec as *New run* imports it."""
    return JSONResponse(service.get_run(session, actor, run_id).spec)


@router.get("/runs/{run_id}/script.py")
def script(actor: Viewer, session: UnitOfWork, run_id: int) -> Response:
    """The run as one Python file."""
    return api.script_file(session, service.get_run(session, actor, run_id))


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
    chosen = readout.shown(session, [run for run in found if run.project_id == project_id])
    recent = readout.shown(session, service.list_runs(session, actor, project_id, limit=30))
    by_id = {view.id: view for view in [*chosen, *recent]}
    picked = {view.id for view in chosen}
    context: dict[str, Any] = {
        "project_id": project_id,
        "runs": chosen,
        "choices": [replace(view, chosen=view.id in picked) for view in by_id.values()],
        "titles": specs.TITLES,
        "may_launch": actor.may(Permission.ENGINEER, project_id),
    }
    if len(chosen) >= 2:
        context |= comparing.compare(session, actor, chosen, prompt)
    return render(request, "runs/compare.html", **context)


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


def _sandbox(told: dict[str, Any] | None) -> str:
    """What the worker's last self-test said of its sandbox; empty before the first."""
    if told is None:
        return ""
    return (
        f", sandbox: {told['tier']}" if told["tier"] else f", no sandbox: {told.get('reason', 'its self-test failed')}"
    )


def _host(one: readout.Speaking, actor: Actor) -> Host:
    worker = one.worker
    seen = [run for run in one.runs if actor.may(Permission.VIEW, run.project_id)]
    cards: list[Mapping[str, Any]] = [card for card in worker.devices if card.get("memory_bytes")]
    total = sum(card["memory_bytes"] for card in cards) if cards else worker.memory_bytes
    used = sum(card.get("used_bytes") or 0 for card in cards) if cards else worker.memory_used_bytes
    device = ", ".join(str(card.get("name", "GPU")) for card in worker.devices) or "CPU"
    return Host(
        name=worker.name,
        sub=f"{worker.host}, version {worker.version}{_sandbox(worker.sandbox)}",
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
