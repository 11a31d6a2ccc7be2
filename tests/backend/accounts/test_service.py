"""People: links when two want the same and when time passes, names, and roles."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.accounts import credentials, service
from backend.accounts.actors import Actor, Permission, Role
from backend.accounts.tables import OneTimeLink, Person
from backend.db import Sessions, unit_of_work
from backend.errors import Forbidden
from tests.conftest import PASSWORD


def _token(path: str) -> str:
    return path.removeprefix("/setup/")


@pytest.mark.parametrize("same_link", [True, False])
def test_of_two_who_race_one_becomes_admin(sessions: Sessions, same_link: bool) -> None:
    with unit_of_work(sessions) as session:
        tokens = [_token(service.make_setup_link(session))] * 2
        if not same_link:  # two links can only exist side by side if two consoles made them at the same moment
            tokens[1] = service._make_link(session, None, timedelta(minutes=30))
    barrier = threading.Barrier(2)

    def claim(number: int) -> str:
        barrier.wait()
        try:
            with unit_of_work(sessions) as session:
                return service.use_link(
                    session, tokens[number], PASSWORD, f"Ada {number}", f"ada{number}@example.org"
                ).name
        except service.LinkSpent:
            return "too late"

    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(pool.map(claim, range(2)))
    assert outcomes[1] == "too late"
    with sessions() as session:
        assert session.scalars(select(Person.name).where(Person.is_admin)).all() == [outcomes[0]]


def test_a_setup_link_dies_after_half_an_hour_and_when_a_new_one_is_made(session: Session) -> None:
    first = _token(service.make_setup_link(session))
    second = _token(service.make_setup_link(session))
    with pytest.raises(service.LinkSpent):
        service.link_invites(session, first)
    assert service.link_invites(session, second) is None
    session.execute(update(OneTimeLink).values(expires_at=func.now() - timedelta(seconds=1)))
    with pytest.raises(service.LinkSpent):
        service.use_link(session, second, PASSWORD, "Ada", "ada@example.org")
    assert not service.has_admin(session)


def test_a_password_set_by_a_link_ends_every_other_way_in(session: Session, admin: Actor) -> None:
    person, first = service.invite_person(session, admin, "Wren", "wren@example.org")
    service.use_link(session, _token(first), PASSWORD)
    wren = service.actor_of(session, person.id)
    browser = credentials.open_session(session, person, absolute_hours=1).key
    _, secret = credentials.create_token(session, wren, "ci", [Permission.JUDGE], 30)
    others = credentials.create_token(session, admin, "ci", [Permission.VIEW], 30)[1]
    sent = _token(service.renew_invitation(session, admin, person.id))
    rescue = _token(service.make_rescue_link(session, "wren@example.org"))
    aside = service._make_link(session, person.id, timedelta(days=1))  # as two consoles could at the same moment
    service.use_link(session, rescue, "seven quiet herons wade")
    for token in (sent, rescue, aside):
        with pytest.raises(service.LinkSpent):
            service.use_link(session, token, "nine loud otters swim by")
    assert credentials.sign_in(session, "wren@example.org", "seven quiet herons wade").id == person.id
    assert credentials.browser_by_key(session, browser, idle_hours=1) is None
    assert credentials.actor_by_token(session, secret) is None
    assert credentials.actor_by_token(session, others) is not None, "other people's stay"


def test_a_new_link_ends_the_one_before(session: Session, admin: Actor) -> None:
    _, invitation = service.invite_person(session, admin, "Wren", "wren@example.org")
    rescue = service.make_rescue_link(session, "wren@example.org")
    with pytest.raises(service.LinkSpent):
        service.link_invites(session, _token(invitation))
    assert service.link_invites(session, _token(rescue)) is not None


def test_only_admins_manage_people_and_one_admin_stays(session: Session, engineer: Actor, admin: Actor) -> None:
    for forbidden in (
        lambda: service.list_people(session, engineer),
        lambda: service.invite_person(session, engineer, "Wren", "wren@example.org"),
        lambda: service.renew_invitation(session, engineer, admin.person_id),
        lambda: service.set_active(session, engineer, admin.person_id, False),
    ):
        with pytest.raises(Forbidden):
            forbidden()
    with pytest.raises(service.LastAdmin):
        service.set_active(session, admin, admin.person_id, False)


@pytest.mark.parametrize(
    ("name", "email"), [("", "a@b"), ("A\nB\u202e", "a@b"), ("x" * 101, "a@b"), ("A", "no-at-sign"), ("A", "a@b c")]
)
def test_nobody_gets_an_unreadable_name_or_address(session: Session, admin: Actor, name: str, email: str) -> None:
    with pytest.raises(service.InvalidPerson):
        service.invite_person(session, admin, name, email)


def test_roles_are_per_project(session: Session, engineer: Actor) -> None:
    (project_id,) = engineer.roles
    assert engineer.may(Permission.ENGINEER, project_id)
    assert not engineer.may(Permission.ENGINEER, project_id + 1)
    service.set_role(session, project_id, engineer.person_id, Role.VIEWER)
    changed = service.actor_of(session, engineer.person_id)
    assert (changed.may(Permission.VIEW, project_id), changed.may(Permission.ENGINEER, project_id)) == (True, False)
