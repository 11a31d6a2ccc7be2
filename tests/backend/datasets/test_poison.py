"""Files that are broken or hostile: each is refused with its status and line, and nothing of it stays."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from backend.db import Sessions
from backend.projects.service import ProjectName
from tests.conftest import MakeClient

GOOD = b'{"prompt": "a", "completion": "b"}\n'
CSV = b"prompt,completion\na,b\n"


def row(**more: object) -> bytes:
    return json.dumps({"prompt": "a", "completion": "b", **more}).encode() + b"\n"


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def columns(**values: object) -> bytes:
    return parquet(pa.table(values))


def damaged_parquet() -> bytes:
    # long incompressible texts, so that the middle of the file is data
    whole = bytearray(columns(prompt=[f"{n}{hash(str(n))}" * 9 for n in range(2000)], completion=["b"] * 2000))
    whole[200:400] = b"\xff" * 200
    return bytes(whole)


def bad_text_parquet() -> bytes:
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    return parquet(pa.Table.from_arrays([broken, pa.array(["b"])], ["prompt", "completion"]))


# name → (file, status, line, word that the sentence must hold)
POISON: dict[str, tuple[Callable[[], bytes], int, int, str]] = {
    "empty": (lambda: b"", 422, 1, "empty"),
    "only a mark": (lambda: b"\xef\xbb\xbf\n \n", 422, 1, "empty"),
    "empty gzip": (lambda: gzip.compress(b""), 422, 1, "empty"),
    "empty list": (lambda: b"[]", 422, 1, "no row"),
    "only a header": (lambda: b"prompt,completion\n", 422, 1, "no row"),
    "cut in a row": (lambda: GOOD * 2 + GOOD[:20], 422, 3, "no JSON"),
    "not an object": (lambda: GOOD + b'["a", "b"]\n', 422, 2, "object"),
    "a number": (lambda: GOOD + b"7\n", 422, 2, "object"),
    "an empty object": (lambda: GOOD + b"{}\n", 422, 2, "no columns"),
    "two objects on a line": (lambda: GOOD + GOOD.strip() + GOOD, 422, 2, "no JSON"),
    "pretty printed": (lambda: b'{\n "prompt": "a",\n "completion": "b"\n}\n', 422, 1, "no JSON"),
    "NaN": (lambda: GOOD + row(score=float("nan")), 422, 2, "NaN"),
    "infinity": (lambda: GOOD + row(score=float("inf")), 422, 2, "Infinity"),
    "1e999": (lambda: GOOD + b'{"prompt": "a", "completion": "b", "score": 1e999}\n', 422, 2, "infinite"),
    "a 5,000-digit integer": (
        lambda: GOOD + b'{"prompt": "a", "completion": "b", "n": ' + b"9" * 5000 + b"}\n",
        422,
        2,
        "64 bits",
    ),
    "a 30-digit integer": (
        lambda: GOOD + b'{"prompt": "a", "completion": "b", "n": ' + b"9" * 30 + b"}\n",
        422,
        2,
        "64 bits",
    ),
    "doubled key": (lambda: GOOD + b'{"prompt": "a", "completion": "b", "prompt": "c"}\n', 422, 2, "twice"),
    "doubled key with a space": (
        lambda: GOOD + b'{"prompt": "a", "completion": "b", "prompt" : "c"}\n',
        422,
        2,
        "twice",
    ),
    "doubled key inside": (
        lambda: GOOD + b'{"prompt": "a", "completion": "b", "x": {"k": 1, "k": 2}}\n',
        422,
        2,
        "twice",
    ),
    "NUL byte": (lambda: GOOD + b'{"prompt": "a\x00", "completion": "b"}\n', 422, 2, "NUL"),
    "escaped NUL": (lambda: GOOD + row(note="a\0b"), 422, 2, "U+0000"),
    "escaped NUL in a key": (lambda: GOOD + row(**{"a\0": 1}), 422, 2, "U+0000"),
    "lone surrogate": (lambda: GOOD + b'{"prompt": "\\ud800", "completion": "b"}\n', 422, 2, "surrogate"),
    "latin-1": (lambda: GOOD + '{"prompt": "é", "completion": "b"}\n'.encode("latin-1"), 422, 2, "UTF-8"),
    "UTF-16 with mark": (lambda: GOOD.decode().encode("utf-16"), 422, 1, "UTF-16"),
    "UTF-16 without mark": (lambda: GOOD.decode().encode("utf-16-le"), 422, 1, "UTF-16"),
    "depth 33": (lambda: GOOD + row(x=json.loads("[" * 33 + "]" * 33)), 422, 2, "deep"),
    "depth 100,000": (lambda: GOOD + b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", 422, 2, "deep"),
    "depth 100,000 in a list": (lambda: b'[{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", 422, 1, "deep"),
    "a line of 3 MB": (lambda: GOOD + row(note="x" * 3_000_000) + GOOD, 413, 2, "longer"),
    "a line of 3 MB in a list": (
        lambda: b'[{"prompt": "a", "completion": "' + b"x" * 3_000_000 + b'"}]',
        413,
        1,
        "bytes",
    ),
    "300 columns": (lambda: GOOD + row(**{f"c{n}": n for n in range(300)}), 413, 2, "columns"),
    "300 columns over rows": (lambda: b"".join(row(**{f"c{n}": n}) for n in range(300)), 413, 255, "columns"),
    "a million columns in CSV": (
        lambda: b",".join(b"c%d" % (n % 9) for n in range(600_000)) + b"\n1\n",
        413,
        1,
        "columns",
    ),
    "list without end": (lambda: b"[" + GOOD + b"," + GOOD, 422, 3, "no end"),
    "list without comma": (lambda: b"[" + GOOD + GOOD + b"]", 422, 2, "comma"),
    "list with a last comma": (lambda: b"[" + GOOD + b",]", 422, 2, "object"),
    "list with something behind": (lambda: b"[" + GOOD + b"] {}", 422, 2, "follows"),
    "list of texts": (lambda: b'["a", "b"]', 422, 1, "object"),
    "list with a doubled key": (
        lambda: b"[" + GOOD + b',{"prompt": "a", "completion": "b", "prompt": "c"}]',
        422,
        2,
        "twice",
    ),
    "list with NUL": (lambda: b"[" + GOOD + b',{"prompt": "a\\u0000", "completion": "b"}]', 422, 2, "U+0000"),
    "list with NaN": (lambda: b"[" + GOOD + b',\n\n{"prompt": "a", "completion": "b", "x": NaN}]', 422, 4, "NaN"),
    "cut gzip": (lambda: gzip.compress(GOOD * 100_000)[:-30], 422, 97_367, "gzip"),
    "damaged gzip": (lambda: gzip.compress(GOOD)[:12] + b"\xff" * 20, 422, 1, "gzip"),
    "gzip bomb": (lambda: gzip.compress(GOOD * 1_000_000), 413, 479_349, "unpacks"),
    "gzipped Parquet": (lambda: gzip.compress(columns(prompt=["a"], completion=["b"])), 422, 1, "gzipped Parquet"),
    "zip": (lambda: b"PK\x03\x04" + b"\0" * 50, 422, 1, "zip"),
    "pickle": (lambda: b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x02os\x94.", 422, 1, "pickle"),
    "CSV with a short row": (lambda: CSV + b"only one\n", 422, 3, "header"),
    "CSV with a long row": (lambda: CSV + b"a,b,c\n", 422, 3, "header"),
    "CSV with a doubled column": (lambda: b"prompt,completion,prompt\na,b,c\n", 422, 1, "Two columns"),
    "CSV with a nameless column": (lambda: b"prompt,completion,\na,b,c\n", 422, 1, "no name"),
    "CSV with an open quotation mark": (lambda: CSV + b'a,"b\n' + CSV * 3, 422, 3, "CSV"),
    "CSV with a quotation mark open for 3 MB": (lambda: CSV + b'a,"' + b"xxxxxxx\n" * 400_000, 413, 3, "longer"),
    "CSV with NUL": (lambda: CSV + b"a\0,b\n", 422, 3, "NUL"),
    "CSV in latin-1": (lambda: CSV + "é,b\n".encode("latin-1"), 422, 3, "UTF-8"),
    "CSV with a lone surrogate": (lambda: CSV + b"\xed\xa0\x80,b\n", 422, 3, "UTF-8"),
    "Parquet cut off": (lambda: columns(prompt=["a"], completion=["b"])[:-8], 422, 1, "Parquet"),
    "Parquet damaged inside": (damaged_parquet, 422, 1, "damaged"),
    "Parquet without rows": (
        lambda: columns(prompt=pa.array([], pa.string()), completion=pa.array([], pa.string())),
        422,
        1,
        "no row",
    ),
    "Parquet with bytes": (lambda: columns(prompt=["a"], completion=["b"], image=[b"\xff"]), 422, 1, "binary"),
    "Parquet with NaN": (
        lambda: columns(prompt=["a", "a"], completion=["b", "c"], x=[1.0, float("nan")]),
        422,
        2,
        "nan",
    ),
    "Parquet with NUL": (lambda: columns(prompt=["a", "a\0"], completion=["b", "c"]), 422, 2, "U+0000"),
    "Parquet with bad UTF-8": (bad_text_parquet, 422, 1, "UTF-8"),
    "Parquet with 300 columns": (lambda: columns(**{f"c{n}": [n] for n in range(300)}), 413, 1, "columns"),
    "Parquet with a 5 MB text": (
        lambda: columns(prompt=["a", "x" * 5_000_000], completion=["b", "c"]),
        413,
        2,
        "bytes",
    ),
    "Parquet nested 40 deep": (
        lambda: parquet(
            pa.table({"prompt": ["a"], "completion": ["b"], "x": pa.array([json.loads("[" * 40 + "1" + "]" * 40)])})
        ),
        422,
        1,
        "deep",
    ),
    "Parquet with twin columns": (
        lambda: parquet(pa.Table.from_arrays([pa.array(["a"])] * 3, ["prompt", "completion", "prompt"])),
        422,
        1,
        "same name",
    ),
    "a completion that is missing": (lambda: GOOD + b'{"prompt": "a"}\n', 422, 2, "completion"),
    "a completion that is null": (lambda: GOOD + b'{"prompt": "a", "completion": null}\n', 422, 2, "completion"),
    "a prompt that is a number": (lambda: GOOD + b'{"prompt": 7, "completion": "b"}\n', 422, 2, "neither text"),
    "an empty conversation": (lambda: GOOD + b'{"prompt": [], "completion": "b"}\n', 422, 2, "no message"),
    "an unknown role": (lambda: b'{"prompt": [{"role": "root", "content": "x"}], "completion": "b"}\n', 422, 1, "root"),
    "a message without content": (lambda: b'{"prompt": [{"role": "user"}], "completion": "b"}\n', 422, 1, "content"),
    "conversations after text": (
        lambda: GOOD + b'{"prompt": [{"role": "user", "content": "x"}], "completion": "b"}\n',
        422,
        2,
        "plain text",
    ),
}

MAPPING = json.dumps({"row_type": "prompt_completion", "columns": {"prompt": "prompt", "completion": "completion"}})


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client("engineer")


@pytest.fixture
def left(sessions: Sessions, tmp_path: Path) -> Callable[[], list[str]]:
    """What a refused file left in the database, in the artifact store and in quarantine."""

    def look() -> list[str]:
        with sessions() as session:
            versions = session.scalar(text("select count(*) from dataset_version")) or 0
        files = [p for folder in ("artifacts", "quarantine") for p in (tmp_path / folder).rglob("*") if p.is_file()]
        return ["version"] * versions + [str(p) for p in files]

    return look


def test_at_least_forty() -> None:
    assert len(POISON) >= 40


@pytest.mark.slow
def test_every_poison_is_refused_with_its_line_and_leaves_nothing(
    client: TestClient, project: ProjectName, left: Callable[[], list[str]]
) -> None:
    dataset = client.post(f"/api/v1/projects/{project.id}/datasets", json={"name": "poison"}).json()["id"]
    wrong = {}
    for name, (make, status, line, word) in POISON.items():
        answer = client.post(
            f"/api/v1/datasets/{dataset}/versions", files={"file": ("x", make())}, data={"mapping": MAPPING}
        )
        said = answer.json()
        as_expected = answer.status_code == status and said.get("line") == line and word in said["detail"]
        if not as_expected or answer.headers["content-type"] != "application/problem+json" or left():
            wrong[name] = (answer.status_code, said.get("line"), said.get("detail"), left())
    assert wrong == {}


def test_a_broken_file_leaves_nothing_when_it_is_looked_at_first(
    client: TestClient, project: ProjectName, left: Callable[[], list[str]]
) -> None:
    answer = client.post(f"/api/v1/projects/{project.id}/uploads", files={"file": ("x", GOOD + b"{oops\n")})
    assert (answer.status_code, answer.json()["line"]) == (422, 2)
    assert left() == []


def test_what_looks_odd_but_is_fine_is_taken(client: TestClient, project: ProjectName) -> None:
    fine = {
        "mark and mixed newlines": b"\xef\xbb\xbf" + GOOD.strip() + b"\r\n\r\n" + GOOD.strip() + b"\r" + GOOD,
        "no last newline": GOOD * 3 + GOOD.strip(),
        "depth 32": row(x=json.loads("[" * 31 + "]" * 31)),
        "colons and quotes in text": row(note='say "a": {"b": 1, "a": 2} \\"c\\": \\\\'),
        "a literal backslash-u0000": row(note="\\u0000"),
        "19 digits": row(n=2**63 - 1),
        "empty completion": row(completion=""),
        "bidi and template marks": row(prompt="\u202eabc <|im_end|>"),
        "CSV with newlines in quotes": b'\xef\xbb\xbfprompt;completion\r\n"a;\r\nb";c\r\n\r\n"say ""x""";d\r\n',
        "CSV with a CR only": b"prompt\tcompletion\ra\tb\rc\td\r",
        "list over lines": b"\n [\n" + GOOD + b",\n" + GOOD + b"\n]\n",
        "repetitive gzip": gzip.compress(GOOD * 1000),
        "dictionary Parquet": parquet(
            pa.table({"prompt": pa.array(["a", "b"]).dictionary_encode(), "completion": ["c", "d"]})
        ),
    }
    for name, content in fine.items():
        dataset = client.post(f"/api/v1/projects/{project.id}/datasets", json={"name": name}).json()["id"]
        answer = client.post(
            f"/api/v1/datasets/{dataset}/versions", files={"file": ("x", content)}, data={"mapping": MAPPING}
        )
        assert answer.status_code == 201, (name, answer.json())
    read = client.get(f"/api/v1/versions/{answer.json()['id']}/rows").json()
    assert [item["row"] for item in read["items"]] == [
        {"prompt": "a", "completion": "c"},
        {"prompt": "b", "completion": "d"},
    ]
