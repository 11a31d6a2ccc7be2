"""A labeling session, two annotators, and the ways they answer."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.labeling import judging, service
from backend.labeling.judgments import ComparisonSubmission, Desk, ItemDraft, Receipt, TieKind
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
    judging.acknowledge_guidelines(session, actor, labeling.id, labeling.guideline_number)
    return judging.next_assignment(session, actor, labeling.id)


def answer(desk: Desk, point: int, tie_kind: TieKind | None = None, **more: Any) -> ComparisonSubmission:
    assert desk.assignment is not None
    return ComparisonSubmission(idempotency_key=desk.assignment.idempotency_key, point=point, tie_kind=tie_kind, **more)


def submit(session: Session, actor: Actor, desk: Desk, point: int, tie_kind: TieKind | None = None) -> Receipt:
    assert desk.assignment is not None
    receipt = judging.submit_judgment(session, actor, desk.assignment.uuid, answer(desk, point, tie_kind))
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


@pytest.fixture
def judged(session: Session, engineer: Actor, project: ProjectName, two: tuple[Actor, Actor]) -> LabelingSession:
    """Six items, judged by two: agreement, agreement of another strength, a tie, a quarrel, one judgment only, none."""
    labeling = service.create_session(session, engineer, project.id, name="Judged", guidelines="", items=drafts(6))
    for person, strengths in zip(two, ([3, 1, 0, 2, -2], [2, 3, 0, -3]), strict=True):
        desk = sit_down(session, person, labeling)
        for strength in strengths:
            if strength == 0:
                desk = submit(session, person, desk, 4, TieKind.BOTH_BAD).desk
            elif strength > 0:
                desk = prefer(session, person, desk, "the second", strength).desk
            else:
                desk = prefer(session, person, desk, "first", -strength).desk
    return labeling
