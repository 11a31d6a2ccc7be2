"""What is measured about a labeling session, against a real Postgres."""

import pytest
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.labeling import quality, service
from backend.labeling.tables import LabelingSession
from backend.projects.service import ProjectName
from tests.backend.labeling.conftest import drafts, prefer, sit_down


def test_quality_of_a_judged_session(
    session: Session, judged: LabelingSession, engineer: Actor, two: tuple[Actor, Actor]
) -> None:
    found = quality.measure(session, engineer, judged.id)
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
    found = quality.measure(session, engineer, labeling.id)
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
    found = quality.measure(session, engineer, labeling.id)
    assert found.doubly_judged == 20
    assert found.no_variation
    assert found.alpha_ordinal is None
    assert found.same_direction is not None
    assert found.same_direction.value == 1.0
