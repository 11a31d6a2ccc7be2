"""Assignments, judgments, undo and freezing, against a real Postgres."""

import itertools
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.errors import Conflict, Forbidden, Invalid, NotFound
from backend.labeling import queue, service
from backend.labeling.judgments import (
    ComparisonForm,
    ComparisonSubmission,
    Desk,
    FreezePolicy,
    ItemDraft,
    LabelingState,
    Receipt,
    SkipReason,
    SkipSubmission,
    TieKind,
)
from backend.labeling.tables import LabelingSession
from backend.projects.service import ProjectName
from tests.conftest import MakeActor

SECRET = "canary-model-7b"


def drafts(n: int) -> list[ItemDraft]:
    return [
        ItemDraft(
            prompt=f"Question {i}", completions=[f"first {i}", f"the second one {i}"], models=[SECRET, SECRET + "-b"]
        )
        for i in range(n)
    ]


@pytest.fixture
def labeling(session: Session, engineer: Actor, project: ProjectName) -> LabelingSession:
    """Three items, two judgments each."""
    return service.create_session(
        session, engineer, project.id, name="Round 1", guidelines="Prefer *right* answers.", overlap=2, items=drafts(3)
    )


@pytest.fixture
def two(make_actor: MakeActor) -> tuple[Actor, Actor]:
    return make_actor("annotator"), make_actor("annotator")


def sit_down(session: Session, actor: Actor, labeling: LabelingSession) -> Desk:
    """The desk of somebody who has read the guidelines."""
    service.acknowledge_guidelines(session, actor, labeling.id, labeling.guideline_number)
    return service.next_assignment(session, actor, labeling.id)


def answer(desk: Desk, point: int, tie_kind: TieKind | None = None, **more: Any) -> ComparisonSubmission:
    assert desk.assignment is not None
    return ComparisonSubmission(idempotency_key=desk.assignment.idempotency_key, point=point, tie_kind=tie_kind, **more)


def submit(session: Session, actor: Actor, desk: Desk, point: int, tie_kind: TieKind | None = None) -> Receipt:
    assert desk.assignment is not None
    receipt = service.submit_judgment(session, actor, desk.assignment.uuid, answer(desk, point, tie_kind))
    assert isinstance(receipt, Receipt)
    return receipt


def prefer(session: Session, actor: Actor, desk: Desk, words: str, strength: int = 2) -> Receipt:
    """Prefer the completion that begins with *words*, wherever it stands."""
    assert desk.assignment is not None
    left = str(desk.assignment.completions[0].content).startswith(words)
    return submit(session, actor, desk, 4 - strength if left else 4 + strength)


def log(session: Session, labeling: LabelingSession) -> list[Any]:
    return list(
        session.execute(
            text(
                "select kind, strength, point, shown_order, annotator_id, item_id from judgment where labeling_session_id = :s order by id"
            ),
            {"s": labeling.id},
        )
    )


def test_guidelines_come_first_and_again_after_a_change(
    session: Session, labeling: LabelingSession, engineer: Actor, annotator: Actor
) -> None:
    desk = service.next_assignment(session, annotator, labeling.id)
    assert desk.assignment is None
    assert not desk.guidelines.acknowledged
    desk = sit_down(session, annotator, labeling)
    assert desk.assignment is not None
    assert desk.guidelines.acknowledged
    assert service.change_guidelines(session, engineer, labeling.id, "Shorter is better.") == 2
    # what was handed out under version 1 still counts, as version 1
    receipt = submit(session, annotator, desk, 2)
    assert receipt.desk.assignment is None
    assert receipt.desk.guidelines.version == 2
    assert session.scalar(text("select guideline_number from judgment")) == 1
    with pytest.raises(Conflict):
        service.acknowledge_guidelines(session, annotator, labeling.id, 1)
    assert sit_down(session, annotator, labeling).assignment is not None


def test_a_reload_and_a_second_tab_show_the_same_assignment(
    session: Session, labeling: LabelingSession, annotator: Actor
) -> None:
    desk = sit_down(session, annotator, labeling)
    again = service.next_assignment(session, annotator, labeling.id)
    assert desk.assignment is not None
    assert again.assignment is not None
    assert again.assignment.uuid == desk.assignment.uuid
    assert again.assignment.completions == desk.assignment.completions


