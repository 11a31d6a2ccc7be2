"""Judgments become preference rows: votes, weighed by a policy, frozen into a dataset version whose rows lead back to them."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import InstrumentedAttribute, Session

from backend.accounts.actors import Actor, Permission
from backend.datasets import service as datasets
from backend.datasets.rows import Row, RowType
from backend.datasets.tables import Dataset, DatasetVersion
from backend.errors import Conflict, NotFound
from backend.labeling import consensus
from backend.labeling.judgments import FreezeCounts, FreezePolicy, TieKind
from backend.labeling.service import get_session
from backend.labeling.tables import Completion, Freeze, Item, Judgment, LabelingSession, Slot

log = logging.getLogger(__name__)


class NothingToFreeze(Conflict):
    """The policy leaves no row."""


def preview_freeze(session: Session, actor: Actor, labeling_session_id: int, policy: FreezePolicy) -> FreezeCounts:
    """What *policy* would do with the items as they stand; nothing is written."""
    found = get_session(session, actor, labeling_session_id)
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
    found = get_session(session, actor, labeling_session_id, Permission.ENGINEER)
    # no undo in between; submits go on, they only add
    session.refresh(found, with_for_update={"key_share": True})
    made, counts = _weighed(session, found, policy)
    # asked after the votes: a judgment sent between the two statements may be kept from undo, but never one used be left out
    last = session.scalar(select(func.max(Judgment.id)).where(Judgment.labeling_session_id == found.id)) or 0
    if not made:
        raise NothingToFreeze(
            "No item would become a row.",
            remedy="Collect more judgments, or ask for fewer per item.",
            **counts.model_dump(),
        )
    versions = session.scalars(
        select(Judgment.guideline_number)
        .join(Slot, Slot.judgment_id == Judgment.id)
        .where(Slot.labeling_session_id == found.id, Slot.state == "judged")
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
        _rows(session, made),
        RowType.PREFERENCE,
        origin=origin,
        created_by=actor.person_id,
        judgment_ids=[one.judgment_ids for one in made],
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


def freezes(session: Session, actor: Actor, labeling_session_id: int) -> list[tuple[Freeze, DatasetVersion, str]]:
    """Dataset versions made from this session, newest first, with the dataset's name."""
    found = get_session(session, actor, labeling_session_id)
    rows = session.execute(
        select(Freeze, DatasetVersion, Dataset.name)
        .join(DatasetVersion, DatasetVersion.id == Freeze.dataset_version_id)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(Freeze.labeling_session_id == found.id)
        .order_by(Freeze.id.desc())
    )
    return [(freeze, version, name) for freeze, version, name in rows]


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


class _Votes(NamedTuple):
    item_id: int
    judgment_ids: list[int]
    strengths: list[int]
    tie_kinds: list[str]


def _votes(session: Session, labeling_session_id: int) -> list[_Votes]:
    """Live judgments by item, one statement and so one moment; unjudged items have empty lists."""

    def collected(column: InstrumentedAttribute[Any]) -> ColumnElement[Any]:
        return func.array_agg(aggregate_order_by(column, Judgment.id)).filter(column.is_not(None))

    rows = session.execute(
        select(Item.id, collected(Judgment.id), collected(Judgment.strength), collected(Judgment.tie_kind))
        .outerjoin(Slot, and_(Slot.item_id == Item.id, Slot.state == "judged"))
        .outerjoin(Judgment, Judgment.id == Slot.judgment_id)
        .where(Item.labeling_session_id == labeling_session_id)
        .group_by(Item.id)
        .order_by(Item.id)
    )
    return [_Votes(item_id, ids or [], strengths or [], kinds or []) for item_id, ids, strengths, kinds in rows]


class _Made(NamedTuple):
    """A row of the version to be."""

    item_id: int
    chosen: int
    """Position of the completion that stands as chosen (0 or 1)."""
    margin: float
    probability: float
    judgment_ids: list[int]


def _weighed(session: Session, found: LabelingSession, policy: FreezePolicy) -> tuple[list[_Made], FreezeCounts]:
    made: list[_Made] = []
    tally = Counter[str]()
    both_good = 0
    for votes in _votes(session, found.id):
        verdict = consensus.weigh(votes.strengths, policy, found.overlap)
        tally[verdict.outcome] += 1
        if verdict.outcome == "tie":
            both_good += 2 * votes.tie_kinds.count(TieKind.BOTH_GOOD) >= len(votes.tie_kinds)
            ways = [0, 1] if policy.ties == "keep" else []
        else:
            ways = [] if verdict.chosen is None else [verdict.chosen]
        made += [
            _Made(votes.item_id, chosen, verdict.margin, verdict.probability, votes.judgment_ids) for chosen in ways
        ]
    counts = FreezeCounts(
        items=tally.total(),
        kept=tally["preference"],
        ties=tally["tie"],
        ties_both_good=both_good,
        ties_both_bad=tally["tie"] - both_good,
        no_majority=tally["no_majority"],
        too_few=tally["too_few"],
        unjudged=tally["unjudged"],
        rows=len(made),
    )
    return made, counts


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


def _rows(session: Session, made: Sequence[_Made]) -> Iterator[Row]:
    for start in range(0, len(made), 500):
        some = made[start : start + 500]
        ids = {one.item_id for one in some}
        asked = select(Item.id, Item.uuid, Item.prompt).where(Item.id.in_(ids))
        items = {item_id: (uuid, prompt) for item_id, uuid, prompt in session.execute(asked)}
        shown = select(Completion.item_id, Completion.position, Completion.content).where(Completion.item_id.in_(ids))
        contents = {(item_id, position): content for item_id, position, content in session.execute(shown)}
        for one in some:
            uuid, prompt = items[one.item_id]
            yield {
                "prompt": prompt,
                "chosen": contents[one.item_id, one.chosen],
                "rejected": contents[one.item_id, 1 - one.chosen],
                "margin": float(one.margin),
                "probability": one.probability,
                "item": str(uuid),
            }
