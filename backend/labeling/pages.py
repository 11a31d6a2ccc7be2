"""Pages of labeling: sessions, one session's quality, and the judging page, which is a plain form underneath.

The judging page answers its own island with the same HTML that a reload would show (``X-Island``), so the next
assignment comes with the answer to the last one and no second request is needed.
"""

import json
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from backend.accounts.access import Annotator, Engineer, SignedIn, Viewer
from backend.accounts.actors import Actor, Permission
from backend.datasets import service as datasets
from backend.errors import Invalid, StudioError
from backend.labeling import freezing, judging, quality, service
from backend.labeling.judgments import (
    FLAG_WORDS,
    SKIP_WORDS,
    ComparisonForm,
    Desk,
    FreezePolicy,
    ItemDraft,
    LabelingState,
    Submission,
    excerpt,
)
from backend.projects import service as projects
from backend.web.problems import status_of
from backend.web.rendering import render
from backend.web.units import UnitOfWork

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]

POINTS = ("A much better", "A better", "A slightly better", "tie", "B slightly better", "B better", "B much better")
_SUBMISSION: TypeAdapter[Submission] = TypeAdapter(Submission)


# ---- judging -------------------------------------------------------------------------------------------------------------


@router.get("/judge")
def my_sessions_page(request: Request, actor: Annotator, session: UnitOfWork) -> HTMLResponse:
    """The sessions that wait for me."""
    return render(request, "labeling/mine.html", waiting=service.waiting_for(session, actor))


@router.get("/judge/{labeling_session_id}")
def judge_page(
    request: Request, actor: Annotator, session: UnitOfWork, labeling_session_id: int, note: str = ""
) -> HTMLResponse:
    """My assignment, the guidelines to acknowledge, or why there is nothing to do."""
    desk = judging.next_assignment(session, actor, labeling_session_id)
    return _desk(request, actor, session, desk, note=NOTES.get(note, ""))


NOTES = {
    "sent": "Sent.",
    "skipped": "Skipped: somebody else gets it.",
    "undone": "Taken back. Your last answer is before you again.",
}


@router.post("/judge/{labeling_session_id}/judgment")
def submit_judgment(
    request: Request,
    actor: Annotator,
    session: UnitOfWork,
    labeling_session_id: int,
    assignment: Annotated[UUID, Form()],
    idempotency_key: Text = "",
    point: Text = "",
    tie_kind: Text = "",
    skip_reason: Text = "",
    reason: Text = "",
    flags: Annotated[list[str] | None, Form()] = None,
    active_ms: Text = "",
    first_input_ms: Text = "",
) -> Response:
    """Send the answer, or the skip if a reason for one was given."""
    sent: dict[str, Any] = {"idempotency_key": idempotency_key, "reason": reason, "flags": flags or []}
    if skip_reason:
        sent |= {"kind": "skip", "skip_reason": skip_reason}
    else:
        # a tie kind left over from an answer that was changed afterwards means nothing
        sent |= {"kind": "comparison", "point": point or None, "tie_kind": (tie_kind or None) if point == "4" else None}
    sent |= {name: value for name, value in (("active_ms", active_ms), ("first_input_ms", first_input_ms)) if value}
    try:
        submission = _SUBMISSION.validate_python(sent)
    except ValidationError as error:
        return _refused(request, actor, session, labeling_session_id, _why(error, point), sent)
    try:
        with session.begin_nested():
            answer = judging.submit_judgment(session, actor, assignment, submission)
    except Invalid as error:
        return _refused(request, actor, session, labeling_session_id, error, sent)
    if isinstance(answer, judging.Late):
        return _desk(request, actor, session, answer.desk, status=409, note=answer.refusal.detail, warn=True)
    if _from_island(request):
        return _desk(request, actor, session, answer.desk)
    return _back(labeling_session_id, "skipped" if skip_reason else "sent")


def _why(error: ValidationError, point: str) -> Invalid:
    fields = {str(part) for problem in error.errors() for part in problem["loc"]}
    if not point and "skip_reason" not in fields:
        return Invalid("Choose one of the seven points first; nothing chosen is not a tie.", field="point")
    if point == "4":
        return Invalid("A tie: are both good, or both bad?", field="tie_kind")
    return Invalid(error.errors()[0]["msg"])


def _refused(
    request: Request,
    actor: Actor,
    session: Session,
    labeling_session_id: int,
    error: StudioError,
    sent: dict[str, Any],
) -> Response:
    if _from_island(request):
        raise error
    desk = judging.next_assignment(session, actor, labeling_session_id)
    return _desk(request, actor, session, desk, status=status_of(error), note=error.detail, warn=True, sent=sent)


@router.post("/judge/{labeling_session_id}/undo")
def undo_last(request: Request, actor: Annotator, session: UnitOfWork, labeling_session_id: int) -> Response:
    """Take back my last judgment."""
    try:
        with session.begin_nested():
            desk = judging.undo_last(session, actor, labeling_session_id)
    except StudioError as error:
        if _from_island(request):
            raise
        desk = judging.next_assignment(session, actor, labeling_session_id)
        return _desk(request, actor, session, desk, status=status_of(error), note=error.detail, warn=True)
    if _from_island(request):
        return _desk(request, actor, session, desk, note=NOTES["undone"])
    return _back(labeling_session_id, "undone")