def test_sending_twice_records_once(session: Session, labeling: LabelingSession, annotator: Actor) -> None:
    desk = sit_down(session, annotator, labeling)
    first, second = submit(session, annotator, desk, 1), submit(session, annotator, desk, 1)
    assert (first.repeated, second.repeated) == (False, True)
    assert first.judgment == second.judgment
    assert (
        first.desk.assignment is not None
        and first.desk.assignment
        == second.desk.assignment.model_copy(update={"reserved_seconds": first.desk.assignment.reserved_seconds})
        if second.desk.assignment
        else False
    )
    assert len(log(session, labeling)) == 1
    with pytest.raises(service.IdempotencyMismatch):
        submit(session, annotator, desk, 7)
    # a retry that measured other timings is the same answer
    assert desk.assignment is not None
    slower = service.submit_judgment(session, annotator, desk.assignment.uuid, answer(desk, 1, active_ms=9000))
    assert isinstance(slower, Receipt)
    assert slower.repeated


def test_the_record_holds_what_was_meant_not_where_it_stood(
    session: Session, labeling: LabelingSession, annotator: Actor
) -> None:
    desk = sit_down(session, annotator, labeling)
    for _ in range(3):
        desk = prefer(session, annotator, desk, "the second", 3).desk
    assert [row.strength for row in log(session, labeling)] == [3, 3, 3]
    payload = session.scalar(text("select payload from judgment order by id limit 1"))
    second = session.scalar(text("select uuid from labeling_completion where position = 1 order by item_id limit 1"))
    assert payload["second"] == str(second)
    assert payload["strength"] == 3
    assert desk.assignment is None
    assert desk.progress.done == 3


def test_unset_is_not_a_tie() -> None:
    with pytest.raises(ValueError, match="point"):
        ComparisonSubmission.model_validate({"kind": "comparison", "idempotency_key": str(uuid4())})
    with pytest.raises(ValueError, match="tie"):
        ComparisonSubmission(idempotency_key=uuid4(), point=4)
    with pytest.raises(ValueError, match="tie"):
        ComparisonSubmission(idempotency_key=uuid4(), point=5, tie_kind=TieKind.BOTH_BAD)
    assert ComparisonSubmission(idempotency_key=uuid4(), point=4, tie_kind=TieKind.BOTH_BAD).shown_strength == 0


def test_at_most_k_people_and_never_one_twice(
    session: Session, labeling: LabelingSession, make_actor: MakeActor
) -> None:
    people = [make_actor("annotator") for _ in range(3)]
    for person in people:
        desk = sit_down(session, person, labeling)
        while desk.assignment is not None:
            desk = submit(session, person, desk, 3).desk
    per_item = session.execute(
        text("select count(*), count(distinct annotator_id) from judgment group by item_id")
    ).all()
    assert [tuple(row) for row in per_item] == [(2, 2)] * 3
    assert service.next_assignment(session, people[2], labeling.id).assignment is None


def test_the_database_itself_refuses_a_third_slot_and_the_same_person(
    session: Session, labeling: LabelingSession, annotator: Actor
) -> None:
    sit_down(session, annotator, labeling)
    session.flush()
    statements = [
        "insert into labeling_slot (item_id, number, labeling_session_id) select item_id, number, labeling_session_id from labeling_slot limit 1",
        "update labeling_slot s set state = 'reserved', annotator_id = h.annotator_id, assignment_id = h.assignment_id, reserved_until = now() "
        "from labeling_slot h where h.state = 'reserved' and s.item_id = h.item_id and s.id <> h.id",
    ]
    for statement in statements:
        with pytest.raises(DBAPIError, match="duplicate key"), session.begin_nested():
            session.execute(text(statement))


@pytest.mark.parametrize(
    "statement", ["update judgment set reason = 'x'", "delete from judgment", "truncate judgment cascade"]
)
def test_the_record_is_append_only(
    session: Session, labeling: LabelingSession, annotator: Actor, statement: str
) -> None:
    submit(session, annotator, sit_down(session, annotator, labeling), 6)
    with pytest.raises(DBAPIError, match="append-only"), session.begin_nested():
        session.execute(text(statement))
    assert len(log(session, labeling)) == 1


