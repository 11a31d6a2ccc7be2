"""Labeling sessions: handing out assignments, recording judgments, and what follows from them.

An annotator's answers are blind by construction: they are the closed classes of ``judgments.py``, which have no field for
a model's name, another person's judgment or an item's number.
"""

import datetime as dt
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

import pyarrow.parquet as pq
from sqlalchemy import ColumnElement, and_, func, insert, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, aliased

from backend.accounts.actors import Actor, Permission
from backend.accounts.tables import Person
from backend.datasets import service as datasets
from backend.datasets.rows import Row, RowType
from backend.datasets.tables import Dataset, DatasetVersion
from backend.errors import Conflict, Invalid, NotFound
from backend.labeling import consensus, queue
from backend.labeling import quality as measures
from backend.labeling.judgments import (
    AnnotatorCompletion,
    AssignmentView,
    ComparisonForm,
    ComparisonSubmission,
    Desk,
    FreezeCounts,
    FreezePolicy,
    GuidelinesView,
    ItemDraft,
    LabelingState,
    OwnJudgment,
    OwnProgress,
    Receipt,
    Submission,
    TieKind,
    plain,
    strength_of,
)
from backend.labeling.tables import (
    Annotator,
    Assignment,
    Completion,
    Freeze,
    Guidelines,
    Item,
    Judgment,
    LabelingSession,
    LateJudgment,
    Slot,
)

log = logging.getLogger(__name__)


class IdempotencyMismatch(Invalid):
    """This assignment was answered already, with another answer."""


class NothingToUndo(Conflict):
    """There is no judgment of yours that can be taken back."""


class UndoTooLate(Conflict):
    """This judgment can no longer be taken back."""


class SessionNotOpen(Conflict):
    """This labeling session does not take judgments now."""


class NothingToFreeze(Conflict):
    """The policy leaves no row."""


class GuidelinesChanged(Conflict):
    """The guidelines have changed since you read them."""


class AssignmentLost(Conflict):
    """The assignment ran out and somebody else has taken it."""


class Late(NamedTuple):
    """What :func:`submit_judgment` answers when the slot is gone: the text was kept, and here is what comes next."""

    refusal: AssignmentLost
    desk: Desk


class Added(NamedTuple):
    """What became of the rows given to :func:`add_items`."""

    added: int
    identical: int
    """Left out because both completions are the same: nothing to compare."""


T = TypeVar("T")


