"""What becomes of judgments when they are frozen, against a real Postgres."""

import pyarrow.parquet as pq
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.labeling import freezing, judging
from backend.labeling.judgments import FreezePolicy
from backend.labeling.tables import LabelingSession


def test_the_preview_adds_up_and_the_version_is_what_it_said(
    session: Session, judged: LabelingSession, engineer: Actor
) -> None:
    preview = freezing.preview_freeze(session, engineer, judged.id, FreezePolicy())
    assert preview.model_dump() == {
        "items": 6, "kept": 2, "ties": 1, "ties_both_good": 0, "ties_both_bad": 1, "no_majority": 1, "too_few": 1,
        "unjudged": 1, "rows": 2,
    }  # fmt: skip
    assert preview.items == preview.kept + preview.ties + preview.no_majority + preview.too_few + preview.unjudged
    version = freezing.freeze_preferences(session, engineer, judged.id, FreezePolicy())
    assert version.row_count == 2
    assert version.row_type == "preference"
    assert version.origin["counts"] == preview.model_dump()
    assert version.origin["guideline_versions"] == [1]
    rows = pq.read_table(datasets.rows_path(session, version)).to_pylist()
    assert [(row["prompt"], row["chosen"], row["margin"]) for row in rows] == [
        ("Question 0", "the second one 0", 2.5),
        ("Question 1", "the second one 1", 2.0),
    ]
    behind = session.execute(
        text("select o.position, j.strength from dataset_row_origin o join judgment j on j.id = o.judgment_id "
             "where o.version_id = :v order by 1, j.id"), {"v": version.id}
    ).all()  # fmt: skip
    assert sorted(tuple(row) for row in behind) == [(0, 2), (0, 3), (1, 1), (1, 3)]


def test_kept_ties_stand_both_ways_with_margin_zero(session: Session, judged: LabelingSession, engineer: Actor) -> None:
    version = freezing.freeze_preferences(
        session, engineer, judged.id, FreezePolicy(ties="keep"), dataset_name="With ties"
    )
    rows = pq.read_table(datasets.rows_path(session, version)).to_pylist()
    tied = [row for row in rows if row["prompt"] == "Question 2"]
    assert len(rows) == 4
    assert [row["margin"] for row in tied] == [0.0, 0.0]
    assert {(row["chosen"], row["rejected"]) for row in tied} == {
        ("first 2", "the second one 2"), ("the second one 2", "first 2")
    }  # fmt: skip
    assert len({row["item"] for row in tied}) == 1


def test_what_is_frozen_cannot_be_undone(
    session: Session, judged: LabelingSession, engineer: Actor, two: tuple[Actor, Actor]
) -> None:
    assert judging.next_assignment(session, two[0], judged.id).progress.undo_possible
    freezing.freeze_preferences(session, engineer, judged.id, FreezePolicy())
    assert not judging.next_assignment(session, two[0], judged.id).progress.undo_possible
    with pytest.raises(judging.NothingToUndo):
        judging.undo_last(session, two[0], judged.id)


def test_the_next_freeze_is_the_next_version_of_the_same_dataset(
    session: Session, judged: LabelingSession, engineer: Actor, two: tuple[Actor, Actor]
) -> None:
    first = freezing.freeze_preferences(session, engineer, judged.id, FreezePolicy())
    second = freezing.freeze_preferences(session, engineer, judged.id, FreezePolicy(minimum_judgments=1))
    assert (second.dataset_id, second.number) == (first.dataset_id, 2)
    assert second.row_count == 3
    assert [version.number for _, version, _ in freezing.freezes(session, engineer, judged.id)] == [2, 1]


def test_an_empty_freeze_says_so(session: Session, labeling: LabelingSession, engineer: Actor) -> None:
    with pytest.raises(freezing.NothingToFreeze):
        freezing.freeze_preferences(session, engineer, labeling.id, FreezePolicy())