def expire(session: Session) -> None:
    session.execute(text("update labeling_slot set reserved_until = now() - interval '1 s' where state = 'reserved'"))


def test_an_expired_reservation_goes_to_others_and_a_late_answer_is_kept(
    session: Session, engineer: Actor, project: ProjectName, make_actor: MakeActor
) -> None:
    labeling = service.create_session(
        session, engineer, project.id, name="One", guidelines="", overlap=1, items=drafts(1)
    )
    slow, quick = make_actor("annotator"), make_actor("annotator")
    left_open = sit_down(session, slow, labeling)
    assert sit_down(session, quick, labeling).assignment is None
    expire(session)
    taken = service.next_assignment(session, quick, labeling.id)
    assert taken.assignment is not None
    assert left_open.assignment is not None
    late = service.submit_judgment(session, slow, left_open.assignment.uuid, answer(left_open, 1, reason="I was slow"))
    assert isinstance(late, service.Late)
    assert "kept" in late.refusal.detail
    again = service.submit_judgment(session, slow, left_open.assignment.uuid, answer(left_open, 1, reason="I was slow"))
    assert isinstance(again, service.Late)
    assert session.execute(text("select submission->>'reason', count(*) over () from late_judgment")).one() == (
        "I was slow",
        1,
    )
    assert log(session, labeling) == []
    submit(session, quick, taken, 7)
    assert service.quality(session, engineer, labeling.id).late == 1


def test_a_late_answer_counts_while_nobody_took_the_slot(
    session: Session, labeling: LabelingSession, annotator: Actor
) -> None:
    desk = sit_down(session, annotator, labeling)
    expire(session)
    submit(session, annotator, desk, 2)
    assert len(log(session, labeling)) == 1


def test_heartbeat_extends_up_to_two_hours(
    session: Session, labeling: LabelingSession, annotator: Actor, engineer: Actor
) -> None:
    desk = sit_down(session, annotator, labeling)
    assert desk.assignment is not None
    assert service.heartbeat(session, annotator, desk.assignment.uuid) == pytest.approx(900, abs=2)
    session.execute(text("update assignment set assigned_at = now() - interval '110 minutes'"))
    session.execute(text("update labeling_slot set reserved_until = now() where state = 'reserved'"))
    assert service.heartbeat(session, annotator, desk.assignment.uuid) == pytest.approx(600, abs=2)
    with pytest.raises(NotFound):
        service.heartbeat(session, engineer, desk.assignment.uuid)
    submit(session, annotator, desk, 1)
    with pytest.raises(service.AssignmentLost):
        service.heartbeat(session, annotator, desk.assignment.uuid)


def test_skip_passes_the_item_on_and_is_no_label(
    session: Session, labeling: LabelingSession, two: tuple[Actor, Actor]
) -> None:
    mine, other = two
    desk = sit_down(session, mine, labeling)
    assert desk.assignment is not None
    skip = SkipSubmission(
        kind="skip", idempotency_key=desk.assignment.idempotency_key, skip_reason=SkipReason.CANNOT_VERIFY
    )
    receipt = service.submit_judgment(session, mine, desk.assignment.uuid, skip)
    assert isinstance(receipt, Receipt)
    assert receipt.kind == "skip"
    assert receipt.desk.assignment is not None
    assert receipt.desk.assignment.prompt == "Question 1"
    assert receipt.desk.progress.done == 0
    theirs = sit_down(session, other, labeling)
    assert theirs.assignment is not None
    assert theirs.assignment.prompt == "Question 0"
    # and back, by undo
    desk = service.undo_last(session, mine, labeling.id)
    assert desk.assignment is not None
    assert desk.assignment.prompt == "Question 0"


def test_undo_brings_the_same_sides_back_and_keeps_both_records(
    session: Session, labeling: LabelingSession, annotator: Actor
) -> None:
    desk = sit_down(session, annotator, labeling)
    after = submit(session, annotator, desk, 1).desk
    assert after.progress.undo_possible
    back = service.undo_last(session, annotator, labeling.id)
    assert desk.assignment is not None
    assert back.assignment is not None
    assert back.assignment.prompt == desk.assignment.prompt
    assert back.assignment.completions == desk.assignment.completions
    assert back.assignment.uuid != desk.assignment.uuid
    assert back.progress.done == 0
    # the first request replayed changes nothing
    replay = submit(session, annotator, desk, 1)
    assert replay.repeated
    following = submit(session, annotator, back, 7).desk
    assert [row.kind for row in log(session, labeling)] == ["comparison", "undo", "comparison"]
    # the assignment that was waiting meanwhile is next again
    assert after.assignment is not None
    assert following.assignment is not None
    assert following.assignment.uuid == after.assignment.uuid
    live = (
        session.execute(text("select j.point from labeling_slot s join judgment j on j.id = s.judgment_id"))
        .scalars()
        .all()
    )
    assert live == [7]


