"""How people are known: passwords, browser sessions and API tokens. The database keeps hashes of all three and no secret."""

import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor, Permission
from backend.accounts.passwords import check_strength, digest, hash_password, matches, needs_rehash
from backend.accounts.service import end_links, get_person, make_actor, roles_column
from backend.accounts.tables import ApiToken, BrowserSession, Person
from backend.errors import Forbidden, Invalid, NotFound, Unauthenticated

TOKEN_PREFIX = "sts_"
TOKEN_DAYS_MAX = 366
SEEN_EVERY = timedelta(minutes=1)

GRANTABLE = (Permission.JUDGE, Permission.VIEW, Permission.ENGINEER, Permission.ADMIN)
"""What an API token can be limited to."""


class WrongNameOrPassword(Unauthenticated):
    """That name and password do not belong together."""


class WrongPassword(Forbidden):
    """This is not your password."""


class InvalidToken(Invalid):
    """This API token cannot be made."""


class NeedsBrowser(Forbidden):
    """This is done in the browser, signed in with a password."""


class OpenedSession(NamedTuple):
    """A new browser session; ``key`` goes into the cookie and is nowhere else."""

    key: str
    person: Person


class KnownBrowser(NamedTuple):
    """What a cookie stands for."""

    actor: Actor
    session_id: int
    csrf: str
    project_id: int | None


# --- passwords


def sign_in(session: Session, email: str, password: str) -> Person:
    """The person behind *email* and *password*; unknown people cost as much time as known ones."""
    person = session.scalar(select(Person).where(func.lower(Person.email) == email.strip().lower(), Person.is_active))
    if not matches(person.password_hash if person else None, password) or person is None:
        raise WrongNameOrPassword(
            "E-mail address or password is wrong.",
            remedy="Check both; after five tries the studio asks you to wait a minute.",
        )
    if person.password_hash and needs_rehash(person.password_hash):
        person.password_hash = hash_password(password)
    return person


def confirm_password(session: Session, actor: Actor, password: str) -> None:
    """Ask again who is there before something that outlives the browser session is made."""
    person = get_person(session, actor.person_id)
    if not matches(person.password_hash, password):
        raise WrongPassword("The password is wrong.", field="password", remedy="Type the password you sign in with.")


def change_password(session: Session, actor: Actor, old: str, new: str) -> None:
    """Set a new password; browsers and open links end, API tokens stay (the caller opens a new browser session)."""
    if actor.token_id is not None:
        raise NeedsBrowser("A password cannot be changed with an API token.", remedy="Do it on the account page.")
    person = get_person(session, actor.person_id)
    if not matches(person.password_hash, old):
        raise WrongPassword(
            "The present password is wrong.", field="old", remedy="Ask an admin for a new link if it is lost."
        )
    check_strength(new, person.name, person.email)
    person.password_hash = hash_password(new)
    session.execute(delete(BrowserSession).where(BrowserSession.person_id == person.id))
    end_links(session, person.id)


# --- browser sessions


def open_session(
    session: Session, person: Person, *, absolute_hours: float, browser: str = "", replaces: str | None = None
) -> OpenedSession:
    """A new browser session for *person*. The key is always fresh (no fixation); the browser's former one (*replaces*) ends."""
    if replaces:
        close_session(session, replaces)
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at < func.now()))
    key = secrets.token_urlsafe(32)  # 256 bits
    session.add(
        BrowserSession(
            key_sha256=digest(key),
            person_id=person.id,
            csrf=secrets.token_urlsafe(16),
            browser=browser[:200],
            expires_at=func.now() + timedelta(hours=absolute_hours),
        )
    )
    person.seen_at = func.now()
    session.flush()
    return OpenedSession(key, person)


def close_session(session: Session, key: str) -> None:
    """Sign the browser with this cookie out."""
    session.execute(delete(BrowserSession).where(BrowserSession.key_sha256 == digest(key)))


def close_sessions(session: Session, actor: Actor) -> int:
    """Sign the actor out everywhere; returns how many browsers that were."""
    closed = session.execute(
        delete(BrowserSession).where(BrowserSession.person_id == actor.person_id).returning(BrowserSession.id)
    )
    return len(closed.all())


def list_sessions(session: Session, actor: Actor) -> Sequence[BrowserSession]:
    """The actor's signed-in browsers, last used first."""
    return session.scalars(
        select(BrowserSession)
        .where(BrowserSession.person_id == actor.person_id, BrowserSession.expires_at > func.now())
        .order_by(BrowserSession.seen_at.desc())
    ).all()


