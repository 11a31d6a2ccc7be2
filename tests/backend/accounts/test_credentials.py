"""Passwords, browser sessions and tokens: what they promise when time passes, and what the database never holds."""

import re
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from backend.accounts import credentials, passwords, service
from backend.accounts.actors import Actor, Permission
from backend.accounts.tables import ApiToken, BrowserSession, Person
from backend.db import Sessions, unit_of_work
from backend.errors import StudioError
from tests.conftest import PASSWORD


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
    assert credentials.sign_in(session, " ADA@Example.org ", PASSWORD).id == admin.person_id


def test_an_unknown_person_costs_as_much_time_as_a_known_one(session: Session, admin: Actor) -> None:
    def median(email: str) -> float:
        took = []
        for _ in range(9):
            began = time.process_time()
            with pytest.raises(credentials.WrongNameOrPassword):
                credentials.sign_in(session, email, "wrong wrong wrong")
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
    key = credentials.open_session(session, person, absolute_hours=168).key
    assert credentials.browser_by_key(session, key, idle_hours=12) is not None
    session.execute(update(BrowserSession).values(seen_at=func.now() - timedelta(hours=13)))
    assert credentials.browser_by_key(session, key, idle_hours=12) is None
    session.execute(update(BrowserSession).values(seen_at=func.now(), expires_at=func.now()))
    assert credentials.browser_by_key(session, key, idle_hours=12) is None


def test_signing_in_again_ends_this_browsers_former_session_only(session: Session, admin: Actor) -> None:
    person = session.get_one(Person, admin.person_id)
    here = credentials.open_session(session, person, absolute_hours=1).key
    elsewhere = credentials.open_session(session, person, absolute_hours=1).key
    again = credentials.open_session(session, person, absolute_hours=1, replaces=here).key
    alive = [key for key in (here, elsewhere, again) if credentials.browser_by_key(session, key, idle_hours=1)]
    assert alive == [elsewhere, again]
    assert credentials.close_sessions(session, admin) == 2


def test_a_new_password_ends_every_browser_and_open_link(session: Session, admin: Actor) -> None:
    key = credentials.open_session(session, session.get_one(Person, admin.person_id), absolute_hours=1).key
    with pytest.raises(credentials.WrongPassword):
        credentials.change_password(session, admin, "not the old one", "another four word phrase")
    link = service.make_rescue_link(session, "ada@example.org").removeprefix("/setup/")
    credentials.change_password(session, admin, PASSWORD, "another four word phrase")
    with pytest.raises(service.LinkSpent):
        service.link_invites(session, link)
    assert credentials.browser_by_key(session, key, idle_hours=1) is None
    assert credentials.sign_in(session, "ada@example.org", "another four word phrase").id == admin.person_id


def test_a_token_carries_its_scopes_ends_and_never_breeds(session: Session, engineer: Actor, admin: Actor) -> None:
    token, secret = credentials.create_token(session, engineer, "ci", [Permission.VIEW], 30)
    assert re.fullmatch(r"sts_[\w-]{43}", secret)
    bearer = credentials.actor_by_token(session, secret)
    assert bearer is not None
    project_id = next(iter(engineer.roles))
    assert bearer.may(Permission.VIEW, project_id)
    assert not bearer.may(Permission.ENGINEER, project_id)
    with pytest.raises(credentials.NeedsBrowser):
        credentials.create_token(session, bearer, "child", [Permission.VIEW], 30)
    with pytest.raises(credentials.InvalidToken):
        credentials.create_token(session, engineer, "admin", [Permission.ADMIN], 30)
    for days in (0, 367):
        with pytest.raises(credentials.InvalidToken):
            credentials.create_token(session, admin, "long", [Permission.VIEW], days)
    with pytest.raises(StudioError):
        credentials.revoke_token(session, admin, token.id)  # somebody else's
    session.execute(update(ApiToken).values(expires_at=func.now()))
    assert credentials.actor_by_token(session, secret) is None


def test_a_dump_of_the_database_holds_no_secret(sessions: Sessions, admin: Actor) -> None:
    with unit_of_work(sessions) as session:
        secrets = [
            credentials.create_token(session, admin, "ci", [Permission.VIEW], 30)[1],
            credentials.open_session(session, session.get_one(Person, admin.person_id), absolute_hours=1).key,
            service.invite_person(session, admin, "Wren", "wren@example.org")[1].removeprefix("/setup/"),
            PASSWORD,
        ]
    with sessions() as session:
        tables = session.scalars(text("select tablename from pg_tables where schemaname = 'public'")).all()
        dump = "\n".join(str(row) for table in tables for row in session.execute(text(f'select * from "{table}"')))
    assert "ada@example.org" in dump
    assert not [secret for secret in secrets if secret in dump]


def test_signing_in_touches_the_record_once_a_minute(session: Session, admin: Actor) -> None:
    key = credentials.open_session(session, session.get_one(Person, admin.person_id), absolute_hours=1).key
    session.execute(update(BrowserSession).values(seen_at=func.now() - timedelta(seconds=30)))
    before = session.scalar(select(BrowserSession.seen_at))
    credentials.browser_by_key(session, key, idle_hours=1)
    assert session.scalar(select(BrowserSession.seen_at)) == before
    session.execute(update(BrowserSession).values(seen_at=func.now() - timedelta(seconds=90)))
    credentials.browser_by_key(session, key, idle_hours=1)
    assert session.scalar(select(BrowserSession.seen_at)) == session.scalar(select(func.now()))
