"""Versions: numbered, hashed, immutable, the same whatever they were made from."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets import service
from backend.datasets.rowfile import BadRow, RowReader
from backend.datasets.rows import RowType
from backend.errors import Forbidden, NotFound
from backend.projects.service import ProjectName
from tests.conftest import MakeActor

PAIRS = [
    {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "margin": 1.5, "source": "hand"},
    {"prompt": "The sky is", "chosen": " blue", "rejected": " green", "source": "hand"},
    {"prompt": "The sky is", "chosen": " green", "rejected": " blue", "source": "joke"},
]


@pytest.fixture
def dataset(session: Session, engineer: Actor, project: ProjectName) -> service.Dataset:
    return service.create_dataset(session, engineer, project.id, "pairs", "written by hand")


def make(
    session: Session, dataset: service.Dataset, rows: list[dict[str, object]], row_type: RowType = RowType.PREFERENCE
) -> service.DatasetVersion:
    return service.create_version(session, dataset.id, rows, row_type, origin={"kind": "test"}, created_by=None)


def test_a_version_keeps_rows_hash_statistics_and_columns(
    session: Session, dataset: service.Dataset, engineer: Actor
) -> None:
    version = make(session, dataset, PAIRS)
    found = service.get_version(session, engineer, version.id)
    assert (found.number, found.row_count, found.conversational) == (1, 3, False)
    assert found.columns == {
        "prompt": "text",
        "chosen": "text",
        "rejected": "text",
        "margin": "number",
        "source": "text",
    }
    assert found.statistics["contradictory"] == 2
    assert found.statistics["prompts"] == 2
    with RowReader(service.rows_path(session, found)) as reader:
        assert [row for _, row in reader.rows()] == PAIRS


def test_numbers_follow_each_other_and_the_same_content_is_refused(session: Session, dataset: service.Dataset) -> None:
    first = make(session, dataset, PAIRS)
    assert make(session, dataset, PAIRS[::-1]).number == 2
    with pytest.raises(service.SameContent) as refused:
        # the order of keys is no content
        make(session, dataset, [dict(reversed(row.items())) for row in PAIRS])
    assert refused.value.fields["version_id"] == first.id
    assert make(session, dataset, PAIRS[:1]).number == 3


def test_a_version_never_changes(session: Session, dataset: service.Dataset) -> None:
    version = service.create_version(
        session, dataset.id, PAIRS, RowType.PREFERENCE, origin={}, created_by=None, judgment_ids=[[7], [8, 9], []]
    )
    for statement in (
        "update dataset_version set row_count = 1",
        "delete from dataset_version",
        "update dataset_row_origin set judgment_id = 1",
        "delete from dataset_row_origin",
    ):
        with pytest.raises(DatabaseError, match="immutable"), session.begin_nested():
            session.execute(text(statement))
    assert service.judgments_of_rows(session, version.id, 0, 10) == {0: [7], 1: [8, 9]}
    assert service.judgments_of_rows(session, version.id, 1, 2) == {1: [8, 9]}
    assert service.rows_from_judgments(session, [9]) == [(version.id, 1)]


def test_a_bad_row_says_its_line_and_leaves_no_version(
    session: Session, dataset: service.Dataset, engineer: Actor
) -> None:
    with pytest.raises(BadRow) as refused:
        make(session, dataset, [*PAIRS, {"prompt": "a", "chosen": "b"}])
    assert refused.value.fields["line"] == 4
    assert refused.value.fields["field"] == "rejected"
    assert service.list_versions(session, engineer, dataset.id) == []


def test_each_row_type_plain_and_conversational(session: Session, engineer: Actor, project: ProjectName) -> None:
    said = [{"role": "user", "content": "hi"}]
    answered = [{"role": "assistant", "content": "hello"}]
    cases: list[tuple[RowType, dict[str, object], bool]] = [
        (RowType.LANGUAGE_MODELING, {"text": "once"}, False),
        (RowType.LANGUAGE_MODELING, {"messages": said + answered}, True),
        (RowType.PROMPT_COMPLETION, {"prompt": "a", "completion": "b"}, False),
        (RowType.PROMPT_COMPLETION, {"prompt": said, "completion": answered}, True),
        (RowType.PREFERENCE, {"prompt": said, "chosen": answered, "rejected": answered}, True),
        (RowType.UNPAIRED, {"prompt": "a", "completion": "b", "label": False}, False),
        (RowType.PROMPT_ONLY, {"prompt": said, "answer": 42}, True),
    ]
    for n, (row_type, row, conversational) in enumerate(cases):
        dataset = service.create_dataset(session, engineer, project.id, f"case {n}")
        version = make(session, dataset, [row], row_type)
        assert version.conversational is conversational
        with RowReader(service.rows_path(session, version)) as reader:
            assert list(reader.rows()) == [(0, row)]


def test_who_may_see_and_make(
    session: Session, dataset: service.Dataset, project: ProjectName, make_actor: MakeActor
) -> None:
    version = make(session, dataset, PAIRS)
    assert service.get_version(session, make_actor("viewer"), version.id) is version
    with pytest.raises(Forbidden):
        service.create_dataset(session, make_actor("viewer"), project.id, "mine")
    with pytest.raises(Forbidden):
        service.get_version(session, make_actor("annotator"), version.id)
    with pytest.raises(NotFound):
        service.get_version(session, make_actor("outsider"), version.id)
    with pytest.raises(service.DatasetNameTaken):
        service.create_dataset(session, make_actor("engineer"), project.id, " pairs ")


def test_pages_of_rows_by_position_search_and_filter(session: Session, dataset: service.Dataset) -> None:
    rows = [{"prompt": f"question {n}", "chosen": "x" * (n % 7), "rejected": "yyy"} for n in range(5000)]
    version = make(session, dataset, rows)
    page = service.read_rows(session, version, after=1998, limit=4)
    assert [row["prompt"] for _, row in page.rows] == [f"question {n}" for n in range(1998, 2002)]
    assert page.next == 2002
    assert service.read_rows(session, version, after=4998, limit=4).next is None
    found = service.read_rows(session, version, search="QUESTION 4999")
    assert [position for position, _ in found.rows] == [4999]
    assert found.next is None
    assert found.searched == 5000
    empty = service.read_rows(session, version, only="empty", limit=3)
    assert [position for position, _ in empty.rows] == [0, 7, 14]
    assert empty.next == 15
