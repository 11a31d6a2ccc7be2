"""The API describes itself, to those who may use it."""

import json
import re

from fastapi import FastAPI

from backend.about import describe
from tests.conftest import MakeClient


def test_the_description_is_for_people_who_are_signed_in(make_client: MakeClient) -> None:
    assert make_client(None).get("/api/v1/openapi.json").status_code == 401
    assert make_client("viewer").get("/api/v1/openapi.json").json()["info"]["title"] == "Alignment Studio"
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert make_client("admin", browser=True).get(path).status_code == 404


def test_every_operation_says_what_it_does_and_errors_are_problems(app: FastAPI) -> None:
    document = describe(app)
    operations = [(f"{verb} {path}", one) for path, item in document["paths"].items() for verb, one in item.items()]
    assert len(operations) > 20
    assert not [name for name, one in operations if not one.get("description")]
    assert not [name for name, one in operations if "4XX" not in one["responses"]]
    assert not [name for name, _ in operations if not re.match(r"\w+ /api/v1/", name)]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


def test_the_reference_shows_every_operation_with_an_example_that_is_json(
    app: FastAPI, make_client: MakeClient
) -> None:
    page = make_client("viewer", browser=True).get("/reference")
    assert page.status_code == 200
    for path in describe(app)["paths"]:
        assert f"<code>{path}</code>" in page.text
    assert '"Support tone"' in page.text.replace("&#34;", '"')
