"""Links, passwords, browser sessions and tokens: what they promise when two want the same, and when time passes."""

import re
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from backend.accounts import passwords, service
from backend.accounts.actors import Actor, Permission, Role
from backend.accounts.tables import ApiToken, BrowserSession, OneTimeLink, Person
from backend.db import Sessions, unit_of_work
from backend.errors import Forbidden, StudioError
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


@pytest.mark.parametrize(
    "weak",
    ["short", "12345678901", "Password1234", "aaaaaaaaaaaaaaa", "ada@example.org", "x" * 2000, "abababababababab"],
)
def test_passwords_that_people_try_first_are_refused(weak: str) -> None:
    with pytest.raises(passwords.WeakPassword):
        passwords.check_strength(weak, "Ada", "ada@example.org")


def test_passwords_are_stored_as_argon2id_with_owasps_parameters(session: Session, admin: Actor) -> None:
    stored = session.get_one(Person, admin.person_id).password_hash
    assert stored is not None
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert service.sign_in(session, " ADA@Example.org ", PASSWORD).id == admin.person_id


def test_an_unknown_person_costs_as_much_time_as_a_known_one(session: Session, admin: Actor) -> None:
    def median(email: str) -> float:
        took = []
        for _ in range(9):
            began = time.process_time()
            with pytest.raises(service.WrongNameOrPassword):
                service.sign_in(session, email, "wrong wrong wrong")
            took.append(time.process_time() - began)
        return statistics.median(took)

    known, unknown = median("ada@example.org"), median("nobody@example.org")
    assert unknown > known / 2  # without the dummy hash it is a hundredth


def test_at_most_four_hashes_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock = 0, 0, threading.Lock()
    verify = passwords._hasher.verify

    class Watched:
        def verify(self, stored: str, given: str) -> bool:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            try:
                return verify(stored, given)
            finally:
                with lock:
                    running -= 1

    monkeypatch.setattr(passwords, "_hasher", Watched())
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: passwords.matches(None, "x"), range(32)))
    assert 1 <= most <= 4


def test_a_browser_session_ends_when_idle_and_whatever_happens_after_a_week(session: Session, admin: Actor) -> None:
    person = session.get_one(Person, admin.person_id)
    key = service.open_session(session, person, absolute_hours=168).key
    assert service.browser_by_key(session, key, idle_hours=12) is not None
    session.execute(update(BrowserSession).values(seen_at=func.now() - timedelta(hours=13)))
    assert service.browser_by_key(session, key, idle_hours=12) is None
    session.execute(update(BrowserSession).values(seen_at=func.now(), expires_at=func.now()))
    assert service.browser_by_key(session, key, idle_hours=12) is None


def test_signing_in_again_ends_this_browsers_former_session_only(session: Session, admin: Actor) -> None:
    person = session.get_one(Person, admin.person_id)
    here = service.open_session(session, person, absolute_hours=1).key
    elsewhere = service.open_session(session, person, absolute_hours=1).key
    again = service.open_session(session, person, absolute_hours=1, replaces=here).key
    alive = [key for key in (here, elsewhere, again) if service.browser_by_key(session, key, idle_hours=1)]
    assert alive == [elsewhere, again]
    assert service.close_sessions(session, admin) == 2


def test_a_new_password_ends_every_browser(session: Session, admin: Actor) -> None:
    key = service.open_session(session, session.get_one(Person, admin.person_id), absolute_hours=1).key
    with pytest.raises(service.WrongPassword):
        service.change_password(session, admin, "not the old one", "another four word phrase")
    service.change_password(session, admin, PASSWORD, "another four word phrase")
    assert service.browser_by_key(session, key, idle_hours=1) is None
    assert service.sign_in(session, "ada@example.org", "another four word phrase").id == admin.person_id


def test_a_token_carries_its_scopes_ends_and_never_breeds(session: Session, engineer: Actor, admin: Actor) -> None:
    token, secret = service.create_token(session, engineer, "ci", [Permission.VIEW], 30)
    assert re.fullmatch(r"sts_[\w-]{43}", secret)
    bearer = service.actor_by_token(session, secret)
    assert bearer is not None
    project_id = next(iter(engineer.roles))
    assert bearer.may(Permission.VIEW, project_id)
    assert not bearer.may(Permission.ENGINEER, project_id)
    with pytest.raises(service.NeedsBrowser):
        service.create_token(session, bearer, "child", [Permission.VIEW], 30)
    with pytest.raises(service.InvalidToken):
        service.create_token(session, engineer, "admin", [Permission.ADMIN], 30)
    for days in (0, 367):
        with pytest.raises(service.InvalidToken):
            service.create_token(session, admin, "long", [Permission.VIEW], days)
    with pytest.raises(StudioError):
        service.revoke_token(session, admin, token.id)  # somebody else's
    session.execute(update(ApiToken).values(expires_at=func.now()))
    assert service.actor_by_token(session, secret) is None


def test_a_dump_of_the_database_holds_no_secret(sessions: Sessions, admin: Actor) -> None:
    with unit_of_work(sessions) as session:
        secrets = [
            service.create_token(session, admin, "ci", [Permission.VIEW], 30)[1],
            service.open_session(session, session.get_one(Person, admin.person_id), absolute_hours=1).key,
            _token(service.invite_person(session, admin, "Wren", "wren@example.org")[1]),
            PASSWORD,
        ]
    with sessions() as session:
        tables = session.scalars(text("select tablename from pg_tables where schemaname = 'public'")).all()
        dump = "\n".join(str(row) for table in tables for row in session.execute(text(f'select * from "{table}"')))
    assert "ada@example.org" in dump
    assert not [secret for secret in secrets if secret in dump]


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


def test_signing_in_touches_the_record_once_a_minute(session: Session, admin: Actor) -> None:
    key = service.open_session(session, session.get_one(Person, admin.person_id), absolute_hours=1).key
    session.execute(update(BrowserSession).values(seen_at=func.now() - timedelta(seconds=30)))
    before = session.scalar(select(BrowserSession.seen_at))
    service.browser_by_key(session, key, idle_hours=1)
    assert session.scalar(select(BrowserSession.seen_at)) == before
    session.execute(update(BrowserSession).values(seen_at=func.now() - timedelta(seconds=90)))
    service.browser_by_key(session, key, idle_hours=1)
    assert session.scalar(select(BrowserSession.seen_at)) == session.scalar(select(func.now()))
