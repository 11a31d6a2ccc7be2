"""Poison is answered with a 4xx and a sentence, wherever it comes in."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend.accounts.actors import Actor
from backend.web.bodies import MAX_JSON_BYTES, check_json
from tests.conftest import MakeClient


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": 1e999}', "larger than any number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "larger than any integer"),
        (b'{"a": 9223372036854775808}', "larger than any integer"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "nested deeper"),
        (rb'{"a": "\u0000"}', "U+0000"),
        (rb'{"\u0000": 1}', "U+0000"),
        (rb'{"a": ["\ud800"]}', "lone surrogate"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": }', "not JSON"),
    ],
)
def test_poisoned_json_is_named(body: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("+", r"\+")):
        check_json(body)


def test_good_json_passes_untouched() -> None:
    check_json(json.dumps({"a": ["[[[[" * 100, {"b": 1 - 2**63}, 1.5e300, "\U0001f600"]}).encode())
    check_json(b"")


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("application/json", rb'{"name": "a\u0000b"}'),
        ("application/json", rb'{"name": "\ud800"}'),
        ("application/json", b'{"name": NaN}'),
        ("application/json", b"[" * 50_000),
        ("application/json", b'{"name": "x", "unknown": 1}'),
        ("application/json", b'"text"'),
        ("application/json", b""),
        ("text/plain", b'{"name": "a form of another site can send this"}'),
    ],
)
def test_the_api_answers_poison_with_a_problem(make_client: MakeClient, content_type: str, content: bytes) -> None:
    answer = make_client("engineer").post("/api/v1/projects", content=content, headers={"Content-Type": content_type})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) >= {"type", "title", "status", "detail"}


@pytest.mark.parametrize(
    "path", ["/projects/%00", "/?project=%00", "/api/v1/projects/99999999999999999999999", "/api/v1/projects/x"]
)
def test_poisoned_addresses_are_4xx(make_client: MakeClient, path: str) -> None:
    assert 400 <= make_client("engineer", browser=True).get(path).status_code < 500


@pytest.mark.parametrize("name", ["a\x00b", "x" * 81, "  ", "\u202e"])
def test_poisoned_forms_are_4xx(make_client: MakeClient, name: str) -> None:
    answer = make_client("engineer", browser=True).post("/projects", data={"name": name})
    assert answer.status_code == 422


def test_bodies_are_limited_while_they_arrive(app: FastAPI, make_client: MakeClient, admin: Actor) -> None:
    stranger = TestClient(app, raise_server_exceptions=False)
    assert stranger.post("/api/v1/sign-in", content=b"x" * 70_000).status_code == 413
    engineer = make_client("engineer")

    def endless() -> object:
        for _ in range(MAX_JSON_BYTES // 2**20 + 2):
            yield b" " * 2**20

    answer = engineer.post("/api/v1/projects", content=endless(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
