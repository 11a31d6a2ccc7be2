"""Errors as people and programs see them."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from backend import embedded, errors
from backend.accounts.access import Public
from backend.accounts.actors import Actor
from backend.app import create_app
from backend.settings import Settings
from backend.web.units import UnitOfWork
from tests.conftest import MakeClient

KINDS = {
    errors.Invalid: 422,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.TooMany: 429,
    errors.Unavailable: 503,
}


class TeaIsCold(errors.Conflict):
    """The tea is cold.

    Nobody sees this line.
    """


@pytest.mark.parametrize(("kind", "status"), KINDS.items())
def test_every_kind_of_error_has_its_status(
    app: FastAPI, admin: Actor, kind: type[errors.StudioError], status: int
) -> None:
    @app.post("/api/v1/boom")
    def boom(actor: Public) -> None:
        raise kind("It happened.", remedy="Do this.", line=3)

    answer = TestClient(app).post("/api/v1/boom")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert {
        "detail": "It happened.",
        "remedy": "Do this.",
        "line": 3,
        "status": status,
    }.items() <= answer.json().items()
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_a_subclass_brings_its_own_type_and_title(app: FastAPI, admin: Actor) -> None:
    @app.get("/api/v1/tea")
    @app.get("/tea")
    def tea(actor: Public) -> None:
        raise TeaIsCold("It stood <b>too</b> long.", remedy="Run `kettle`.")

    client = TestClient(app)
    assert client.get("/api/v1/tea").json()["type"] == "/problems/tea-is-cold"
    assert client.get("/tea", headers={"Accept": "application/json"}).json()["title"] == "The tea is cold."
    page = client.get("/tea")
    assert page.status_code == 409
    assert "It stood &lt;b&gt;too&lt;/b&gt; long." in page.text
    assert "Run <code>kettle</code>." in page.text


def test_a_refused_transaction_leaves_nothing_and_answers_no_200(app: FastAPI, make_client: MakeClient) -> None:
    @app.post("/api/v1/late")
    def late(actor: Public, session: UnitOfWork) -> str:
        session.execute(text("create table t (x int unique deferrable initially deferred)"))
        session.execute(text("insert into t values (1), (1)"))  # fails at the commit, after the route has returned
        return "done"

    client = make_client("engineer")
    assert client.post("/api/v1/late").status_code == 409
    assert client.post("/api/v1/late").status_code == 409  # the table is not there either


def test_a_stranger_comes_back_to_the_page_and_its_query(make_client: MakeClient, admin: Actor) -> None:
    answer = make_client(None).get("/projects/1/members?after=7&x=%2F")
    assert answer.headers["location"] == "/sign-in?next=/projects/1/members%3Fafter%3D7%26x%3D%252F"


def test_unknown_addresses_and_methods_are_problems_too(make_client: MakeClient) -> None:
    client = make_client("engineer")
    assert client.get("/api/v1/nowhere").json()["type"] == "/problems/not-found"
    wrong = client.delete("/api/v1/me")
    assert (wrong.status_code, wrong.json()["type"]) == (405, "/problems/method-not-allowed")


def test_without_a_database_pages_and_api_say_so(settings: Settings) -> None:
    dead = settings.model_copy(update={"database_url": f"postgresql://x@127.0.0.1:{embedded.free_port()}/x"})
    client = TestClient(create_app(dead), raise_server_exceptions=False, cookies={"studio": "x"})
    health = client.get("/healthz")
    assert (health.status_code, health.json()["database"]) == (503, "does not answer")
    for path in ("/", "/api/v1/me"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert "The database does not answer." in answer.text


def test_without_redis_the_studio_goes_on(settings: Settings, make_client: MakeClient, sessions: object) -> None:
    dead = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{embedded.free_port()}/0"})
    client = TestClient(create_app(dead))
    assert client.get("/healthz").status_code == 200
    assert "does not answer" in client.get("/healthz").json()["redis"]