def browser_by_key(session: Session, key: str, *, idle_hours: float) -> KnownBrowser | None:
    """Who holds this cookie, or ``None`` if it is unknown, idle for too long, or over."""
    row = session.execute(
        select(
            BrowserSession, Person, roles_column(), (BrowserSession.seen_at < func.now() - SEEN_EVERY).label("is_stale")
        )
        .join(Person, Person.id == BrowserSession.person_id)
        .where(
            BrowserSession.key_sha256 == digest(key),
            BrowserSession.expires_at > func.now(),
            BrowserSession.seen_at > func.now() - timedelta(hours=idle_hours),
            Person.is_active,
        )
    ).first()
    if row is None:
        return None
    known, person, roles, is_stale = row
    if is_stale:  # not every request writes
        session.execute(update(BrowserSession).where(BrowserSession.id == known.id).values(seen_at=func.now()))
        session.execute(update(Person).where(Person.id == person.id).values(seen_at=func.now()))
    return KnownBrowser(make_actor(person, roles), known.id, known.csrf, known.project_id)


def remember_project(session: Session, session_id: int, project_id: int) -> None:
    """The rail of this browser shows *project_id* from now on."""
    session.execute(update(BrowserSession).where(BrowserSession.id == session_id).values(project_id=project_id))


# --- API tokens


def create_token(
    session: Session, actor: Actor, name: str, scopes: Sequence[Permission], days: int
) -> tuple[ApiToken, str]:
    """A new API token and its secret, which is shown once. Only a browser session may make one: tokens must not breed."""
    if actor.token_id is not None:
        raise NeedsBrowser("An API token cannot make another one.", remedy="Make it on the account page.")
    chosen = [scope for scope in GRANTABLE if scope in set(scopes)]
    if not name.strip() or len(name) > 100:
        raise InvalidToken(
            "A token needs a name of at most 100 characters.", field="name", remedy="Say where it will be used."
        )
    if not chosen:
        raise InvalidToken("A token needs at least one permission.", field="scopes", remedy="Tick what it is for.")
    if not 1 <= days <= TOKEN_DAYS_MAX:
        raise InvalidToken(f"A token lives 1 to {TOKEN_DAYS_MAX} days.", field="days", remedy="Choose fewer days.")
    if Permission.ADMIN in chosen and not actor.is_admin:
        raise InvalidToken(
            "Only an admin's token can carry the permission admin.", field="scopes", remedy="Leave admin out."
        )
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = ApiToken(
        person_id=actor.person_id,
        name=name.strip(),
        prefix=secret[:8],
        token_sha256=digest(secret),
        scopes=[str(scope) for scope in chosen],
        expires_at=func.now() + timedelta(days=days),
    )
    session.add(token)
    session.flush()
    return token, secret


def list_tokens(session: Session, actor: Actor) -> Sequence[ApiToken]:
    """The actor's tokens that are not over, newest first."""
    return session.scalars(
        select(ApiToken)
        .where(ApiToken.person_id == actor.person_id, ApiToken.expires_at > func.now())
        .order_by(ApiToken.id.desc())
    ).all()


def revoke_token(session: Session, actor: Actor, token_id: int) -> None:
    """End one of the actor's own tokens at once."""
    ended = (
        delete(ApiToken).where(ApiToken.id == token_id, ApiToken.person_id == actor.person_id).returning(ApiToken.id)
    )
    if session.execute(ended).first() is None:
        raise NotFound("There is no such token of yours.", remedy="Reload the page.")


def actor_by_token(session: Session, secret: str) -> Actor | None:
    """Who the bearer of *secret* is, or ``None``."""
    row = session.execute(
        select(
            ApiToken,
            Person,
            roles_column(),
            func.coalesce(ApiToken.used_at < func.now() - SEEN_EVERY, True).label("is_stale"),
        )
        .join(Person, Person.id == ApiToken.person_id)
        .where(ApiToken.token_sha256 == digest(secret), ApiToken.expires_at > func.now(), Person.is_active)
    ).first()
    if row is None:
        return None
    token, person, roles, is_stale = row
    if is_stale:
        session.execute(update(ApiToken).where(ApiToken.id == token.id).values(used_at=func.now()))
    return make_actor(person, roles, frozenset(Permission(scope) for scope in token.scopes), token.id)