def test_undo_ends_after_ten_minutes(session: Session, engineer: Actor, project: ProjectName, annotator: Actor) -> None:
    labeling = service.create_session(
        session,
        engineer,
        project.id,
        name="No undo",
        guidelines="",
        form=ComparisonForm(undo_minutes=0),
        items=drafts(1),
    )
    with pytest.raises(service.NothingToUndo):
        service.undo_last(session, annotator, labeling.id)
    submit(session, annotator, sit_down(session, annotator, labeling), 1)
    with pytest.raises(service.NothingToUndo):
        service.undo_last(session, annotator, labeling.id)


def test_a_required_reason_is_required(
    session: Session, engineer: Actor, project: ProjectName, annotator: Actor
) -> None:
    labeling = service.create_session(
        session,
        engineer,
        project.id,
        name="Why",
        guidelines="",
        form=ComparisonForm(reason="required"),
        items=drafts(1),
    )
    desk = sit_down(session, annotator, labeling)
    with pytest.raises(Invalid, match="reason"):
        submit(session, annotator, desk, 1)
    assert desk.assignment is not None
    given = service.submit_judgment(session, annotator, desk.assignment.uuid, answer(desk, 1, reason="A is right"))
    assert isinstance(given, Receipt)


def test_paused_hands_out_nothing_closed_takes_nothing(
    session: Session, labeling: LabelingSession, engineer: Actor, annotator: Actor
) -> None:
    desk = sit_down(session, annotator, labeling)
    service.set_state(session, engineer, labeling.id, LabelingState.PAUSED)
    assert service.next_assignment(session, annotator, labeling.id).assignment is None
    assert submit(session, annotator, desk, 3).desk.assignment is None
    service.set_state(session, engineer, labeling.id, LabelingState.OPEN)
    desk = service.next_assignment(session, annotator, labeling.id)
    service.set_state(session, engineer, labeling.id, LabelingState.CLOSED)
    assert desk.assignment is not None
    assert isinstance(service.submit_judgment(session, annotator, desk.assignment.uuid, answer(desk, 3)), service.Late)


def test_sides_are_balanced_but_not_predictable(
    session: Session, engineer: Actor, project: ProjectName, two: tuple[Actor, Actor]
) -> None:
    labeling = service.create_session(session, engineer, project.id, name="Sides", guidelines="", items=drafts(60))
    for person in two:
        desk = sit_down(session, person, labeling)
        while desk.assignment is not None:
            desk = submit(session, person, desk, 2).desk
    for person in two:
        orders = [row.shown_order for row in log(session, labeling) if row.annotator_id == person.person_id]
        assert len(orders) == 60
        assert abs(orders.count([0, 1]) - orders.count([1, 0])) <= queue.HARD_LIMIT + 1
        alternations = sum(a != b for a, b in itertools.pairwise(orders))
        assert alternations < 59, "strict alternation would tell who wrote which"
    both_ways = session.scalar(
        text(
            "select count(*) from (select item_id from judgment group by item_id having count(distinct shown_order[1]) = 2) x"
        )
    )
    assert both_ways > 30, "most items were shown both ways round"