def _batched(things: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(things)
    while batch := list(islice(source, size)):
        yield batch


# ---- sessions ------------------------------------------------------------------------------------------------------------


def create_session(
    session: Session,
    actor: Actor,
    project_id: int,
    *,
    name: str,
    guidelines: str,
    overlap: int = 2,
    form: ComparisonForm | None = None,
    items: Iterable[ItemDraft] = (),
    origin: dict[str, Any] | None = None,
) -> LabelingSession:
    """Open a labeling session over *items*; each gets *overlap* slots."""
    actor.require(Permission.ENGINEER, project_id)
    name = name.strip()
    if not name:
        raise Invalid("A labeling session needs a name.", field="name")
    if not 1 <= overlap <= 20:
        raise Invalid("Between 1 and 20 people can judge an item.", field="overlap")
    taken = select(LabelingSession.id).where(LabelingSession.project_id == project_id, LabelingSession.name == name)
    if session.scalar(taken) is not None:
        raise Conflict(
            f"The project has a labeling session called “{name}” already.", field="name", remedy="Choose another name."
        )
    made = LabelingSession(
        project_id=project_id,
        name=name,
        overlap=overlap,
        form=(form or ComparisonForm()).model_dump(mode="json"),
        origin=origin or {"kind": "rows"},
        created_by_id=actor.person_id,
    )
    session.add(made)
    session.flush()
    session.add(Guidelines(labeling_session_id=made.id, number=1, text=guidelines, created_by_id=actor.person_id))
    session.flush()
    added = _add_items(session, made, items)
    made.origin = {**made.origin, "identical_left_out": added.identical}
    session.flush()
    session.refresh(made)
    return made


def create_session_from_version(
    session: Session,
    actor: Actor,
    project_id: int,
    *,
    version_id: int,
    name: str,
    guidelines: str,
    overlap: int = 2,
    form: ComparisonForm | None = None,
    limit: int | None = None,
) -> LabelingSession:
    """Ask about the rows of a dataset version: preference rows, or prompts with two completions (`completions`, `models`)."""
    version = datasets.get_version(session, actor, version_id)
    home = session.get_one(Dataset, version.dataset_id)
    if home.project_id != project_id:
        raise NotFound("The project has no such dataset version.", field="version_id")
    items = _items_of(session, version, limit)
    origin = {
        "kind": "dataset_version",
        "dataset_version_id": version.id,
        "dataset": home.name,
        "number": version.number,
    }
    return create_session(
        session,
        actor,
        project_id,
        name=name,
        guidelines=guidelines,
        overlap=overlap,
        form=form,
        items=items,
        origin=origin,
    )


def _items_of(session: Session, version: DatasetVersion, limit: int | None) -> Iterator[ItemDraft]:
    number = 0
    with pq.ParquetFile(datasets.rows_path(session, version)) as file:
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                if limit is not None and number >= limit:
                    return
                number += 1
                try:
                    yield item_of_row(row)
                except ValueError as error:
                    raise Invalid(
                        f"Row {number} is not a question: {error}",
                        line=number,
                        remedy="Use preference rows (prompt, chosen, rejected), or prompt rows with a column `completions` of two texts.",
                    ) from None


def item_of_row(row: Row) -> ItemDraft:
    """One dataset row as a question; raises ``ValueError`` when it has no two completions."""
    row = {key: _unpacked(value) for key, value in row.items()}
    if row.get("prompt") is None:
        raise ValueError("it has no prompt")
    if row.get("chosen") is not None and row.get("rejected") is not None:
        completions = [row["chosen"], row["rejected"]]
        models = [row.get("chosen_model"), row.get("rejected_model")]
    elif isinstance(row.get("completions"), list) and len(row["completions"]) == 2:
        completions = row["completions"]
        models = row["models"] if isinstance(row.get("models"), list) else [None, None]
    elif row.get("completion_a") is not None and row.get("completion_b") is not None:
        completions = [row["completion_a"], row["completion_b"]]
        models = [row.get("model_a"), row.get("model_b")]
    else:
        raise ValueError("it has no two completions")
    return ItemDraft(prompt=row["prompt"], completions=completions, models=models)


def _unpacked(value: Any) -> Any:
    """Columns that are neither text nor number travel as JSON text."""
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def get_session(session: Session, actor: Actor, labeling_session_id: int) -> LabelingSession:
    """The labeling session, for those who may see aggregate quality."""
    return _fetch(session, actor, labeling_session_id, Permission.VIEW)


def _fetch(session: Session, actor: Actor, labeling_session_id: int, permission: Permission) -> LabelingSession:
    found = session.get(LabelingSession, labeling_session_id)
    if found is None:
        raise NotFound("There is no such labeling session, or it is not yours to see.")
    actor.require(permission, found.project_id)
    return found


def list_sessions(
    session: Session, actor: Actor, project_id: int, *, after: int | None = None, limit: int = 50
) -> list[tuple[LabelingSession, int]]:
    """Labeling sessions of a project, newest first, each with its number of live judgments."""
    actor.require(Permission.VIEW, project_id)
    judged = (
        select(func.count())
        .where(Slot.labeling_session_id == LabelingSession.id, Slot.state == "judged")
        .scalar_subquery()
    )
    query = select(LabelingSession, judged).where(LabelingSession.project_id == project_id)
    if after is not None:
        query = query.where(LabelingSession.id < after)
    return [(row[0], row[1]) for row in session.execute(query.order_by(LabelingSession.id.desc()).limit(limit))]


def name_for_annotator(session: Session, actor: Actor, labeling_session_id: int) -> str:
    """A session's name, for those who judge in it."""
    return _fetch(session, actor, labeling_session_id, Permission.JUDGE).name


def manages(session: Session, actor: Actor, labeling_session_id: int) -> bool:
    """Whether this person may see the session's own page."""
    found = session.get(LabelingSession, labeling_session_id)
    return found is not None and actor.may(Permission.VIEW, found.project_id)


class Waiting(NamedTuple):
    """A session that waits for me."""

    id: int
    project_id: int
    name: str
    done: int
    """Items I have judged."""
    left: int
    """Items left for me, counted up to 1,000."""


def waiting_for(session: Session, actor: Actor, project_id: int | None = None) -> list[Waiting]:
    """Open sessions in which this person may judge, with what is left for them; most work first."""
    query = select(LabelingSession).where(LabelingSession.state == LabelingState.OPEN)
    if project_id is not None:
        query = query.where(LabelingSession.project_id == project_id)
    found = [one for one in session.scalars(query) if actor.may(Permission.JUDGE, one.project_id)]
    made = [
        Waiting(one.id, one.project_id, one.name, queue.tally(session, one.id, actor.person_id, 0).done,
                queue.left_for(session, one.id, actor.person_id))
        for one in found
    ]  # fmt: skip
    return sorted(made, key=lambda one: -one.left)


def rail_counts(session: Session, actor: Actor, project_id: int) -> dict[str, int]:
    """The rail's numbers: what is left for me to judge in the project, and its open sessions."""
    counts: dict[str, int] = {}
    if actor.may(Permission.JUDGE, project_id):
        counts["judge"] = sum(one.left for one in waiting_for(session, actor, project_id))
    if actor.may(Permission.VIEW, project_id):
        there = (LabelingSession.project_id == project_id, LabelingSession.state == LabelingState.OPEN)
        counts["labeling"] = session.scalar(select(func.count()).select_from(LabelingSession).where(*there)) or 0
    return counts


def add_items(session: Session, actor: Actor, labeling_session_id: int, items: Iterable[ItemDraft]) -> Added:
    """More questions at the end of the queue."""
    found = _fetch(session, actor, labeling_session_id, Permission.ENGINEER)
    return _add_items(session, found, items)


def _add_items(session: Session, found: LabelingSession, items: Iterable[ItemDraft]) -> Added:
    added = identical = 0
    for batch in _batched(items, 1000):
        drafts: list[ItemDraft] = []
        for draft in batch:
            draft = _uniform(draft, found, added + identical + 1)
            if draft.completions[0] == draft.completions[1]:
                identical += 1
            else:
                drafts.append(draft)
        if not drafts:
            continue
        ids = session.scalars(
            insert(Item).returning(Item.id, sort_by_parameter_order=True),
            [{"labeling_session_id": found.id, "prompt": _dump(d.prompt), "priority": d.priority} for d in drafts],
        ).all()
        session.execute(
            insert(Completion),
            [
                {
                    "item_id": item_id,
                    "position": position,
                    "content": _dump(content),
                    "characters": len(plain(content)),
                    "model": draft.models[position] if draft.models else None,
                }
                for item_id, draft in zip(ids, drafts, strict=True)
                for position, content in enumerate(draft.completions)
            ],
        )
        session.execute(
            insert(Slot),
            [
                {"item_id": item_id, "number": number, "labeling_session_id": found.id, "priority": draft.priority}
                for item_id, draft in zip(ids, drafts, strict=True)
                for number in range(1, found.overlap + 1)
            ],
        )
        added += len(drafts)
    found.item_count = LabelingSession.item_count + added
    session.flush()
    session.refresh(found)
    return Added(added, identical)


def _dump(content: Any) -> Any:
    return content if isinstance(content, str) else [turn.model_dump() for turn in content]


def _uniform(draft: ItemDraft, found: LabelingSession, number: int) -> ItemDraft:
    """A frozen version has one shape, so a session asks for conversations or for plain text, never both."""
    conversational = not isinstance(draft.prompt, str)
    if found.conversational is None:
        found.conversational = conversational
    if found.conversational != conversational:
        raise Invalid(
            f"Item {number} is a {'conversation' if conversational else 'plain text'}, the ones before are not.",
            line=number,
        )
    if conversational:
        turned = [[{"role": "assistant", "content": c}] if isinstance(c, str) else c for c in draft.completions]
        return ItemDraft.model_validate({**draft.model_dump(), "completions": turned})
    if any(not isinstance(completion, str) for completion in draft.completions):
        raise Invalid(f"Item {number} has a plain prompt, so its completions must be plain text too.", line=number)
    return draft


def set_state(session: Session, actor: Actor, labeling_session_id: int, state: LabelingState) -> LabelingSession:
    """Open, pause or close a session. Assignments already handed out can still be sent while it is paused."""
    found = _fetch(session, actor, labeling_session_id, Permission.ENGINEER)
    found.state = state
    session.flush()
    return found


# ---- guidelines ----------------------------------------------------------------------------------------------------------


def change_guidelines(session: Session, actor: Actor, labeling_session_id: int, words: str) -> int:
    """A new version of the guidelines; everybody must read it before their next assignment."""
    found = _fetch(session, actor, labeling_session_id, Permission.ENGINEER)
    session.refresh(found, with_for_update={"key_share": True})
    found.guideline_number += 1
    session.add(
        Guidelines(
            labeling_session_id=found.id, number=found.guideline_number, text=words, created_by_id=actor.person_id
        )
    )
    session.flush()
    return found.guideline_number


def guidelines(session: Session, actor: Actor, labeling_session_id: int) -> list[Guidelines]:
    """All versions of the guidelines, newest first."""
    _fetch(session, actor, labeling_session_id, Permission.VIEW)
    query = select(Guidelines).where(Guidelines.labeling_session_id == labeling_session_id)
    return list(session.scalars(query.order_by(Guidelines.number.desc())))


def acknowledge_guidelines(session: Session, actor: Actor, labeling_session_id: int, version: int) -> None:
    """I have read this version. Only the one in force can be acknowledged."""
    found = _fetch(session, actor, labeling_session_id, Permission.JUDGE)
    if version != found.guideline_number:
        raise Conflict(
            "The guidelines have changed again.", remedy="Read the new version.", version=found.guideline_number
        )
    queue.take_turn(session, found.id, actor.person_id)
    session.execute(
        update(Annotator)
        .where(Annotator.labeling_session_id == found.id, Annotator.person_id == actor.person_id)
        .values(guideline_number=version, acknowledged_at=func.clock_timestamp())
    )


# ---- the annotator's desk ------------------------------------------------------------------------------------------------


def next_assignment(session: Session, actor: Actor, labeling_session_id: int) -> Desk:
    """What lies before this person: the assignment they hold already, else the next of the queue, blind."""
    found = _fetch(session, actor, labeling_session_id, Permission.JUDGE)
    acknowledged = queue.take_turn(session, found.id, actor.person_id)
    return _desk(session, found, actor, acknowledged)


def _desk(session: Session, found: LabelingSession, actor: Actor, acknowledged: int, words: str | None = None) -> Desk:
    form = ComparisonForm.model_validate(found.form)
    tally = queue.tally(session, found.id, actor.person_id, form.undo_minutes)
    held: queue.Held | None = None
    if found.state == LabelingState.OPEN and acknowledged == found.guideline_number:
        minutes = form.reservation_minutes
        if tally.holds:
            held = queue.resume(session, found.id, actor.person_id, minutes)
        held = held or queue.claim(session, found.id, actor.person_id, minutes, tally.balance)
    if words is None:
        words = session.scalar(select(Guidelines.text).where(_in_force(found.id, found.guideline_number)))
    return Desk(
        labeling_session_id=found.id,
        name=found.name,
        state=LabelingState(found.state),
        form=form,
        guidelines=GuidelinesView(
            version=found.guideline_number, text=words or "", acknowledged=acknowledged == found.guideline_number
        ),
        progress=OwnProgress(done=tally.done, items=found.item_count, undo_possible=tally.undoable is not None),
        assignment=_view(held) if held else None,
    )


def _in_force(labeling_session_id: Any, number: Any) -> ColumnElement[bool]:
    return and_(Guidelines.labeling_session_id == labeling_session_id, Guidelines.number == number)


def _view(held: queue.Held) -> AssignmentView:
    shown = [held.completions[position] for position in held.shown_order]
    return AssignmentView(
        uuid=held.uuid,
        idempotency_key=held.idempotency_key,
        prompt=held.prompt,
        completions=[AnnotatorCompletion(uuid=uuid, content=content) for uuid, content in shown],
        reserved_seconds=round(held.reserved_seconds, 1),
    )


def heartbeat(session: Session, actor: Actor, assignment: UUID) -> float:
    """The page is still open: keep the assignment; seconds until it runs out. Raises :class:`AssignmentLost`."""
    found = _assignment(session, actor, assignment).found
    form = ComparisonForm.model_validate(found.form)
    left = queue.extend(session, assignment, actor.person_id, form.reservation_minutes)
    if left is None:
        raise AssignmentLost("This assignment is no longer yours.", remedy="Load the next one.")
    return left


class _Called(NamedTuple):
    """An assignment of the actor, with what answering it takes."""

    assignment: Assignment
    found: LabelingSession
    guidelines: str
    completions: list[UUID]
    """By position in the record."""


def _assignment(session: Session, actor: Actor, assignment: UUID) -> _Called:
    completions = (
        select(func.array_agg(aggregate_order_by(Completion.uuid, Completion.position)))
        .where(Completion.item_id == Assignment.item_id)
        .scalar_subquery()
    )
    row = session.execute(
        select(Assignment, LabelingSession, Guidelines.text, completions)
        .join(LabelingSession, LabelingSession.id == Assignment.labeling_session_id)
        .join(Guidelines, _in_force(LabelingSession.id, LabelingSession.guideline_number))
        .where(Assignment.uuid == assignment, Assignment.annotator_id == actor.person_id)
    ).one_or_none()
    if row is None:
        raise NotFound("There is no such assignment, or it is not yours.")
    actor.require(Permission.JUDGE, row[1].project_id)
    return _Called(*row)


def request_hash(submission: Submission) -> bytes:
    """SHA-256 of what was *said*. Timings are left out: a retry after a lost connection may have measured longer."""
    said = submission.model_dump(mode="json", exclude={"active_ms", "first_input_ms"})
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).digest()


