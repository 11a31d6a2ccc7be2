"""Projects: who makes them, who sees them, who changes their members."""

import pytest
from sqlalchemy.orm import Session

from backend.accounts import service as accounts
from backend.accounts.actors import Actor, Role
from backend.errors import Forbidden, NotFound
from backend.projects import service
from backend.projects.service import ProjectName
from tests.conftest import MakeActor, MakeClient


def test_who_makes_a_project_is_its_engineer(session: Session, engineer: Actor) -> None:
    made = service.create_project(session, engineer, "  Tone   of voice ", "Kind answers.")
    assert made.name == "Tone of voice"
    assert accounts.actor_of(session, engineer.person_id).roles[made.id] is Role.ENGINEER
    with pytest.raises(service.ProjectNameTaken):
        service.create_project(session, engineer, "Tone of voice")


def test_annotators_and_viewers_make_none(session: Session, make_actor: MakeActor) -> None:
    for role in ("annotator", "viewer", "outsider"):
        with pytest.raises(Forbidden):
            service.create_project(session, make_actor(role), "Mine")


def test_members_see_their_projects_and_outsiders_learn_nothing(
    session: Session, project: ProjectName, make_actor: MakeActor
) -> None:
    for role in ("engineer", "viewer", "annotator"):
        actor = make_actor(role)
        assert service.get_project(session, actor, project.id).name == project.name
        assert [one.id for one in service.list_projects(session, actor)] == [project.id]
    outsider = make_actor("outsider")
    assert list(service.list_projects(session, outsider)) == []
    with pytest.raises(NotFound) as real:
        service.get_project(session, outsider, project.id)
    with pytest.raises(NotFound) as imaginary:
        service.get_project(session, outsider, 987654321)
    assert str(real.value) == str(imaginary.value)


def test_engineers_manage_members_and_annotators_do_not_even_see_them(
    session: Session, project: ProjectName, engineer: Actor, make_actor: MakeActor
) -> None:
    newcomer = make_actor("outsider")
    email = accounts.get_person(session, newcomer.person_id).email
    service.set_member(session, engineer, project.id, email.upper(), Role.VIEWER)
    assert {one.person.id: one.role for one in service.list_members(session, engineer, project.id)}[
        newcomer.person_id
    ] is Role.VIEWER
    service.remove_member(session, engineer, project.id, newcomer.person_id)
    assert newcomer.person_id not in {one.person.id for one in service.list_members(session, engineer, project.id)}
    for role in ("viewer", "annotator"):
        with pytest.raises(Forbidden):
            service.set_member(session, make_actor(role), project.id, email, Role.ENGINEER)
    with pytest.raises(Forbidden):
        service.list_members(session, make_actor("annotator"), project.id)


def test_the_rest_api_does_what_the_pages_do(make_client: MakeClient, admin: Actor) -> None:
    api = make_client(admin)
    made = api.post("/api/v1/projects", json={"name": "Tone", "goal": "Kind answers."}).json()
    link = api.post("/api/v1/people", json={"name": "Wren", "email": "wren@example.org"}).json()["link"]
    assert link.startswith("http://testserver/setup/")
    put = api.put(f"/api/v1/projects/{made['id']}/members", json={"email": "wren@example.org", "role": "annotator"})
    assert put.json()["role"] == "annotator"
    assert [one["name"] for one in api.get(f"/api/v1/projects/{made['id']}/members").json()["items"]] == ["Ada", "Wren"]
    nobody = api.put(f"/api/v1/projects/{made['id']}/members", json={"email": "x@y", "role": "viewer"})
    assert (nobody.status_code, nobody.json()["field"]) == (404, "email")
    strange = api.put(f"/api/v1/projects/{made['id']}/members", json={"email": "x@y", "role": "owner"})
    assert (strange.status_code, strange.json()["field"]) == (422, "role")


def test_the_rail_follows_the_address_and_remembers_the_project(
    make_client: MakeClient, admin: Actor, project: ProjectName
) -> None:
    browser = make_client(admin, browser=True)
    made = browser.post("/projects", data={"name": "Another one"}).headers["location"]
    assert f'name="project" content="{project.id}"' not in browser.get(made).text
    assert f'name="project" content="{project.id}"' not in browser.get("/account").text
    browser.get(f"/projects/{project.id}/members")
    assert f'name="project" content="{project.id}"' in browser.get("/account").text
