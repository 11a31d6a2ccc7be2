"""REST of labeling. What an annotator can call answers only the blind classes of ``judgments.py``."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from backend.accounts.access import Annotator, Engineer, Viewer
from backend.labeling import freezing, judging, service
from backend.labeling import quality as measures
from backend.labeling.judgments import (
    ComparisonForm,
    Desk,
    FreezeCounts,
    FreezePolicy,
    ItemDraft,
    LabelingState,
    OwnJudgment,
    Receipt,
    Submission,
)
from backend.web.units import UnitOfWork

router = APIRouter(prefix="/api/v1", tags=["labeling"])

Limit = Annotated[int, Query(ge=1, le=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class NewLabelingSession(_Body):
    """A labeling session over the rows of a dataset version, or over items given here."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "Explain the sum",
                    "guidelines": "Prefer the answer that is right, then the shorter one.",
                    "overlap": 2,
                    "items": [
                        {"prompt": "What is 2 + 2?", "completions": ["4", "It is 5."], "models": ["base", "tuned"]}
                    ],
                }
            ]
        }
    )
    name: str = Field(min_length=1, max_length=120)
    guidelines: str = Field("", max_length=50_000)
    """Markdown. Annotators acknowledge it before their first assignment, and again when it changes."""
    overlap: int = Field(2, ge=1, le=20)
    """How many different people judge each item."""
    form: ComparisonForm = Field(default_factory=ComparisonForm)
    version_id: int | None = None
    """Take the items from this dataset version."""
    limit: int | None = Field(None, ge=1)
    """At most this many rows of it."""
    items: list[ItemDraft] | None = Field(None, max_length=10_000)
    """The items themselves; more can be added later."""


class NewItems(_Body):
    """More items for the end of the queue."""

    items: list[ItemDraft] = Field(min_length=1, max_length=10_000)


class AddedItems(BaseModel):
    """What became of them."""

    added: int
    identical: int


class NewGuidelines(_Body):
    """The next version of the guidelines."""

    text: str = Field(max_length=50_000)


class Acknowledgment(_Body):
    """I have read this version."""

    version: int


class StateChange(_Body):
    """Open, pause or close."""

    state: LabelingState


class LabelingSessionView(BaseModel):
    """A labeling session, for those who run it."""

    id: int
    project_id: int
    name: str
    state: LabelingState
    overlap: int
    items: int
    guidelines_version: int
    form: ComparisonForm
    origin: dict[str, Any]
    created_at: str
    judgments: int | None = None


class Page(BaseModel):
    """One page of a list; ``next`` goes into ``?after=``."""

    items: list[Any]
    next: int | None


class HistoryPage(BaseModel):
    """One page of my own judgments."""

    items: list[OwnJudgment]
    next: int | None


class Reservation(BaseModel):
    """How long the assignment stays mine."""

    reserved_seconds: float


class FreezeRequest(_Body):
    """Freeze the judgments by a policy into a dataset version."""

    policy: FreezePolicy = Field(default_factory=FreezePolicy)
    dataset_id: int | None = None
    """The dataset that gets the new version."""
    dataset_name: str | None = Field(None, min_length=1, max_length=120)
    """Or its name; it is made if the project has none of that name."""


class RowMade(BaseModel):
    """A row of a dataset version, counted from 0."""

    version_id: int
    position: int


class Frozen(BaseModel):
    """The dataset version that was made."""

    version_id: int
    dataset_id: int
    number: int
    rows: int
    counts: FreezeCounts
    origin: dict[str, Any]


def _view(found: Any, judgments: int | None = None) -> LabelingSessionView:
    return LabelingSessionView(
        id=found.id,
        project_id=found.project_id,
        name=found.name,
        state=found.state,
        overlap=found.overlap,
        items=found.item_count,
        guidelines_version=found.guideline_number,
        form=ComparisonForm.model_validate(found.form),
        origin=found.origin,
        created_at=found.created_at.isoformat(),
        judgments=judgments,
    )