@router.post("/judge/{labeling_session_id}/acknowledge")
def acknowledge_guidelines(
    actor: Annotator, session: UnitOfWork, labeling_session_id: int, version: Annotated[int, Form()]
) -> Response:
    """I have read this version of the guidelines."""
    try:
        with session.begin_nested():
            judging.acknowledge_guidelines(session, actor, labeling_session_id, version)
    except judging.GuidelinesChanged:
        pass  # the page shows the newer ones
    return _back(labeling_session_id)


@router.get("/judge/{labeling_session_id}/history")
def history_page(
    request: Request, actor: Annotator, session: UnitOfWork, labeling_session_id: int, after: int | None = None
) -> HTMLResponse:
    """My own judgments of this session."""
    name = service.get_session(session, actor, labeling_session_id, Permission.JUDGE).name
    items, following = judging.my_history(session, actor, labeling_session_id, after=after)
    return render(
        request, "labeling/history.html", id=labeling_session_id, name=name, items=items, next=following,
        points=POINTS, skip_words=SKIP_WORDS, excerpt=excerpt,
    )  # fmt: skip


def _back(labeling_session_id: int, note: str = "") -> Response:
    return RedirectResponse(f"/judge/{labeling_session_id}" + (f"?note={note}" if note else ""), status_code=303)


def _from_island(request: Request) -> bool:
    return "x-island" in request.headers


def _desk(
    request: Request,
    actor: Actor,
    session: Session,
    desk: Desk,
    *,
    status: int = 200,
    note: str = "",
    warn: bool = False,
    sent: dict[str, Any] | None = None,
) -> HTMLResponse:
    return render(
        request,
        "labeling/judge.html",
        status=status,
        desk=desk,
        a=desk.assignment,
        turns=_turns(desk.assignment.prompt) if desk.assignment else [],
        sides=[_turns(one.content) for one in desk.assignment.completions] if desk.assignment else [],
        note=note,
        warn=warn,
        sent=sent or {},
        points=POINTS,
        skip_words=SKIP_WORDS,
        flag_words=FLAG_WORDS,
        manages=service.manages(session, actor, desk.labeling_session_id),
    )


def _turns(content: Any) -> list[dict[str, str]]:
    """A text or a conversation as turns to render; plain text has no speaker."""
    if isinstance(content, str):
        return [{"role": "", "content": content}]
    return [{"role": turn.role, "content": turn.content} for turn in content]


# ---- sessions ------------------------------------------------------------------------------------------------------------


@router.get("/projects/{project_id}/labeling")
def sessions_page(
    request: Request, actor: SignedIn, session: UnitOfWork, project_id: int, after: int | None = None
) -> HTMLResponse:
    """The project's labeling sessions; annotators see those that wait for them and nothing else."""
    project = projects.get_project(session, actor, project_id)
    if not actor.may(Permission.VIEW, project_id):
        actor.require(Permission.JUDGE, project_id)
        return render(request, "labeling/mine.html", waiting=service.waiting_for(session, actor, project_id))
    found = service.list_sessions(session, actor, project_id, after=after, limit=50)
    waiting = {one.id: one for one in service.waiting_for(session, actor, project_id)}
    return render(
        request,
        "labeling/list.html",
        place=project,
        found=found,
        waiting=waiting,
        next=f"?after={found[-1][0].id}" if len(found) == 50 else None,
        may_create=actor.may(Permission.ENGINEER, project_id),
    )


@router.get("/projects/{project_id}/labeling/new")
def new_session_page(
    request: Request, actor: Engineer, session: UnitOfWork, project_id: int, version: int | None = None
) -> HTMLResponse:
    """The form of a new labeling session."""
    return _new(request, session, actor, project_id, sent={"version_id": str(version or "")})


@router.post("/projects/{project_id}/labeling/new")
def create_session(
    request: Request,
    actor: Engineer,
    session: UnitOfWork,
    project_id: int,
    name: Text = "",
    guidelines: Text = "",
    overlap: Annotated[int, Form()] = 2,
    reason: Text = "optional",
    version_id: Text = "",
    limit: Text = "",
    rows: Text = "",
) -> Response:
    """Make it, from a dataset version or from pasted JSON lines, and show it."""
    sent = {"name": name, "guidelines": guidelines, "overlap": overlap, "reason": reason, "version_id": version_id, "limit": limit, "rows": rows}  # fmt: skip
    about: dict[str, Any] = {"name": name, "guidelines": guidelines, "overlap": overlap}
    try:
        with session.begin_nested():
            about["form"] = ComparisonForm(reason="required" if reason == "required" else "optional")
            if version_id.isdigit():
                made = service.create_session_from_version(
                    session, actor, project_id, version_id=int(version_id),
                    limit=int(limit) if limit.isdigit() and int(limit) > 0 else None, **about,
                )  # fmt: skip
            elif rows.strip():
                made = service.create_session(session, actor, project_id, items=pasted(rows), **about)
            else:
                raise Invalid("Choose a dataset version or paste some rows.", field="version_id")
    except StudioError as error:
        return _new(request, session, actor, project_id, status=status_of(error), error=error, sent=sent)
    return RedirectResponse(f"/labeling/{made.id}", status_code=303)


