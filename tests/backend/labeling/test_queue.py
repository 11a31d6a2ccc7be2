"""Thirty annotators at once, with doubled requests, second tabs, abandoned assignments, skips and undos: the record is right.

The invariants are those of the design: L1 at most k, L2 never twice by one person, L3 acknowledged means exactly one record,
L4 a slot's judgment is the last one not undone, L5 replay changes nothing, L6 every item gets its k, L7 the record is
immutable (test_judging), L8 what was meant follows from what was clicked and the stored sides, L9 blind (test_api).
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from sqlalchemy import text

from backend.accounts.actors import Actor
from backend.db import Sessions, unit_of_work
from backend.labeling import judging, queue, service
from backend.labeling.judgments import (
    ComparisonForm,
    ComparisonSubmission,
    Desk,
    ItemDraft,
    Receipt,
    SkipReason,
    SkipSubmission,
    Submission,
    TieKind,
)
from backend.projects.service import ProjectName
from tests.conftest import MakeActor

ANNOTATORS, ITEMS, OVERLAP = 30, 40, 3


class Hand:
    """One annotator who does everything that goes wrong in real life."""

    def __init__(self, sessions: Sessions, actor: Actor, labeling_id: int, seed: int) -> None:
        self.sessions, self.actor, self.labeling_id = sessions, actor, labeling_id
        self.chance = random.Random(seed)
        self.acknowledged: dict[UUID, UUID] = {}
        """Idempotency key → judgment that the studio said it had recorded."""
        self.said: dict[UUID, tuple[UUID, Submission]] = {}

    def next(self) -> Desk:
        with unit_of_work(self.sessions) as session:
            return judging.next_assignment(session, self.actor, self.labeling_id)

    def send(self, assignment: UUID, submission: Submission) -> Receipt | judging.Late:
        with unit_of_work(self.sessions) as session:
            return judging.submit_judgment(session, self.actor, assignment, submission)

    def two_at_once(self, act: object, *args: object) -> list[object]:
        with ThreadPoolExecutor(2) as both:
            return [f.result() for f in [both.submit(act, *args), both.submit(act, *args)]]  # type: ignore[arg-type]

    def work(self) -> None:
        with unit_of_work(self.sessions) as session:
            judging.acknowledge_guidelines(session, self.actor, self.labeling_id, 1)
        while True:
            if self.chance.random() < 0.15:  # two tabs
                a, b = self.two_at_once(self.next)
                assert isinstance(a, Desk)
                assert isinstance(b, Desk)
                if a.assignment and b.assignment:
                    assert a.assignment.uuid == b.assignment.uuid
                desk = a if a.assignment else b
            else:
                desk = self.next()
            assert isinstance(desk, Desk)
            if desk.assignment is None:
                return
            if self.chance.random() < 0.08:  # the laptop is closed: the reservation runs out, others may take it
                with unit_of_work(self.sessions) as session:
                    session.execute(
                        text(
                            "update labeling_slot set reserved_until = clock_timestamp() - interval '1 s' where state = 'reserved' "
                            "and assignment_id = (select id from assignment where uuid = :a)"
                        ),
                        {"a": desk.assignment.uuid},
                    )
                if self.chance.random() < 0.5:
                    continue
            self.answer(desk)

    def answer(self, desk: Desk) -> None:
        assert desk.assignment is not None
        key, uuid = desk.assignment.idempotency_key, desk.assignment.uuid
        submission: Submission
        if self.chance.random() < 0.03:
            submission = SkipSubmission(kind="skip", idempotency_key=key, skip_reason=SkipReason.LANGUAGE)
        else:
            point = self.chance.randint(1, 7)
            tie = self.chance.choice(list(TieKind)) if point == 4 else None
            submission = ComparisonSubmission(idempotency_key=key, point=point, tie_kind=tie)
        doubled = self.chance.random() < 0.25
        answers = self.two_at_once(self.send, uuid, submission) if doubled else [self.send(uuid, submission)]
        receipts = [answer for answer in answers if isinstance(answer, Receipt)]
        assert len(receipts) in (0, len(answers)), "one click cannot be taken and refused"
        if not receipts:
            return
        assert len({receipt.judgment for receipt in receipts}) == 1
        assert sum(not receipt.repeated for receipt in receipts) == 1
        self.acknowledged[key] = receipts[0].judgment
        self.said[key] = (uuid, submission)
        if self.chance.random() < 0.08:
            try:
                with unit_of_work(self.sessions) as session:
                    judging.undo_last(session, self.actor, self.labeling_id)
            except judging.UndoTooLate:  # a skipped item that others have taken since
                assert submission.kind == "skip"


@pytest.fixture
def crowd(sessions: Sessions, engineer: Actor, project: ProjectName, make_actor: MakeActor) -> list[Hand]:
    with unit_of_work(sessions) as session:
        labeling = service.create_session(
            session, engineer, project.id, name="Crowd", guidelines="", overlap=OVERLAP, form=ComparisonForm(),
            items=[ItemDraft(prompt=f"P{i}", completions=[f"a{i}", f"b{i}"]) for i in range(ITEMS)],
        )  # fmt: skip
        labeling_id = labeling.id
    return [Hand(sessions, make_actor("annotator"), labeling_id, seed) for seed in range(ANNOTATORS)]


def test_thirty_annotators_at_once(sessions: Sessions, crowd: list[Hand]) -> None:
    errors: list[BaseException] = []

    def run(hand: Hand) -> None:
        try:
            hand.work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(hand,)) for hand in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    # whoever left while others held the last slots comes back for them
    for hand in crowd:
        hand.work()

    acknowledged = {(hand.actor.person_id, key): uuid for hand in crowd for key, uuid in hand.acknowledged.items()}
    before = _count(sessions)
    for hand in crowd[:8]:  # L5: every request once more
        for uuid, submission in hand.said.values():
            replay = hand.send(uuid, submission)
            assert isinstance(replay, Receipt)
            assert replay.repeated
    assert _count(sessions) == before

    with sessions() as session:

        def number(sql: str) -> int:
            return int(session.execute(text(sql), {"k": OVERLAP}).scalar_one())

        assert number("select count(*) from labeling_slot where state = 'judged'") == ITEMS * OVERLAP, "L6"
        per_item = "select item_id from labeling_slot where state = 'judged' group by item_id "
        assert number(f"select count(*) from ({per_item} having count(*) > :k) x") == 0, "L1"
        assert number(f"select count(*) from ({per_item}, annotator_id having count(*) > 1) x") == 0, "L2"
        recorded = {
            (person, key): uuid
            for person, key, uuid in session.execute(
                text("select annotator_id, idempotency_key, uuid from judgment where kind <> 'undo'")
            )
        }
        assert recorded == acknowledged, "L3: acknowledged exactly when recorded"
        wrong_slots = number(
            "select count(*) from labeling_slot s where s.state = 'judged' and s.judgment_id is distinct from ("
            "select max(j.id) from judgment j where j.item_id = s.item_id and j.annotator_id = s.annotator_id "
            "and j.kind = 'comparison' and not exists (select 1 from judgment u where u.supersedes_id = j.id))"
        )
        assert wrong_slots == 0, "L4"
        homeless = number(
            "select count(*) from judgment j where j.kind = 'comparison' "
            "and not exists (select 1 from judgment u where u.supersedes_id = j.id) "
            "and not exists (select 1 from labeling_slot s where s.judgment_id = j.id)"
        )
        assert homeless == 0, "L4: every live judgment has its slot"
        swapped = number(
            "select count(*) from judgment where kind = 'comparison' and strength <> "
            "(point - 4) * (case shown_order[1] when 0 then 1 else -1 end)"
        )
        assert swapped == 0, "L8"
        strangers = number(
            "select count(*) from judgment j join assignment a on a.id = j.assignment_id "
            "where a.annotator_id <> j.annotator_id or a.shown_order <> j.shown_order or a.item_id <> j.item_id"
        )
        assert strangers == 0, "L8: the sides recorded are the sides drawn"
        undone_twice = number(
            "select count(*) from (select supersedes_id from judgment where kind = 'undo' group by 1 having count(*) > 1) x"
        )
        assert undone_twice == 0
        assert number("select count(*) from judgment where kind = 'undo'") > 0, "the test exercised undo"
        assert number("select count(*) from judgment where kind = 'skip'") > 0, "the test exercised skips"
        lopsided = number(
            "select coalesce(max(abs(sum)), 0) from (select sum(case when shown_order[1] = 0 then 1 else -1 end) from judgment "
            "where kind = 'comparison' group by annotator_id) x"
        )
        assert lopsided <= queue.HARD_LIMIT + 4, "sides are balanced for each annotator, abandoned ones aside"


def _count(sessions: Sessions) -> int:
    with sessions() as session:
        return int(session.execute(text("select count(*) from judgment")).scalar_one())


@pytest.mark.parametrize(("mine", "item"), [(0, 0), (1, 0), (-1, 1), (2, -1), (-2, -2)])
def test_sides_lean_back_but_stay_a_draw(mine: int, item: int) -> None:
    chance = random.Random(1)
    left = sum(queue.draw_sides(mine, item, chance) == [0, 1] for _ in range(3000)) / 3000
    expected = 1 / 2 if mine + item == 0 else 1 - queue.CORRECTION if mine + item > 0 else queue.CORRECTION
    assert left == pytest.approx(expected, abs=0.03)


def test_a_large_imbalance_is_corrected_for_sure() -> None:
    assert all(queue.draw_sides(3, -9) == [1, 0] and queue.draw_sides(-3, 9) == [0, 1] for _ in range(50))