@router.post("/projects/{project_id}/labeling-sessions", status_code=201)
def create_labeling_session(
    actor: Engineer, session: UnitOfWork, project_id: int, body: NewLabelingSession
) -> LabelingSessionView:
    """Open a labeling session. Items whose two completions are the same are left out and counted in ``origin``."""
    about: dict[str, Any] = {
        "name": body.name,
        "guidelines": body.guidelines,
        "overlap": body.overlap,
        "form": body.form,
    }
    if body.version_id is not None:
        made = service.create_session_from_version(
            session, actor, project_id, version_id=body.version_id, limit=body.limit, **about
        )
        if body.items:
            service.add_items(session, actor, made.id, body.items)
    else:
        made = service.create_session(session, actor, project_id, items=body.items or (), **about)
    return _view(made)


@router.get("/projects/{project_id}/labeling-sessions")
def list_labeling_sessions(
    actor: Viewer, session: UnitOfWork, project_id: int, after: int | None = None, limit: Limit = 50
) -> Page:
    """Labeling sessions of a project, newest first."""
    found = service.list_sessions(session, actor, project_id, after=after, limit=limit)
    return Page(
        items=[_view(one, judged) for one, judged in found], next=found[-1][0].id if len(found) == limit else None
    )


@router.get("/labeling-sessions/{labeling_session_id}")
def get_labeling_session(actor: Viewer, session: UnitOfWork, labeling_session_id: int) -> LabelingSessionView:
    """One labeling session."""
    return _view(service.get_session(session, actor, labeling_session_id))


@router.post("/labeling-sessions/{labeling_session_id}/state")
def set_labeling_state(
    actor: Engineer, session: UnitOfWork, labeling_session_id: int, body: StateChange
) -> LabelingSessionView:
    """Open, pause or close a session."""
    return _view(service.set_state(session, actor, labeling_session_id, body.state))


@router.post("/labeling-sessions/{labeling_session_id}/items", status_code=201)
def add_items(actor: Engineer, session: UnitOfWork, labeling_session_id: int, body: NewItems) -> AddedItems:
    """Add items to the queue."""
    return AddedItems(**service.add_items(session, actor, labeling_session_id, body.items)._asdict())


@router.get("/labeling-sessions/{labeling_session_id}/items")
def list_items(
    actor: Engineer, session: UnitOfWork, labeling_session_id: int, after: int | None = None, limit: Limit = 50
) -> Page:
    """Items with the strengths of their live judgments."""
    found = service.list_items(session, actor, labeling_session_id, after=after, limit=limit)
    return Page(items=[one._asdict() for one in found], next=found[-1].id if len(found) == limit else None)


@router.post("/labeling-sessions/{labeling_session_id}/guidelines", status_code=201)
def change_guidelines(
    actor: Engineer, session: UnitOfWork, labeling_session_id: int, body: NewGuidelines
) -> Acknowledgment:
    """A new version of the guidelines; annotators must acknowledge it before their next assignment."""
    return Acknowledgment(version=service.change_guidelines(session, actor, labeling_session_id, body.text))


@router.get("/labeling-sessions/{labeling_session_id}/judgments")
def list_judgments(
    actor: Engineer, session: UnitOfWork, labeling_session_id: int, after: int | None = None, limit: Limit = 100
) -> Page:
    """The append-only record: judgments, skips and undos, oldest first."""
    found = service.list_judgments(session, actor, labeling_session_id, after=after, limit=limit)
    return Page(items=[one._asdict() for one in found], next=found[-1].id if len(found) == limit else None)


@router.get("/judgments/{judgment}/rows")
def rows_made_of(actor: Engineer, session: UnitOfWork, judgment: UUID) -> list[RowMade]:
    """Where a judgment went: the rows of dataset versions that rest on it."""
    return [RowMade(version_id=v, position=p) for v, p in freezing.rows_made_of(session, actor, judgment)]


@router.get("/labeling-sessions/{labeling_session_id}/quality")
def quality(actor: Viewer, session: UnitOfWork, labeling_session_id: int) -> dict[str, Any]:
    """Progress, agreement, bias and disputed items; ``null`` means not measured."""
    return dict(_plain(measures.measure(session, actor, labeling_session_id)))


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _plain(inner) for key, inner in value._asdict().items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