def pasted(rows: str) -> list[ItemDraft]:
    """JSON lines as questions; the first line at fault is named."""
    drafts = []
    for number, line in enumerate(rows.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not an object")
            drafts.append(service.item_of_row(row))
        except ValidationError as error:
            raise Invalid(f"Line {number}: {error.errors()[0]['msg']}.", line=number, field="rows") from None
        except ValueError as error:
            raise Invalid(f"Line {number} is not a question: {error}.", line=number, field="rows") from None
    return drafts


def _new(
    request: Request,
    session: Session,
    actor: Actor,
    project_id: int,
    *,
    status: int = 200,
    error: StudioError | None = None,
    sent: dict[str, Any],
) -> HTMLResponse:
    actor.require(Permission.ENGINEER, project_id)
    return render(
        request,
        "labeling/new.html",
        status=status,
        place=projects.get_project(session, actor, project_id),
        versions=datasets.list_project_versions(session, actor, project_id),
        error=error,
        sent={"name": "", "guidelines": "", "overlap": 2, "reason": "optional", "limit": "", "rows": "", **sent},
    )


@router.get("/labeling/{labeling_session_id}")
def session_page(
    request: Request,
    actor: Viewer,
    session: UnitOfWork,
    labeling_session_id: int,
    rule: str = "majority",
    ties: str = "drop",
    minimum: Annotated[str, Query()] = "",
) -> HTMLResponse:
    """Quality of one session, and what freezing would do."""
    return _session(request, session, actor, labeling_session_id, policy=_policy(rule, ties, minimum))


def _policy(rule: str, ties: str, minimum: str) -> FreezePolicy:
    return FreezePolicy(
        rule="unanimous" if rule == "unanimous" else "majority",
        ties="keep" if ties == "keep" else "drop",
        minimum_judgments=min(20, int(minimum)) if minimum.isdigit() and int(minimum) > 0 else None,
    )


def _session(
    request: Request,
    session: Session,
    actor: Actor,
    labeling_session_id: int,
    *,
    policy: FreezePolicy,
    status: int = 200,
    error: StudioError | None = None,
) -> HTMLResponse:
    found = service.get_session(session, actor, labeling_session_id)
    if shell := getattr(request.state, "shell", None):
        shell.enter(found.project_id)
    return render(
        request,
        "labeling/session.html",
        status=status,
        found=found,
        q=quality.measure(session, actor, found.id),
        preview=freezing.preview_freeze(session, actor, found.id, policy),
        policy=policy,
        freezes=freezing.freezes(session, actor, found.id),
        versions=service.guidelines(session, actor, found.id),
        may_change=actor.may(Permission.ENGINEER, found.project_id),
        may_judge=actor.may(Permission.JUDGE, found.project_id),
        skip_words=SKIP_WORDS,
        votes=_votes,
        me=actor.person_id,
        error=error,
    )


def _votes(strengths: list[int]) -> list[int]:
    return [strengths.count(strength) for strength in range(-3, 4)]


@router.post("/labeling/{labeling_session_id}/state")
def set_state(
    actor: Engineer, session: UnitOfWork, labeling_session_id: int, state: Annotated[LabelingState, Form()]
) -> Response:
    """Open, pause or close."""
    service.set_state(session, actor, labeling_session_id, state)
    return RedirectResponse(f"/labeling/{labeling_session_id}", status_code=303)


@router.post("/labeling/{labeling_session_id}/guidelines")
def change_guidelines(actor: Engineer, session: UnitOfWork, labeling_session_id: int, words: Text = "") -> Response:
    """A new version of the guidelines."""
    service.change_guidelines(session, actor, labeling_session_id, words)
    return RedirectResponse(f"/labeling/{labeling_session_id}#guidelines", status_code=303)


@router.post("/labeling/{labeling_session_id}/freeze")
def freeze(
    request: Request,
    actor: Engineer,
    session: UnitOfWork,
    labeling_session_id: int,
    rule: Text = "majority",
    ties: Text = "drop",
    minimum: Text = "",
) -> Response:
    """Freeze and show the new version."""
    policy = _policy(rule, ties, minimum)
    try:
        with session.begin_nested():
            version = freezing.freeze_preferences(session, actor, labeling_session_id, policy)
    except StudioError as error:
        return _session(
            request, session, actor, labeling_session_id, policy=policy, status=status_of(error), error=error
        )
    return RedirectResponse(f"/versions/{version.id}", status_code=303)
