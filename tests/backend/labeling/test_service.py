"""Labeling sessions and their items, against a real Postgres; and who may do what in labeling."""

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.errors import Conflict, Forbidden, Invalid, NotFound
from backend.labeling import freezing, judging, quality, service
from backend.labeling.judgments import FreezePolicy, ItemDraft
from backend.labeling.tables import LabelingSession
from backend.projects.service import ProjectName
from tests.backend.labeling.conftest import answer, drafts, sit_down
from tests.conftest import MakeActor


def test_who_may_do_what(
    session: Session, labeling: LabelingSession, engineer: Actor, annotator: Actor, make_actor: MakeActor
) -> None:
    viewer, outsider = make_actor("viewer"), make_actor("outsider")
    for act in (
        lambda who: service.get_session(session, who, labeling.id),
        lambda who: quality.measure(session, who, labeling.id),
        lambda who: service.list_judgments(session, who, labeling.id),
        lambda who: freezing.preview_freeze(session, who, labeling.id, FreezePolicy()),
        lambda who: freezing.freeze_preferences(session, who, labeling.id, FreezePolicy()),
        lambda who: service.change_guidelines(session, who, labeling.id, "mine"),
    ):
        with pytest.raises(Forbidden):
            act(annotator)
        with pytest.raises(NotFound):
            act(outsider)
    with pytest.raises(Forbidden):
        judging.next_assignment(session, viewer, labeling.id)
    assert quality.measure(session, viewer, labeling.id).annotators is None
    assert quality.measure(session, engineer, labeling.id).annotators == []
    desk = sit_down(session, annotator, labeling)
    assert desk.assignment is not None
    with pytest.raises(NotFound):  # somebody else's assignment
        judging.submit_judgment(session, engineer, desk.assignment.uuid, answer(desk, 1))


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


def test_a_session_over_a_dataset_version(
    session: Session, judged: LabelingSession, engineer: Actor, project: ProjectName
) -> None:
    version = freezing.freeze_preferences(session, engineer, judged.id, FreezePolicy())
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