def test_who_may_do_what(
    session: Session, labeling: LabelingSession, engineer: Actor, annotator: Actor, make_actor: MakeActor
) -> None:
    viewer, outsider = make_actor("viewer"), make_actor("outsider")
    for act in (
        lambda who: service.get_session(session, who, labeling.id),
        lambda who: service.quality(session, who, labeling.id),
        lambda who: service.list_judgments(session, who, labeling.id),
        lambda who: service.preview_freeze(session, who, labeling.id, FreezePolicy()),
        lambda who: service.freeze_preferences(session, who, labeling.id, FreezePolicy()),
        lambda who: service.change_guidelines(session, who, labeling.id, "mine"),
    ):
        with pytest.raises(Forbidden):
            act(annotator)
        with pytest.raises(NotFound):
            act(outsider)
    with pytest.raises(Forbidden):
        service.next_assignment(session, viewer, labeling.id)
    assert service.quality(session, viewer, labeling.id).annotators is None
    assert service.quality(session, engineer, labeling.id).annotators == []
    desk = sit_down(session, annotator, labeling)
    assert desk.assignment is not None
    with pytest.raises(NotFound):  # somebody else's assignment
        service.submit_judgment(session, engineer, desk.assignment.uuid, answer(desk, 1))


def test_nothing_an_annotator_gets_names_a_model_or_another_judgment(
    session: Session, labeling: LabelingSession, two: tuple[Actor, Actor], engineer: Actor
) -> None:
    mine, other = two
    desk = sit_down(session, other, labeling)
    assert desk.assignment is not None
    service.submit_judgment(session, other, desk.assignment.uuid, answer(desk, 1, reason="canary-reason"))
    desk = sit_down(session, mine, labeling)
    receipt = submit(session, mine, desk, 2)
    seen = [
        desk,
        receipt,
        service.undo_last(session, mine, labeling.id),
        *service.my_history(session, mine, labeling.id)[0],
    ]
    # engineers who label are as blind as everybody else
    seen += [sit_down(session, engineer, labeling)]
    for one in seen:
        words = one.model_dump_json()
        assert "canary" not in words
        assert not {"model", "models", "position", "item_id", "strength", "annotator"} & set(_keys(json.loads(words)))


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def test_items_keep_one_shape_and_identical_pairs_stay_out(
    session: Session, engineer: Actor, project: ProjectName
) -> None:
    talk = [{"role": "user", "content": "Hello"}]
    made = service.create_session(
        session, engineer, project.id, name="Talks", guidelines="",
        items=[ItemDraft.model_validate({"prompt": talk, "completions": ["Hi", "Go away"]}),
               ItemDraft.model_validate({"prompt": talk, "completions": ["Hi", "Hi"]})],
    )  # fmt: skip
    assert made.item_count == 1
    assert made.conversational
    assert made.origin["identical_left_out"] == 1
    stored = session.scalar(text("select content from labeling_completion order by id limit 1"))
    assert stored == [{"role": "assistant", "content": "Hi"}]
    with pytest.raises(Invalid):
        service.add_items(session, engineer, made.id, drafts(1))
    with pytest.raises(Conflict):
        service.create_session(session, engineer, project.id, name="Talks", guidelines="")


# ---- freezing ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(session: Session, engineer: Actor, project: ProjectName, two: tuple[Actor, Actor]) -> LabelingSession:
    """Five items, judged by two: agreement, agreement of another strength, a tie, a quarrel, one judgment only."""
    labeling = service.create_session(session, engineer, project.id, name="Judged", guidelines="", items=drafts(6))
    plans: list[list[int | None]] = [[3, 1, 0, 2, -2], [2, -1, 0, -3]]
    plans[1][1] = 3
    for person, strengths in zip(two, plans, strict=True):
        desk = sit_down(session, person, labeling)
        for strength in strengths:
            assert strength is not None
            if strength == 0:
                desk = submit(session, person, desk, 4, TieKind.BOTH_BAD).desk
            elif strength > 0:
                desk = prefer(session, person, desk, "the second", strength).desk
            else:
                desk = prefer(session, person, desk, "first", -strength).desk
    return labeling


