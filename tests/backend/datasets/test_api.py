"""Datasets over REST and as pages, on small rows of the shape of public sets."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from backend.datasets.rows import COLUMNS, RowType
from backend.projects.service import ProjectName
from tests.conftest import MakeClient

DATA = Path(__file__).parents[4] / "shared" / "data"
PAIRS: list[dict[str, Any]] = [
    {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "source": "hand"},
    {"prompt": "=cmd|'/c calc'!A0", "chosen": " no\n", "rejected": "-1", "source": "formula"},
    {"prompt": 'Ünïcödé, "quoted"', "chosen": "a;b", "rejected": "a,b", "source": "odd"},
]
AS_JSON_LINES = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client("engineer")


def take(
    client: TestClient, project: ProjectName, name: str, content: bytes, mapping: dict[str, Any] | None = None
) -> Any:
    data = {"name": name, **({"mapping": json.dumps(mapping)} if mapping else {})}
    return client.post(f"/api/v1/projects/{project.id}/imports", files={"file": ("file", content)}, data=data)


def test_the_content_hash_does_not_depend_on_the_format(client: TestClient, project: ProjectName) -> None:
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(PAIRS), table)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(PAIRS[0]), delimiter=";")
    writer.writeheader()
    writer.writerows(PAIRS)
    contents = {
        "lines": AS_JSON_LINES,
        "zipped": gzip.compress(AS_JSON_LINES),
        "list": json.dumps(PAIRS, indent=2).encode(),
        "csv": text.getvalue().encode(),
        "parquet": table.getvalue(),
    }
    answers = {name: take(client, project, name, content).json() for name, content in contents.items()}
    assert len({answer["content_sha256"] for answer in answers.values()}) == 1, answers
    assert [answer["origin"]["format"] for answer in answers.values()] == [
        "json_lines",
        "json_lines",
        "json_array",
        "csv",
        "parquet",
    ]


def test_the_same_content_is_a_conflict_that_names_the_version(client: TestClient, project: ProjectName) -> None:
    first = take(client, project, "pairs", AS_JSON_LINES)
    again = take(client, project, "pairs", json.dumps(PAIRS).encode())
    assert (first.status_code, again.status_code) == (201, 409)
    assert again.json()["version_id"] == first.json()["id"]
    other = take(client, project, "pairs", json.dumps(PAIRS[:2]).encode())
    assert other.json()["number"] == 2


def test_a_refused_import_makes_no_dataset_either(client: TestClient, project: ProjectName) -> None:
    assert take(client, project, "never", b'{"prompt": "a"}\n{oops\n').json()["line"] == 2
    assert client.get(f"/api/v1/projects/{project.id}/datasets").json() == {"items": [], "next": None}


def test_downloads_hold_the_rows_and_no_formula(client: TestClient, project: ProjectName) -> None:
    version = take(client, project, "pairs", AS_JSON_LINES).json()["id"]
    lines = client.get(f"/api/v1/versions/{version}/download?format=jsonl")
    assert [json.loads(line) for line in lines.text.splitlines()] == PAIRS
    assert "pairs-v1.jsonl" in lines.headers["content-disposition"]
    table = pq.read_table(io.BytesIO(client.get(f"/api/v1/versions/{version}/download?format=parquet").content))
    assert table.to_pylist() == PAIRS
    cells = list(
        csv.DictReader(io.StringIO(client.get(f"/api/v1/versions/{version}/download?format=csv").text, newline=""))
    )
    assert list(cells[0]) == ["prompt", "chosen", "rejected", "source"]
    assert cells[0] == PAIRS[0]
    assert cells[1] == {**PAIRS[1], "prompt": "'=cmd|'/c calc'!A0", "rejected": "'-1"}


def test_two_steps_look_map_import(client: TestClient, project: ProjectName, tmp_path: Path) -> None:
    content = b"".join(
        json.dumps({"q": f"question {n}", "a": None if n == 2 else f"answer {n}"}).encode() + b"\n" for n in range(5)
    )
    uploads = f"/api/v1/projects/{project.id}/uploads"
    look = client.post(uploads, files={"file": ("../../etc/odd.jsonl", content)}).json()
    assert (look["file_name"], look["kind"], look["mapping"], look["columns"]) == (
        "odd.jsonl",
        "json_lines",
        None,
        {"q": "text", "a": "text"},
    )
    mapping = {"row_type": "prompt_completion", "columns": {"prompt": "q", "completion": "a"}}
    preview = client.post(f"{uploads}/{look['id']}/preview", json={"mapping": mapping}).json()
    assert preview["fitting"] == 4
    assert [(error["line"], error["field"]) for error in preview["errors"]] == [(3, "completion")]
    assert preview["rows"][0] == {"line": 1, "row": {"prompt": "question 0", "completion": "answer 0"}}
    imports = f"/api/v1/projects/{project.id}/imports"
    sent = {"name": "odd", "upload_id": look["id"], "mapping": json.dumps(mapping)}
    refused = client.post(imports, data=sent)
    assert (refused.status_code, refused.json()["line"]) == (422, 3)
    # the upload is still there for another mapping
    version = client.post(imports, data=sent | {"mapping": json.dumps(mapping | {"bad_rows": "skip"})}).json()
    assert version["row_count"] == 4
    assert version["origin"]["left_out"] == {"There is nothing under “a”.": 1}
    assert list((tmp_path / "quarantine").iterdir()) == []
    assert client.get(f"{uploads}/{look['id']}").status_code == 404


def test_an_upload_is_its_senders_alone(make_client: MakeClient, client: TestClient, project: ProjectName) -> None:
    uploads = f"/api/v1/projects/{project.id}/uploads"
    look = client.post(uploads, files={"file": ("x", AS_JSON_LINES)}).json()
    other = make_client("engineer")
    assert other.get(f"{uploads}/{look['id']}").status_code == 404
    assert other.post(f"{uploads}/{look['id']}/preview", json={}).status_code == 404
    for name in ("%2e%2e", "..%2f..%2fartifacts", look["id"] + "%2f..", "0" * 36):
        assert client.get(f"{uploads}/{name}").status_code == 404
    assert client.delete(f"{uploads}/{look['id']}").status_code == 204
    assert client.get(f"{uploads}/{look['id']}").status_code == 404


@pytest.mark.parametrize(
    ("role", "see", "make"), [("viewer", 200, 403), ("annotator", 403, 403), ("outsider", 403, 403)]
)
def test_who_may_what(
    make_client: MakeClient, client: TestClient, project: ProjectName, role: str, see: int, make: int
) -> None:
    version = take(client, project, "pairs", AS_JSON_LINES).json()
    somebody = make_client(role)
    reads = [
        f"/api/v1/projects/{project.id}/datasets",
        f"/api/v1/projects/{project.id}/versions",
        f"/api/v1/datasets/{version['dataset_id']}",
        f"/api/v1/datasets/{version['dataset_id']}/versions",
        *(f"/api/v1/versions/{version['id']}{what}" for what in ("", "/rows", "/statistics", "/download")),
        f"/projects/{project.id}/datasets",
        f"/datasets/{version['dataset_id']}",
        f"/versions/{version['id']}",
    ]
    assert {path: somebody.get(path).status_code for path in reads} == dict.fromkeys(reads, see)
    assert take(somebody, project, "mine", AS_JSON_LINES).status_code == make
    assert somebody.post(f"/api/v1/projects/{project.id}/datasets", json={"name": "mine"}).status_code == make
    sent = somebody.post(f"/api/v1/datasets/{version['dataset_id']}/versions", files={"file": ("x", AS_JSON_LINES)})
    assert sent.status_code == make
    assert make_client(None).get(f"/api/v1/versions/{version['id']}/rows").status_code == 401


def test_mappings_that_make_no_sense_are_refused_by_field(client: TestClient, project: ProjectName) -> None:
    for mapping, field in (
        ({"row_type": "preference", "columns": {"chosen": "chosen"}}, "mapping"),
        (
            {"row_type": "preference", "columns": {"chosen": "chosen", "rejected": "rejected"}, "beta": 1},
            "mapping.beta",
        ),
        ({"row_type": "nonsense", "columns": {}}, "mapping.row_type"),
        ({"row_type": "prompt_only", "columns": {"prompt": "prompt", "answer": "a"}}, "mapping"),
    ):
        answer = take(client, project, "x", AS_JSON_LINES, mapping)
        assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_pages_show_rows_as_text_never_as_html(
    make_client: MakeClient, client: TestClient, project: ProjectName
) -> None:
    hostile = [
        {
            "prompt": "<script>alert(1)</script>",
            "chosen": "<img src=x onerror=alert(1)>",
            "rejected": "b",
            "<u>": "{{ 8123 * 30001 }}",
        }
    ]
    version = take(client, project, "<i>hostile</i>", json.dumps(hostile).encode()).json()
    browser = make_client("engineer", browser=True)
    for path in (
        f"/projects/{project.id}/datasets",
        f"/datasets/{version['dataset_id']}",
        *(
            f"/versions/{version['id']}{query}"
            for query in ("", "?view=json", "?tab=statistics", "?tab=origin", "?tab=uses", "?q=alert", "?q=absent")
        ),
        f"/projects/{project.id}/datasets/import?name=<script>",
    ):
        page = browser.get(path)
        assert page.status_code == 200, path
        for live in ("<script>alert", "<img src=x", "<i>hostile", "<u>", "243698123"):
            assert live not in page.text, (path, live)
    assert "Nothing found" in browser.get(f"/versions/{version['id']}?q=absent").text


def test_the_plain_form_imports_and_says_what_is_wrong(make_client: MakeClient, project: ProjectName) -> None:
    browser = make_client("engineer", browser=True)
    path = f"/projects/{project.id}/datasets/import"
    wrong = browser.post(path, files={"file": ("x.jsonl", b'{"prompt": "a"}\n{oops\n')}, data={"name": "pairs"})
    assert wrong.status_code == 422
    assert "Line 2" in wrong.text
    assert 'value="pairs"' in wrong.text
    made = browser.post(path, files={"file": ("x.jsonl", AS_JSON_LINES)}, data={"name": "pairs"})
    assert made.status_code == 303
    assert browser.get(made.headers["location"]).status_code == 200


ROWS: dict[str, dict[str, Any]] = {
    "language_modeling": {"text": "a text"},
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "unpaired": {"prompt": "a", "completion": "b", "label": True},
    "prompt_only": {"prompt": "a", "answer": "7"},
    "stepwise": {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]},
    "scored": {"prompt": "a", "completion": "b", "scores": {"helpful": 4.0}},
}


@pytest.mark.parametrize("row_type", RowType)
def test_every_type_of_rows_has_its_pages(
    client: TestClient, make_client: MakeClient, project: ProjectName, row_type: RowType
) -> None:
    row = ROWS[row_type]
    columns = {column: column for column in COLUMNS[row_type] if column in row}
    made = take(client, project, row_type, json.dumps([row, row]).encode(), {"row_type": row_type, "columns": columns})
    assert made.json()["row_type"] == row_type
    version = made.json()["id"]
    tabs = (f"/versions/{version}?tab={tab}" for tab in ("rows", "statistics", "origin", "uses"))
    browser = make_client("engineer", browser=True)
    for page in (f"/datasets/{made.json()['dataset_id']}", *tabs):
        answer = browser.get(page)
        assert (answer.status_code, answer.history) == (200, []), page


@pytest.mark.skipif(not DATA.exists(), reason="the public data sets are not here")
def test_hh_rlhf_imports_as_it_is(client: TestClient, project: ProjectName) -> None:
    content = (DATA / "hh_rlhf" / "harmless-base_test.jsonl.gz").read_bytes()
    version = take(client, project, "hh", content).json()
    assert (version["row_count"], version["row_type"], version["conversational"]) == (2312, "preference", True)
    statistics = client.get(f"/api/v1/versions/{version['id']}/statistics").json()
    assert statistics["longer_wins"]["chosen_longer"] == 1025
    assert statistics["empty"] == {"prompt": 0, "chosen": 4, "rejected": 0}
    rows, after = [], 0
    while after is not None:
        page = client.get(f"/api/v1/versions/{version['id']}/rows?limit=200&after={after}").json()
        rows += [item["row"] for item in page["items"]]
        after = page["next"]
    assert len(rows) == 2312
    # five rows do not share the prompt exactly: they keep what they share, and several turns on one side
    assert sum(len(row["chosen"]) > 1 or len(row["rejected"]) > 1 for row in rows) == 5
    assert all(row["prompt"][-1]["role"] == "user" for row in rows)
    longer = sum(len(row["chosen"][-1]["content"]) > len(row["rejected"][-1]["content"]) for row in rows)
    assert round(100 * longer / 2312, 1) == 44.2


@pytest.mark.skipif(not DATA.exists(), reason="the public data sets are not here")
@pytest.mark.parametrize(
    ("file", "rows", "row_type"),
    [
        ("truthfulqa/TruthfulQA.csv", 790, "preference"),
        ("truthfulqa/mc_task.json", 790, "prompt_only"),
        ("gsm8k/test.jsonl", 1319, "prompt_completion"),
        ("mbpp/mbpp.jsonl", 974, "prompt_completion"),
        ("humaneval/HumanEval.jsonl.gz", 164, "prompt_completion"),
        ("self_instruct/seed_tasks.jsonl", 175, "prompt_completion"),
        # labels: 0 the first, 1 the second, 2 a tie
        ("prometheus_bench/autoj_pairwise.json", 1019, "preference"),
        # labels: 1 the first, 2 the second
        ("llmbar/llmbar_natural.json", 100, "preference"),
        ("math500/svamp.jsonl", 1000, "prompt_only"),
        ("ifeval/input_data.jsonl", 541, "prompt_only"),
    ],
)
def test_public_sets_are_recognized(
    client: TestClient, project: ProjectName, file: str, rows: int, row_type: str
) -> None:
    version = take(client, project, "set", (DATA / file).read_bytes()).json()
    assert (version.get("row_count"), version.get("row_type")) == (rows, row_type), version