@router.get("/labeling-sessions/{labeling_session_id}/freeze")
def preview_freeze(
    actor: Viewer,
    session: UnitOfWork,
    labeling_session_id: int,
    rule: Literal["majority", "unanimous"] = "majority",
    ties: Literal["drop", "keep"] = "drop",
    minimum_judgments: Annotated[int | None, Query(ge=1, le=20)] = None,
) -> FreezeCounts:
    """What the policy would do with the items as they stand; nothing is written."""
    policy = FreezePolicy(rule=rule, ties=ties, minimum_judgments=minimum_judgments)
    return freezing.preview_freeze(session, actor, labeling_session_id, policy)


@router.post("/labeling-sessions/{labeling_session_id}/freeze", status_code=201)
def freeze(actor: Engineer, session: UnitOfWork, labeling_session_id: int, body: FreezeRequest) -> Frozen:
    """Freeze the judgments into a preference dataset version."""
    version = freezing.freeze_preferences(
        session, actor, labeling_session_id, body.policy, dataset_id=body.dataset_id, dataset_name=body.dataset_name
    )
    return Frozen(
        version_id=version.id,
        dataset_id=version.dataset_id,
        number=version.number,
        rows=version.row_count,
        counts=version.origin["counts"],
        origin=version.origin,
    )


# ---- for annotators ------------------------------------------------------------------------------------------------------


class WaitingSession(BaseModel):
    """A session in which I can judge."""

    id: int
    name: str
    done: int
    left: int


@router.get("/judge")
def my_sessions(actor: Annotator, session: UnitOfWork) -> list[WaitingSession]:
    """Open sessions in which I can judge, with what is left for me (counted up to 1,000)."""
    found = service.waiting_for(session, actor)
    return [WaitingSession(id=one.id, name=one.name, done=one.done, left=one.left) for one in found]


@router.post("/labeling-sessions/{labeling_session_id}/next")
def next_assignment(actor: Annotator, session: UnitOfWork, labeling_session_id: int) -> Desk:
    """My assignment: the one I hold, else the next of the queue. Asking twice gives the same one."""
    return judging.next_assignment(session, actor, labeling_session_id)


@router.post("/labeling-sessions/{labeling_session_id}/acknowledge")
def acknowledge_guidelines(
    actor: Annotator, session: UnitOfWork, labeling_session_id: int, body: Acknowledgment
) -> Desk:
    """I have read the guidelines; answers the next assignment."""
    judging.acknowledge_guidelines(session, actor, labeling_session_id, body.version)
    return judging.next_assignment(session, actor, labeling_session_id)


@router.post(
    "/assignments/{assignment}/judgment",
    status_code=201,
    response_model=Receipt,
    responses={409: {"description": "The assignment ran out; the answer was kept but does not count."}},
)
def submit_judgment(
    actor: Annotator, session: UnitOfWork, assignment: UUID, body: Submission
) -> Receipt | JSONResponse:
    """Answer an assignment and get the next one. Send ``idempotency_key`` back; repeating the request changes nothing."""
    answer = judging.submit_judgment(session, actor, assignment, body)
    if isinstance(answer, judging.Late):  # answered, not raised: what was kept must be committed
        problem = {
            "type": "/problems/assignment-lost",
            "title": judging.AssignmentLost.__doc__,
            "status": 409,
            "detail": answer.refusal.detail,
            "remedy": answer.refusal.remedy,
        }
        return JSONResponse(problem, status_code=409, media_type="application/problem+json")
    return answer


@router.post("/assignments/{assignment}/heartbeat")
def heartbeat(actor: Annotator, session: UnitOfWork, assignment: UUID) -> Reservation:
    """The page is still open: keep the assignment, for two hours at most."""
    return Reservation(reserved_seconds=judging.heartbeat(session, actor, assignment))


@router.post("/labeling-sessions/{labeling_session_id}/undo")
def undo_last(actor: Annotator, session: UnitOfWork, labeling_session_id: int) -> Desk:
    """Take back my last judgment; it lies before me again, same sides."""
    return judging.undo_last(session, actor, labeling_session_id)


@router.get("/labeling-sessions/{labeling_session_id}/my-judgments")
def my_judgments(
    actor: Annotator, session: UnitOfWork, labeling_session_id: int, after: int | None = None, limit: Limit = 50
) -> HistoryPage:
    """My own judgments, newest first."""
    items, following = judging.my_history(session, actor, labeling_session_id, after=after, limit=limit)
    return HistoryPage(items=items, next=following)