def submit_judgment(session: Session, actor: Actor, assignment: UUID, submission: Submission) -> Receipt | Late:
    """Record what an annotator said and hand out the next assignment, all in the caller's transaction.

    Sending the same thing twice records it once and answers the same; another answer under the same key is
    :class:`IdempotencyMismatch`. After the reservation ran out the answer still counts while the item has room; else it
    is kept beside the record and :class:`Late` comes back (not raised: raising would roll back what was kept).
    """
    called = _assignment(session, actor, assignment)
    held, found = called.assignment, called.found
    form = ComparisonForm.model_validate(found.form)
    if submission.idempotency_key != held.idempotency_key:
        raise Invalid("The key is not the one that came with this assignment.", field="idempotency_key")
    if isinstance(submission, ComparisonSubmission) and form.reason == "required" and not submission.reason.strip():
        raise Invalid("This session asks for a reason with every judgment.", field="reason")
    acknowledged = queue.take_turn(session, found.id, actor.person_id)
    said = request_hash(submission)
    closed = found.state == LabelingState.CLOSED
    slot_id = None if closed else queue.slot_for(session, held.id, held.item_id, actor.person_id, held.idempotency_key)
    if slot_id is not None:
        record = _record(called, slot_id, submission, said, acknowledged)
        uuid = queue.store(session, record, keeps_slot=submission.kind != "skip")
        desk = _desk(session, found, actor, acknowledged, called.guidelines)
        return Receipt(judgment=uuid, kind=submission.kind, repeated=False, desk=desk)
    before = session.execute(
        select(Judgment.uuid, Judgment.kind, Judgment.request_hash).where(
            Judgment.annotator_id == actor.person_id, Judgment.idempotency_key == submission.idempotency_key
        )
    ).one_or_none()
    if before is not None:
        if bytes(before.request_hash) != said:
            raise IdempotencyMismatch("Your first answer to this assignment stands.", remedy="Undo it to answer again.")
        desk = _desk(session, found, actor, acknowledged, called.guidelines)
        return Receipt(judgment=before.uuid, kind=before.kind, repeated=True, desk=desk)
    late = {"assignment_id": held.id, "submission": submission.model_dump(mode="json")}
    session.execute(upsert(LateJudgment).values(late).on_conflict_do_nothing())
    why = "The session was closed" if closed else "The assignment ran out and somebody else has taken it"
    refusal = AssignmentLost(
        f"{why}. Your answer was kept for the engineers, but it does not count.", remedy="Go on with the next one."
    )
    return Late(refusal, _desk(session, found, actor, acknowledged, called.guidelines))


