"""Every route says who may call it, and keeps its word: deny by default, role by role, project by project."""

import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import Mount

from backend.accounts.access import Declared
from backend.accounts.actors import GRANTS, Actor, Permission
from backend.accounts.service import set_role
from backend.db import Sessions, unit_of_work
from backend.projects.service import ProjectName, create_project
from tests.conftest import MakeActor, MakeClient

GRANTED: dict[str, frozenset[Permission]] = {
    **{str(role): permissions for role, permissions in GRANTS.items()},
    "outsider": frozenset(),
    "admin": frozenset(Permission),
}
PUBLIC_PATHS = {"/healthz", "/sign-in", "/setup/{token}", "/api/v1/sign-in"}


class Route(NamedTuple):
    path: str
    methods: frozenset[str]
    dependant: Dependant
    permissions: list[Permission]

    def address(self, project_id: int) -> str:
        given: dict[str, Any] = {"project_id": project_id}
        for param in self.dependant.path_params:
            is_uuid = param.field_info.annotation is uuid.UUID
            given.setdefault(param.alias, uuid.UUID(int=7) if is_uuid else 987654321)
        return self.path.format(**given)


def _declared(dependant: Dependant) -> Iterator[Permission]:
    for child in dependant.dependencies:
        if isinstance(child.call, Declared):
            yield child.call.permission
        yield from _declared(child)


def routes(app: FastAPI) -> list[Route]:
    found = []
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, Mount):
            assert context.path == "/static", f"{context.path} is mounted, so nobody checks who calls it"
            continue
        assert isinstance(route, APIRoute), f"{context.path} is no API route, so it cannot declare who may call it"
        found.append(
            Route(str(context.path), frozenset(route.methods or ()), route.dependant, list(_declared(route.dependant)))
        )
    return found


def test_every_route_declares_exactly_one_permission(app: FastAPI) -> None:
    found = routes(app)
    assert len(found) > 25  # a guard must assert that it found something
    wrong = [
        f"{sorted(route.methods)} {route.path}: {route.permissions}" for route in found if len(route.permissions) != 1
    ]
    assert not wrong


def test_only_the_door_is_public(app: FastAPI) -> None:
    assert {route.path for route in routes(app) if Permission.PUBLIC in route.permissions} == PUBLIC_PATHS


def test_strangers_get_nowhere(app: FastAPI, make_client: MakeClient, project: ProjectName) -> None:
    client = make_client(None)
    for route in routes(app):
        if Permission.PUBLIC in route.permissions:
            continue
        for method in route.methods:
            answer = client.request(method, route.address(project.id))
            if route.path.startswith("/api/") or method != "GET":
                assert answer.status_code == 401, f"{method} {route.path}: {answer.status_code}"
            else:
                assert answer.headers["location"].startswith("/sign-in?next="), f"{method} {route.path}"


@pytest.mark.parametrize("role", ["engineer", "annotator", "viewer", "outsider", "admin"])
def test_each_role_reads_exactly_what_its_permissions_say(
    app: FastAPI, make_client: MakeClient, project: ProjectName, role: str
) -> None:
    client = make_client(role, browser=True)
    granted = GRANTED[role]
    for route in routes(app):
        if "GET" not in route.methods:
            continue
        (permission,) = route.permissions
        status = client.get(route.address(project.id)).status_code
        if permission in granted | {Permission.PUBLIC, Permission.SIGNED_IN}:
            assert status in (200, 303, 404, 422) or (status == 403 and role != "admin"), (
                f"{role} GET {route.path}: {status}"
            )
        else:
            assert status == 403, f"{role} GET {route.path}: {status}"


def test_an_engineer_of_another_project_finds_nothing_here(
    app: FastAPI, make_client: MakeClient, make_actor: MakeActor, admin: Actor, project: ProjectName, sessions: Sessions
) -> None:
    with unit_of_work(sessions) as session:
        elsewhere = create_project(session, admin, "Elsewhere").id
    client = make_client(make_actor("engineer", elsewhere))
    checked = 0
    for route in routes(app):
        if "{project_id}" not in route.path or "GET" not in route.methods:
            continue
        answer = client.get(route.address(project.id))
        assert answer.status_code in (404, 422), f"GET {route.path}: {answer.status_code}"
        checked += 1
    assert checked > 2


def test_a_token_never_does_more_than_its_scopes(make_client: MakeClient, admin: Actor, app: FastAPI) -> None:
    browser = make_client(admin, browser=True)
    made = browser.post(
        "/account/tokens", data={"name": "x", "days": "1", "scopes": ["judge"], "password": "seven quiet herons wade"}
    )
    secret = made.text.split('value="sts_')[1].split('"')[0]
    client = make_client(None)
    client.headers["Authorization"] = f"Bearer sts_{secret}"
    for route in routes(app):
        (permission,) = route.permissions
        if "GET" in route.methods and permission in (Permission.VIEW, Permission.ENGINEER, Permission.ADMIN):
            assert client.get(route.address(1)).status_code == 403, route.path


def test_losing_a_role_takes_effect_with_the_next_request(
    make_client: MakeClient, engineer: Actor, project: ProjectName, sessions: Sessions
) -> None:
    client = make_client(engineer)
    assert client.get(f"/api/v1/projects/{project.id}/members").status_code == 200
    with unit_of_work(sessions) as session:
        set_role(session, project.id, engineer.person_id, None)
    assert client.get(f"/api/v1/projects/{project.id}/members").status_code == 403
