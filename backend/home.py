"""The first page: what waits for the person who is signed in, and where the project's loop stands."""

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from backend.accounts.access import SignedIn
from backend.accounts.actors import Actor, Permission
from backend.labeling import service as labeling
from backend.runs import readout
from backend.runs import service as runs
from backend.runs.lifecycle import LEASED
from backend.runs.views import Change
from backend.web.rendering import render
from backend.web.units import UnitOfWork

if TYPE_CHECKING:
    from backend.runs.tables import Run

router = APIRouter()

LOOKED_AT = 50
"""Among this many of the newest runs those that need a look are found."""
RECENT = timedelta(days=1)
SHOWN = 8


class Look(NamedTuple):
    """A run that needs a look, with the reason."""

    run: "Run"
    state: str
    silent_seconds: float | None
    change: Change | None


@router.get("/", include_in_schema=False)
def home(request: Request, actor: SignedIn, session: UnitOfWork) -> HTMLResponse:
    """What waits for me; for those who may see it also runs that need a look, the loop, workers and the queue."""
    shell = getattr(request.state, "shell", None)
    project_id: int | None = shell.project.id if shell is not None and shell.project is not None else None
    waiting = labeling.waiting_for(session, actor)
    waiting.sort(key=lambda one: (one.project_id != project_id, one.left == 0, -one.left))
    views = project_id is not None and actor.may(Permission.VIEW, project_id)
    sessions = labeling.list_sessions(session, actor, project_id, limit=200) if views and project_id else []
    return render(
        request,
        "home.html",
        waiting=[one for one in waiting if one.left],
        views=views,
        looks=_looks(session, actor, project_id) if views and project_id else [],
        judgments=sum(judged for _, judged in sessions),
        labeling_sessions=len(sessions),
        workers=readout.workers(session) if views else [],
        queue=readout.queue(session)[:SHOWN] if views else [],
    )


def _looks(session: Session, actor: Actor, project_id: int) -> list[Look]:
    """Silent and failed runs first, then what runs, then what finished since yesterday."""
    moment = readout.now(session)
    newest = runs.list_runs(session, actor, project_id, limit=LOOKED_AT)
    found = [
        run
        for run in newest
        if run.state in LEASED or (run.finished_at is not None and moment - run.finished_at < RECENT)
    ]
    changes = readout.deciding(session, found)
    looks = [Look(run, run.state, readout.silent_seconds(run, moment), changes.get(run.id)) for run in found]
    looks.sort(
        key=lambda look: (look.silent_seconds is None, look.state != "failed", look.state not in LEASED, -look.run.id)
    )
    return looks[:SHOWN]