def _record(called: _Called, slot_id: int, submission: Submission, said: bytes, acknowledged: int) -> dict[str, Any]:
    held = called.assignment
    first_input = (
        held.assigned_at + dt.timedelta(milliseconds=submission.first_input_ms)
        if submission.first_input_ms is not None
        else None
    )
    made: dict[str, Any] = {
        "labeling_session_id": held.labeling_session_id,
        "item_id": held.item_id,
        "slot_id": slot_id,
        "assignment_id": held.id,
        "annotator_id": held.annotator_id,
        "kind": submission.kind,
        "reason": submission.reason.strip(),
        "flags": [str(flag) for flag in submission.flags],
        "shown_order": held.shown_order,
        "guideline_number": acknowledged,
        "opened_at": held.assigned_at,
        "first_input_at": first_input,
        "active_ms": submission.active_ms,
        "idempotency_key": submission.idempotency_key,
        "request_hash": said,
    }
    if isinstance(submission, ComparisonSubmission):
        first, second = called.completions
        strength = strength_of(submission.point, held.shown_order)
        tie_kind = submission.tie_kind and str(submission.tie_kind)
        payload = {
            "kind": "comparison",
            "first": str(first),
            "second": str(second),
            "strength": strength,
            "tie_kind": tie_kind,
        }
        return {**made, "point": submission.point, "strength": strength, "tie_kind": tie_kind, "payload": payload}
    reason = str(submission.skip_reason)
    return {**made, "skip_reason": reason, "payload": {"kind": "skip", "reason": reason}}


