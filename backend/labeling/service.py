"""Labeling sessions: their items, their guidelines, and the lists of them.

What annotators do is in ``judging.py``, what becomes of their judgments in ``freezing.py``.
"""

import datetime as dt
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

import pyarrow.parquet as pq
from sqlalchemy import and_, func, insert, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor, Permission
from backend.accounts.tables import Person
from backend.datasets import service as datasets
from backend.datasets.rows import Row
from backend.datasets.tables import Dataset, DatasetVersion
from backend.errors import Conflict, Invalid, NotFound
from backend.labeling import queue
from backend.labeling.judgments import ComparisonForm, ItemDraft, LabelingState, plain
from backend.labeling.tables import Completion, Guidelines, Item, Judgment, LabelingSession, Slot

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


def get_session(
    session: Session, actor: Actor, labeling_session_id: int, permission: Permission = Permission.VIEW
) -> LabelingSession:
    """The labeling session, for those who have *permission* in its project."""
    found = session.get(LabelingSession, labeling_session_id)
    if found is None:
        raise NotFound("There is no such labeling session, or it is not yours to see.")
    actor.require(permission, found.project_id)
    return found


def manages(session: Session, actor: Actor, labeling_session_id: int) -> bool:
    """Whether this person may see the session's own page."""
    found = session.get(LabelingSession, labeling_session_id)
    return found is not None and actor.may(Permission.VIEW, found.project_id)


def set_state(session: Session, actor: Actor, labeling_session_id: int, state: LabelingState) -> LabelingSession:
    """Open, pause or close a session. Assignments already handed out can still be sent while it is paused."""
    found = get_session(session, actor, labeling_session_id, Permission.ENGINEER)
    found.state = state
    session.flush()
    return found


# ---- items ---------------------------------------------------------------------------------------------------------------


class Added(NamedTuple):
    """What became of the rows given to :func:`add_items`."""

    added: int
    identical: int
    """Left out because both completions are the same: nothing to compare."""


def add_items(session: Session, actor: Actor, labeling_session_id: int, items: Iterable[ItemDraft]) -> Added:
    """More questions at the end of the queue."""
    found = get_session(session, actor, labeling_session_id, Permission.ENGINEER)
    return _add_items(session, found, items)


def _add_items(session: Session, found: LabelingSession, items: Iterable[ItemDraft]) -> Added:
    added = identical = 0
    source = iter(items)
    while batch := list(islice(source, 1000)):
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


# ---- guidelines ----------------------------------------------------------------------------------------------------------


def change_guidelines(session: Session, actor: Actor, labeling_session_id: int, words: str) -> int:
    """A new version of the guidelines; everybody must read it before their next assignment."""
    found = get_session(session, actor, labeling_session_id, Permission.ENGINEER)
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
    get_session(session, actor, labeling_session_id)
    query = select(Guidelines).where(Guidelines.labeling_session_id == labeling_session_id)
    return list(session.scalars(query.order_by(Guidelines.number.desc())))


# ---- lists ---------------------------------------------------------------------------------------------------------------


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
    found = get_session(session, actor, labeling_session_id, Permission.ENGINEER)
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
    found = get_session(session, actor, labeling_session_id, Permission.ENGINEER)
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
