"""What surrounds every page costs a handful of queries, and an API call almost none."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from backend.accounts.actors import Actor
from backend.db import Sessions
from tests.conftest import MakeClient


@contextmanager
def _counted(sessions: Sessions) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(sessions.kw["bind"], "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(sessions.kw["bind"], "before_cursor_execute", note)


def test_an_api_call_asks_once_who_is_there(make_client: MakeClient, engineer: Actor, sessions: Sessions) -> None:
    for client in (make_client(engineer), make_client(engineer, browser=True)):
        client.get("/api/v1/me")
        with _counted(sessions) as statements:
            assert client.get("/api/v1/me").status_code == 200
        assert len(statements) == 1, statements


@pytest.mark.parametrize("role", ["engineer", "annotator", "viewer", "outsider", "admin"])
def test_the_rail_costs_a_handful_of_queries(make_client: MakeClient, sessions: Sessions, role: str) -> None:
    client = make_client(role, browser=True)
    client.get("/account")
    with _counted(sessions) as statements:
        assert client.get("/account").status_code == 200
    assert len(statements) <= 12, statements


def test_a_problem_page_keeps_the_rail_but_asks_nothing_more(
    make_client: MakeClient, engineer: Actor, sessions: Sessions
) -> None:
    client = make_client(engineer, browser=True)
    with _counted(sessions) as statements:
        page = client.get("/projects/987654321/members")
    assert page.status_code == 404
    assert "Sign out" in page.text
    assert len(statements) <= 3, statements