def undo_last(session: Session, actor: Actor, labeling_session_id: int) -> Desk:
    """Take back my last judgment: a new record supersedes it, and its assignment lies before me again, same sides."""
    found = _fetch(session, actor, labeling_session_id, Permission.JUDGE)
    acknowledged = queue.take_turn(session, found.id, actor.person_id)
    # a freeze holds this row exclusively: it reads the judgments either before or after the undo, never half of it
    session.execute(select(LabelingSession.id).where(LabelingSession.id == found.id).with_for_update(read=True))
    form = ComparisonForm.model_validate(found.form)
    last_id = queue.tally(session, found.id, actor.person_id, form.undo_minutes).undoable
    if last_id is None:
        raise NothingToUndo(
            f"Judgments can be taken back for {form.undo_minutes:g} minutes, and not after they are in a frozen version."
        )
    last = session.get_one(Judgment, last_id)
    if last.kind == "comparison":
        slot_id: int | None = last.slot_id
    else:
        slot_id = session.scalar(
            select(Slot.id)
            .where(Slot.item_id == last.item_id, Slot.state == "free")
            .order_by(Slot.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
    if slot_id is None:
        raise UndoTooLate("You skipped this item, and others have taken it since.")
    minutes = form.reservation_minutes
    queue.assign(session, found.id, actor.person_id, last.item_id, slot_id, last.shown_order, minutes)
    session.add(
        Judgment(
            labeling_session_id=found.id,
            item_id=last.item_id,
            slot_id=slot_id,
            assignment_id=last.assignment_id,
            annotator_id=actor.person_id,
            kind="undo",
            payload={"kind": "undo", "of": str(last.uuid)},
            shown_order=last.shown_order,
            guideline_number=acknowledged,
            opened_at=func.clock_timestamp(),
            idempotency_key=uuid4(),
            request_hash=hashlib.sha256(f"undo {last.uuid}".encode()).digest(),
            supersedes_id=last.id,
        )
    )
    session.flush()
    return _desk(session, found, actor, acknowledged)


def my_history(
    session: Session, actor: Actor, labeling_session_id: int, *, after: int | None = None, limit: int = 50
) -> tuple[list[OwnJudgment], int | None]:
    """My own judgments, newest first, as I saw them; and the cursor of the next page."""
    found = _fetch(session, actor, labeling_session_id, Permission.JUDGE)
    undo = aliased(Judgment)
    undone = select(undo.id).where(undo.supersedes_id == Judgment.id).exists()
    query = (
        select(Judgment, Item.prompt, undone)
        .join(Item, Item.id == Judgment.item_id)
        .where(
            Judgment.labeling_session_id == found.id, Judgment.annotator_id == actor.person_id, Judgment.kind != "undo"
        )
    )
    if after is not None:
        query = query.where(Judgment.id < after)
    rows = session.execute(query.order_by(Judgment.id.desc()).limit(limit + 1)).all()
    page = [
        OwnJudgment(
            uuid=one.uuid,
            kind=one.kind,
            prompt=prompt,
            point=one.point,
            tie_kind=TieKind(one.tie_kind) if one.tie_kind else None,
            skip_reason=one.skip_reason,
            reason=one.reason,
            undone=was_undone,
            submitted_at=one.submitted_at.isoformat(),
        )
        for one, prompt, was_undone in rows[:limit]
    ]
    return page, rows[limit - 1][0].id if len(rows) > limit else None


# ---- freezing ------------------------------------------------------------------------------------------------------------


class _Votes(NamedTuple):
    item_id: int
    strengths: list[int]
    judgment_ids: list[int]
    tie_kinds: list[str]


def _live(labeling_session_id: int) -> ColumnElement[bool]:
    return and_(Slot.labeling_session_id == labeling_session_id, Slot.state == "judged")


def _votes(session: Session, labeling_session_id: int) -> list[_Votes]:
    """Live judgments by item, one statement and so one moment; unjudged items have empty lists."""
    rows = session.execute(
        select(
            Item.id,
            func.array_agg(aggregate_order_by(Judgment.strength, Judgment.id)).filter(Judgment.id.is_not(None)),
            func.array_agg(aggregate_order_by(Judgment.id, Judgment.id)).filter(Judgment.id.is_not(None)),
            func.array_agg(aggregate_order_by(Judgment.tie_kind, Judgment.id)).filter(Judgment.tie_kind.is_not(None)),
        )
        .outerjoin(Slot, and_(Slot.item_id == Item.id, Slot.state == "judged"))
        .outerjoin(Judgment, Judgment.id == Slot.judgment_id)
        .where(Item.labeling_session_id == labeling_session_id)
        .group_by(Item.id)
        .order_by(Item.id)
    )
    return [_Votes._make([row[0], row[1] or [], row[2] or [], row[3] or []]) for row in rows]


def _weighed(
    session: Session, found: LabelingSession, policy: FreezePolicy
) -> tuple[list[tuple[_Votes, consensus.Verdict]], FreezeCounts]:
    weighed = [(votes, consensus.weigh(votes.strengths, policy, found.overlap)) for votes in _votes(session, found.id)]
    tally = dict.fromkeys(("preference", "tie", "no_majority", "too_few", "unjudged"), 0)
    good = 0
    for votes, verdict in weighed:
        tally[verdict.outcome] += 1
        good += verdict.outcome == "tie" and 2 * votes.tie_kinds.count(TieKind.BOTH_GOOD) >= len(votes.tie_kinds)
    counts = FreezeCounts(
        items=len(weighed),
        kept=tally["preference"],
        ties=tally["tie"],
        ties_both_good=good,
        ties_both_bad=tally["tie"] - good,
        no_majority=tally["no_majority"],
        too_few=tally["too_few"],
        unjudged=tally["unjudged"],
        rows=tally["preference"] + (2 * tally["tie"] if policy.ties == "keep" else 0),
    )
    return weighed, counts


def preview_freeze(session: Session, actor: Actor, labeling_session_id: int, policy: FreezePolicy) -> FreezeCounts:
    """What *policy* would do with the items as they stand; nothing is written."""
    found = _fetch(session, actor, labeling_session_id, Permission.VIEW)
    return _weighed(session, found, policy)[1]


def freeze_preferences(
    session: Session,
    actor: Actor,
    labeling_session_id: int,
    policy: FreezePolicy,
    *,
    dataset_id: int | None = None,
    dataset_name: str | None = None,
) -> DatasetVersion:
    """Turn the live judgments into a dataset version of preference rows, each leading back to its judgments.

    It goes to *dataset_id*, else to the dataset called *dataset_name*, else to the one of the last freeze, else to a new
    one named after the session. From now on these judgments cannot be undone.
    """
    found = _fetch(session, actor, labeling_session_id, Permission.ENGINEER)
    # no undo in between; submits go on, they only add
    session.refresh(found, with_for_update={"key_share": True})
    last = session.scalar(select(func.max(Judgment.id)).where(Judgment.labeling_session_id == found.id)) or 0
    weighed, counts = _weighed(session, found, policy)
    if counts.rows == 0:
        raise NothingToFreeze(
            "No item would become a row.",
            remedy="Collect more judgments, or ask for fewer per item.",
            **counts.model_dump(),
        )
    used = [
        (votes, verdict)
        for votes, verdict in weighed
        if verdict.outcome == "preference" or (verdict.outcome == "tie" and policy.ties == "keep")
    ]
    versions = session.scalars(
        select(Judgment.guideline_number)
        .join(Slot, Slot.judgment_id == Judgment.id)
        .where(_live(found.id))
        .distinct()
        .order_by(Judgment.guideline_number)
    ).all()
    origin = {
        "kind": "labeling",
        "labeling_session_id": found.id,
        "labeling_session": found.name,
        "guideline_versions": list(versions),
        "overlap": found.overlap,
        "policy": policy.model_dump(mode="json"),
        "counts": counts.model_dump(mode="json"),
        "last_judgment_id": last,
    }
    version = datasets.create_version(
        session,
        _dataset_for(session, actor, found, dataset_id, dataset_name),
        _rows(session, used),
        RowType.PREFERENCE,
        origin=origin,
        created_by=actor.person_id,
        judgment_ids=[
            votes.judgment_ids for votes, verdict in used for _ in range(2 if verdict.outcome == "tie" else 1)
        ],
    )
    session.add(
        Freeze(
            labeling_session_id=found.id,
            dataset_version_id=version.id,
            policy=policy.model_dump(mode="json"),
            counts=counts.model_dump(mode="json"),
            last_judgment_id=last,
            created_by_id=actor.person_id,
        )
    )
    session.flush()
    log.info("labeling session %d frozen into dataset version %d: %d rows", found.id, version.id, counts.rows)
    return version


def _dataset_for(
    session: Session, actor: Actor, found: LabelingSession, dataset_id: int | None, dataset_name: str | None
) -> int:
    if dataset_id is not None:
        given = session.get(Dataset, dataset_id)
        if given is None or given.project_id != found.project_id:
            raise NotFound("The project has no such dataset.", field="dataset_id")
        return given.id
    if dataset_name is None:
        before = session.scalar(
            select(DatasetVersion.dataset_id)
            .join(Freeze, Freeze.dataset_version_id == DatasetVersion.id)
            .where(Freeze.labeling_session_id == found.id)
            .order_by(Freeze.id.desc())
            .limit(1)
        )
        if before is not None:
            return before
    name = dataset_name or f"{found.name}: preferences"
    named = session.scalar(select(Dataset.id).where(Dataset.project_id == found.project_id, Dataset.name == name))
    if named is not None:
        return named
    words = f"Preferences frozen from the labeling session “{found.name}”."
    return datasets.create_dataset(session, actor, found.project_id, name, words).id


def _rows(session: Session, used: Sequence[tuple[_Votes, consensus.Verdict]]) -> Iterator[Row]:
    for some in _batched(used, 500):
        ids = [votes.item_id for votes, _ in some]
        prompts = {
            item_id: (uuid, prompt)
            for item_id, uuid, prompt in session.execute(
                select(Item.id, Item.uuid, Item.prompt).where(Item.id.in_(ids))
            )
        }
        contents = {
            (item_id, position): content
            for item_id, position, content in session.execute(
                select(Completion.item_id, Completion.position, Completion.content).where(Completion.item_id.in_(ids))
            )
        }
        for votes, verdict in some:
            uuid, prompt = prompts[votes.item_id]
            ways = [verdict.chosen] if verdict.chosen is not None else [0, 1]
            for chosen in ways:
                yield {
                    "prompt": prompt,
                    "chosen": contents[votes.item_id, chosen],
                    "rejected": contents[votes.item_id, 1 - chosen],
                    "margin": float(verdict.margin),
                    "item": str(uuid),
                }


def freezes(session: Session, actor: Actor, labeling_session_id: int) -> list[tuple[Freeze, DatasetVersion, str]]:
    """Dataset versions made from this session, newest first, with the dataset's name."""
    found = _fetch(session, actor, labeling_session_id, Permission.VIEW)
    rows = session.execute(
        select(Freeze, DatasetVersion, Dataset.name)
        .join(DatasetVersion, DatasetVersion.id == Freeze.dataset_version_id)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(Freeze.labeling_session_id == found.id)
        .order_by(Freeze.id.desc())
    )
    return [(freeze, version, name) for freeze, version, name in rows]


# ---- quality -------------------------------------------------------------------------------------------------------------


def quality(session: Session, actor: Actor, labeling_session_id: int) -> measures.Quality:
    """Progress, agreement, bias, pace and disputed items. Annotators by name only for engineers."""
    found = _fetch(session, actor, labeling_session_id, Permission.VIEW)
    people = actor.may(Permission.ENGINEER, found.project_id)
    return measures.measure(session, found.id, found.overlap, with_people=people)


class ItemLine(NamedTuple):
    """One item of a session, for engineers."""

    id: int
    uuid: UUID
    prompt: Any
    judged: int
    strengths: list[int]


def list_items(
    session: Session, actor: Actor, labeling_session_id: int, *, after: int | None = None, limit: int = 50
) -> list[ItemLine]:
    """Items in the order they were added, with the live judgments of each."""
    found = _fetch(session, actor, labeling_session_id, Permission.ENGINEER)
    query = (
        select(
            Item.id,
            Item.uuid,
            Item.prompt,
            func.array_agg(aggregate_order_by(Judgment.strength, Judgment.id)).filter(Judgment.id.is_not(None)),
        )
        .outerjoin(Slot, and_(Slot.item_id == Item.id, Slot.state == "judged"))
        .outerjoin(Judgment, Judgment.id == Slot.judgment_id)
        .where(Item.labeling_session_id == found.id, Item.id > (after or 0))
        .group_by(Item.id)
        .order_by(Item.id)
        .limit(limit)
    )
    return [ItemLine(i, uuid, prompt, len(s or []), s or []) for i, uuid, prompt, s in session.execute(query)]


class JudgmentLine(NamedTuple):
    """One record of the log, for engineers."""

    id: int
    uuid: UUID
    item_id: int
    annotator: str
    kind: str
    strength: int | None
    point: int | None
    tie_kind: str | None
    skip_reason: str | None
    reason: str
    flags: list[str]
    shown_order: list[int]
    guideline_version: int
    active_ms: int | None
    submitted_at: dt.datetime
    supersedes_id: int | None


def list_judgments(
    session: Session, actor: Actor, labeling_session_id: int, *, after: int | None = None, limit: int = 100
) -> list[JudgmentLine]:
    """The append-only record, oldest first: judgments, skips and undos."""
    found = _fetch(session, actor, labeling_session_id, Permission.ENGINEER)
    query = (
        select(
            Judgment.id,
            Judgment.uuid,
            Judgment.item_id,
            Person.name,
            Judgment.kind,
            Judgment.strength,
            Judgment.point,
            Judgment.tie_kind,
            Judgment.skip_reason,
            Judgment.reason,
            Judgment.flags,
            Judgment.shown_order,
            Judgment.guideline_number,
            Judgment.active_ms,
            Judgment.submitted_at,
            Judgment.supersedes_id,
        )
        .join(Person, Person.id == Judgment.annotator_id)
        .where(Judgment.labeling_session_id == found.id, Judgment.id > (after or 0))
        .order_by(Judgment.id)
        .limit(limit)
    )
    return [JudgmentLine._make(row) for row in session.execute(query)]


def rows_made_of(session: Session, actor: Actor, judgment: UUID) -> list[tuple[int, int]]:
    """Where a judgment went: (dataset version, row counted from 0)."""
    found = session.execute(
        select(Judgment.id, LabelingSession.project_id)
        .join(LabelingSession, LabelingSession.id == Judgment.labeling_session_id)
        .where(Judgment.uuid == judgment)
    ).one_or_none()
    if found is None:
        raise NotFound("There is no such judgment, or it is not yours to see.")
    actor.require(Permission.ENGINEER, found.project_id)
    return datasets.rows_from_judgments(session, [found.id])
