"""Assignments, judgments, skips and undos, against a real Postgres; and that annotators are blind."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.errors import Invalid, NotFound
from backend.labeling import judging, quality, queue, service
from backend.labeling.judgments import ComparisonForm, LabelingState, Receipt, SkipReason, SkipSubmission
from backend.labeling.tables import LabelingSession
from backend.projects.service import ProjectName
from tests.backend.labeling.conftest import answer, drafts, log, prefer, sit_down, submit
from tests.conftest import MakeActor


def test_guidelines_come_first_and_again_after_a_change(
    session: Session, labeling: LabelingSession, engineer: Actor, annotator: Actor
) -> None:
    desk = judging.next_assignment(session, annotator, labeling.id)
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
    with pytest.raises(judging.GuidelinesChanged):
        judging.acknowledge_guidelines(session, annotator, labeling.id, 1)
    assert sit_down(session, annotator, labeling).assignment is not None


def test_a_reload_and_a_second_tab_show_the_same_assignment(
    session: Session, labeling: LabelingSession, annotator: Actor
) -> None:
    desk = sit_down(session, annotator, labeling)
    again = judging.next_assignment(session, annotator, labeling.id)
    assert desk.assignment is not None
    assert again.assignment is not None
    assert again.assignment.uuid == desk.assignment.uuid
    assert again.assignment.completions == desk.assignment.completions


def test_sending_twice_records_once(session: Session, labeling: LabelingSession, annotator: Actor) -> None:
    desk = sit_down(session, annotator, labeling)
    first, second = submit(session, annotator, desk, 1), submit(session, annotator, desk, 1)
    assert (first.repeated, second.repeated) == (False, True)
    assert first.judgment == second.judgment
    assert first.desk.assignment is not None
    assert second.desk.assignment is not None
    assert first.desk.assignment.uuid == second.desk.assignment.uuid
    assert first.desk.assignment.completions == second.desk.assignment.completions
    assert len(log(session, labeling)) == 1
    with pytest.raises(judging.IdempotencyMismatch):
        submit(session, annotator, desk, 7)
    # a retry that measured other timings is the same answer
    assert desk.assignment is not None
    slower = judging.submit_judgment(session, annotator, desk.assignment.uuid, answer(desk, 1, active_ms=9000))
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
    assert judging.next_assignment(session, people[2], labeling.id).assignment is None


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
    taken = judging.next_assignment(session, quick, labeling.id)
    assert taken.assignment is not None
    assert left_open.assignment is not None
    late = judging.submit_judgment(session, slow, left_open.assignment.uuid, answer(left_open, 1, reason="I was slow"))
    assert isinstance(late, judging.Late)
    assert "kept" in late.refusal.detail
    again = judging.submit_judgment(session, slow, left_open.assignment.uuid, answer(left_open, 1, reason="I was slow"))
    assert isinstance(again, judging.Late)
    assert session.execute(text("select submission->>'reason', count(*) over () from late_judgment")).one() == (
        "I was slow",
        1,
    )
    assert log(session, labeling) == []
    submit(session, quick, taken, 7)
    assert quality.measure(session, engineer, labeling.id).late == 1


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
    assert judging.heartbeat(session, annotator, desk.assignment.uuid) == pytest.approx(900, abs=2)
    session.execute(text("update assignment set assigned_at = now() - interval '110 minutes'"))
    session.execute(text("update labeling_slot set reserved_until = now() where state = 'reserved'"))
    assert judging.heartbeat(session, annotator, desk.assignment.uuid) == pytest.approx(600, abs=2)
    with pytest.raises(NotFound):
        judging.heartbeat(session, engineer, desk.assignment.uuid)
    submit(session, annotator, desk, 1)
    with pytest.raises(judging.AssignmentLost):
        judging.heartbeat(session, annotator, desk.assignment.uuid)


def test_skip_passes_the_item_on_and_is_no_label(
    session: Session, labeling: LabelingSession, two: tuple[Actor, Actor]
) -> None:
    mine, other = two
    desk = sit_down(session, mine, labeling)
    assert desk.assignment is not None
    skip = SkipSubmission(
        kind="skip", idempotency_key=desk.assignment.idempotency_key, skip_reason=SkipReason.CANNOT_VERIFY
    )
    receipt = judging.submit_judgment(session, mine, desk.assignment.uuid, skip)
    assert isinstance(receipt, Receipt)
    assert receipt.kind == "skip"
    assert receipt.desk.assignment is not None
    assert receipt.desk.assignment.prompt == "Question 1"
    assert receipt.desk.progress.done == 0
    theirs = sit_down(session, other, labeling)
    assert theirs.assignment is not None
    assert theirs.assignment.prompt == "Question 0"
    # and back, by undo
    desk = judging.undo_last(session, mine, labeling.id)
    assert desk.assignment is not None
    assert desk.assignment.prompt == "Question 0"


def test_undo_brings_the_same_sides_back_and_keeps_both_records(
    session: Session, labeling: LabelingSession, annotator: Actor
) -> None:
    desk = sit_down(session, annotator, labeling)
    after = submit(session, annotator, desk, 1).desk
    assert after.progress.undo_possible
    back = judging.undo_last(session, annotator, labeling.id)
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
    with pytest.raises(judging.NothingToUndo):
        judging.undo_last(session, annotator, labeling.id)
    submit(session, annotator, sit_down(session, annotator, labeling), 1)
    with pytest.raises(judging.NothingToUndo):
        judging.undo_last(session, annotator, labeling.id)


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
    given = judging.submit_judgment(session, annotator, desk.assignment.uuid, answer(desk, 1, reason="A is right"))
    assert isinstance(given, Receipt)


def test_paused_hands_out_nothing_closed_takes_nothing(
    session: Session, labeling: LabelingSession, engineer: Actor, annotator: Actor
) -> None:
    desk = sit_down(session, annotator, labeling)
    service.set_state(session, engineer, labeling.id, LabelingState.PAUSED)
    assert judging.next_assignment(session, annotator, labeling.id).assignment is None
    assert submit(session, annotator, desk, 3).desk.assignment is None
    service.set_state(session, engineer, labeling.id, LabelingState.OPEN)
    desk = judging.next_assignment(session, annotator, labeling.id)
    service.set_state(session, engineer, labeling.id, LabelingState.CLOSED)
    assert desk.assignment is not None
    assert isinstance(judging.submit_judgment(session, annotator, desk.assignment.uuid, answer(desk, 3)), judging.Late)


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
    # 35 on average; 20,000 simulated sessions gave 15 at the least (the bias itself is pinned in test_queue.py)
    assert both_ways > 10, "an item's sides are drawn anew for its second annotator"


def test_nothing_an_annotator_gets_names_a_model_or_another_judgment(
    session: Session, labeling: LabelingSession, two: tuple[Actor, Actor], engineer: Actor
) -> None:
    mine, other = two
    desk = sit_down(session, other, labeling)
    assert desk.assignment is not None
    judging.submit_judgment(session, other, desk.assignment.uuid, answer(desk, 1, reason="canary-reason"))
    desk = sit_down(session, mine, labeling)
    receipt = submit(session, mine, desk, 2)
    seen = [
        desk,
        receipt,
        judging.undo_last(session, mine, labeling.id),
        *judging.my_history(session, mine, labeling.id)[0],
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