def test_the_preview_adds_up_and_the_version_is_what_it_said(
    session: Session, judged: LabelingSession, engineer: Actor
) -> None:
    preview = service.preview_freeze(session, engineer, judged.id, FreezePolicy())
    assert preview.model_dump() == {
        "items": 6, "kept": 2, "ties": 1, "ties_both_good": 0, "ties_both_bad": 1, "no_majority": 1, "too_few": 1,
        "unjudged": 1, "rows": 2,
    }  # fmt: skip
    assert preview.items == preview.kept + preview.ties + preview.no_majority + preview.too_few + preview.unjudged
    version = service.freeze_preferences(session, engineer, judged.id, FreezePolicy())
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
    version = service.freeze_preferences(
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
    assert service.next_assignment(session, two[0], judged.id).progress.undo_possible
    service.freeze_preferences(session, engineer, judged.id, FreezePolicy())
    assert not service.next_assignment(session, two[0], judged.id).progress.undo_possible
    with pytest.raises(service.NothingToUndo):
        service.undo_last(session, two[0], judged.id)


def test_the_next_freeze_is_the_next_version_of_the_same_dataset(
    session: Session, judged: LabelingSession, engineer: Actor, two: tuple[Actor, Actor]
) -> None:
    first = service.freeze_preferences(session, engineer, judged.id, FreezePolicy())
    second = service.freeze_preferences(session, engineer, judged.id, FreezePolicy(minimum_judgments=1))
    assert (second.dataset_id, second.number) == (first.dataset_id, 2)
    assert second.row_count == 3
    assert [version.number for _, version, _ in service.freezes(session, engineer, judged.id)] == [2, 1]


def test_an_empty_freeze_says_so(session: Session, labeling: LabelingSession, engineer: Actor) -> None:
    with pytest.raises(service.NothingToFreeze):
        service.freeze_preferences(session, engineer, labeling.id, FreezePolicy())


def test_a_session_over_a_dataset_version(
    session: Session, judged: LabelingSession, engineer: Actor, project: ProjectName
) -> None:
    version = service.freeze_preferences(session, engineer, judged.id, FreezePolicy())
    again = service.create_session_from_version(
        session, engineer, project.id, version_id=version.id, name="Again", guidelines="", overlap=1
    )
    assert again.item_count == 2
    assert again.origin["dataset_version_id"] == version.id


def test_rows_with_completions_are_questions() -> None:
    item = service.item_of_row({"prompt": "P", "completions": '["a", "b"]', "models": '["m", "n"]'})
    assert item.completions == ["a", "b"]
    assert item.models == ["m", "n"]
    assert service.item_of_row({"prompt": "P", "chosen": "a", "rejected": "b"}).models == [None, None]
    with pytest.raises(ValueError, match="two completions"):
        service.item_of_row({"prompt": "P", "completion": "a"})


# ---- quality -------------------------------------------------------------------------------------------------------------


def test_quality_of_a_judged_session(
    session: Session, judged: LabelingSession, engineer: Actor, two: tuple[Actor, Actor]
) -> None:
    found = service.quality(session, engineer, judged.id)
    assert (found.items, found.judgments, found.wanted) == (6, 9, 12)
    assert found.by_count == [1, 1, 4]
    assert sum(found.strengths) == 9
    assert found.strengths[3] == 2
    assert (found.ties_both_good, found.ties_both_bad) == (0, 2)
    assert found.doubly_judged == 4
    assert found.alpha_ordinal is None, "hidden below 20 items"
    assert not found.no_variation
    assert found.longer_wins is not None
    assert found.longer_wins.n == 7
    assert found.longer_wins.value == pytest.approx(5 / 7)
    assert [one.strengths for one in found.disputed] == [[2, -3]]
    assert found.annotators is not None
    assert {(one.name, one.done) for one in found.annotators} == {(two[0].name, 5), (two[1].name, 4)}
    for one in found.annotators:
        assert one.with_others is not None
        assert one.with_others.n == 4
        assert one.with_others.value == 0.75


def test_quality_of_an_empty_session(session: Session, labeling: LabelingSession, engineer: Actor) -> None:
    found = service.quality(session, engineer, labeling.id)
    assert found.by_count == [3, 0, 0]
    assert found.judgments == 0
    assert found.left_wins is None
    assert found.tie_rate is None
    assert found.disputed == []


def test_agreement_appears_from_twenty_items_on(
    session: Session, engineer: Actor, project: ProjectName, two: tuple[Actor, Actor]
) -> None:
    labeling = service.create_session(session, engineer, project.id, name="Many", guidelines="", items=drafts(20))
    for person in two:
        desk = sit_down(session, person, labeling)
        while desk.assignment is not None:
            desk = prefer(session, person, desk, "first", 1).desk
    found = service.quality(session, engineer, labeling.id)
    assert found.doubly_judged == 20
    assert found.no_variation
    assert found.alpha_ordinal is None
    assert found.same_direction is not None
    assert found.same_direction.value == 1.0
