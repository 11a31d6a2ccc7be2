"""What an annotator does: take the next assignment, judge it or skip it, take the last judgment back, look at one's own.

An annotator's answers are blind by construction: they are the closed classes of ``judgments.py``, which have no field for
a model's name, another person's judgment or an item's number.
"""

import datetime as dt
import hashlib
import json
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, aliased

from backend.accounts.actors import Actor, Permission
from backend.errors import Conflict, Invalid, NotFound
from backend.labeling import queue
from backend.labeling.judgments import (
    AnnotatorCompletion,
    AssignmentView,
    ComparisonForm,
    ComparisonSubmission,
    Desk,
    GuidelinesView,
    LabelingState,
    OwnJudgment,
    OwnProgress,
    Receipt,
    Submission,
    TieKind,
    strength_of,
)
from backend.labeling.service import get_session
from backend.labeling.tables import (
    Annotator,
    Assignment,
    Completion,
    Guidelines,
    Item,
    Judgment,
    LabelingSession,
    LateJudgment,
    Slot,
)


class GuidelinesChanged(Conflict):
    """The guidelines have changed since you read them."""


class AssignmentLost(Conflict):
    """The assignment ran out and somebody else has taken it."""


class IdempotencyMismatch(Invalid):
    """This assignment was answered already, with another answer."""


class NothingToUndo(Conflict):
    """There is no judgment of yours that can be taken back."""


class UndoTooLate(Conflict):
    """This judgment can no longer be taken back."""


class Late(NamedTuple):
    """What :func:`submit_judgment` answers when the slot is gone: the text was kept, and here is what comes next."""

    refusal: AssignmentLost
    desk: Desk


# ---- the desk ------------------------------------------------------------------------------------------------------------


def acknowledge_guidelines(session: Session, actor: Actor, labeling_session_id: int, version: int) -> None:
    """I have read this version. Only the one in force can be acknowledged."""
    found = get_session(session, actor, labeling_session_id, Permission.JUDGE)
    if version != found.guideline_number:
        raise GuidelinesChanged(
            "The guidelines have changed again.", remedy="Read the new version.", version=found.guideline_number
        )
    queue.take_turn(session, found.id, actor.person_id)
    session.execute(
        update(Annotator)
        .where(Annotator.labeling_session_id == found.id, Annotator.person_id == actor.person_id)
        .values(guideline_number=version, acknowledged_at=func.clock_timestamp())
    )


def next_assignment(session: Session, actor: Actor, labeling_session_id: int) -> Desk:
    """What lies before this person: the assignment they hold already, else the next of the queue, blind."""
    found = get_session(session, actor, labeling_session_id, Permission.JUDGE)
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


# ---- one assignment ------------------------------------------------------------------------------------------------------


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
    said = _hash(submission)
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


def _hash(submission: Submission) -> bytes:
    """SHA-256 of what was *said*. Timings are left out: a retry after a lost connection may have measured longer."""
    said = submission.model_dump(mode="json", exclude={"active_ms", "first_input_ms"})
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).digest()


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


# ---- what I said before --------------------------------------------------------------------------------------------------


def undo_last(session: Session, actor: Actor, labeling_session_id: int) -> Desk:
    """Take back my last judgment: a new record supersedes it, and its assignment lies before me again, same sides."""
    found = get_session(session, actor, labeling_session_id, Permission.JUDGE)
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
    found = get_session(session, actor, labeling_session_id, Permission.JUDGE)
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
