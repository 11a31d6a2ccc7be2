"""People, the ways to be known (browser session, API token, one-time link), and their roles in projects."""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import Label, Select, delete, func, select, update
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor, Permission, Role
from backend.accounts.passwords import check_strength, hash_password, matches, needs_rehash
from backend.accounts.tables import ApiToken, BrowserSession, Membership, OneTimeLink, Person
from backend.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated

SETUP_LINK_MINUTES = 30
INVITATION_DAYS = 7
TOKEN_PREFIX = "sts_"
SYSTEM_EMAIL = "studio@localhost"
TOKEN_DAYS_MAX = 366
SEEN_EVERY = timedelta(minutes=1)
SETUP_LOCK = 7305114

GRANTABLE = (Permission.JUDGE, Permission.VIEW, Permission.ENGINEER, Permission.ADMIN)
"""What an API token can be limited to."""


class WrongNameOrPassword(Unauthenticated):
    """That name and password do not belong together."""


class WrongPassword(Forbidden):
    """This is not your password."""


class LinkSpent(NotFound):
    """This link was used already, or its time is over."""


class AdminExists(Conflict):
    """This studio has an admin already."""


class EmailTaken(Conflict):
    """Somebody with this e-mail address is here already."""


class InvalidPerson(Invalid):
    """This person's name or e-mail address cannot be used."""


class InvalidToken(Invalid):
    """This API token cannot be made."""


class LastAdmin(Conflict):
    """The last admin has to stay."""


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


def digest(secret: str) -> str:
    """What the database keeps of a random secret: its SHA-256. A slow hash would add nothing to 128 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


# --- the first admin


def has_admin(session: Session) -> bool:
    """Whether anybody can sign in as admin."""
    return session.scalar(select(_admins().exists())) or False


def make_setup_link(session: Session) -> str:
    """Path of a fresh link, ``/setup/<token>``, that creates the first admin within 30 minutes; earlier ones die."""
    if has_admin(session):
        raise AdminExists("An admin exists, so there is nothing to set up.", remedy="Ask an admin for an invitation.")
    session.execute(delete(OneTimeLink).where(OneTimeLink.person_id.is_(None)))
    return f"/setup/{_make_link(session, None, timedelta(minutes=SETUP_LINK_MINUTES))}"


def make_rescue_link(session: Session, email: str) -> str:
    """Path of a link by which the person with *email* sets a new password; for the console of the studio's own machine."""
    person = session.scalar(select(Person).where(func.lower(Person.email) == email.strip().lower()))
    if person is None:
        raise NotFound("Nobody has this e-mail address.", remedy="Look at the list of people.", field="email")
    return f"/setup/{_make_link(session, person.id, timedelta(minutes=SETUP_LINK_MINUTES))}"


def link_invites(session: Session, token: str) -> Person | None:
    """Whom the link invites, ``None`` for the setup link; raises :class:`LinkSpent`."""
    link = session.scalar(_usable_link(token))
    if link is None or (link.person_id is None and has_admin(session)):
        raise _spent()
    return session.get(Person, link.person_id) if link.person_id is not None else None


def use_link(session: Session, token: str, password: str, name: str = "", email: str = "") -> Person:
    """Spend the link: create the first admin, or set the invited person's password. One of two racers wins."""
    session.execute(select(func.pg_advisory_xact_lock(SETUP_LOCK)))  # two *different* setup links must not both win
    invited = link_invites(session, token)
    if invited is None:
        name, email = _checked_name(name), _checked_email(email)
        check_strength(password, name, email)
        person = Person(name=name, email=email, is_admin=True)
        session.add(person)
    else:
        check_strength(password, invited.name, invited.email)
        person = invited
        session.execute(delete(BrowserSession).where(BrowserSession.person_id == person.id))
    spent = update(OneTimeLink).where(OneTimeLink.token_sha256 == digest(token), OneTimeLink.used_at.is_(None))
    if session.execute(spent.values(used_at=func.now()).returning(OneTimeLink.id)).first() is None:
        raise _spent()
    person.password_hash = hash_password(password)
    session.flush()
    return person


def _make_link(session: Session, person_id: int | None, lives: timedelta) -> str:
    token = secrets.token_urlsafe(16)  # 128 bits
    session.add(OneTimeLink(token_sha256=digest(token), person_id=person_id, expires_at=func.now() + lives))
    session.flush()
    return token


def _usable_link(token: str) -> Select[OneTimeLink]:
    return select(OneTimeLink).where(
        OneTimeLink.token_sha256 == digest(token), OneTimeLink.used_at.is_(None), OneTimeLink.expires_at > func.now()
    )


def _spent() -> LinkSpent:
    return LinkSpent(
        "Nothing was changed.",
        remedy="Ask an admin for a new invitation, or run `studio admin create-link` on the studio's machine.",
    )


# --- browser sessions


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
            BrowserSession, Person, _roles_of(), (BrowserSession.seen_at < func.now() - SEEN_EVERY).label("is_stale")
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
    return KnownBrowser(_actor(person, roles), known.id, known.csrf, known.project_id)


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
            _roles_of(),
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
    return _actor(person, roles, frozenset(Permission(scope) for scope in token.scopes), token.id)


# --- people


def invite_person(
    session: Session,
    actor: Actor,
    name: str,
    email: str,
    *,
    project_id: int | None = None,
    role: Role | None = None,
    is_admin: bool = False,
) -> tuple[Person, str]:
    """A new person and the path of the one-time link by which they set their password within a week."""
    _require_admin(actor)
    name, email = _checked_name(name), _checked_email(email)
    if session.scalar(select(Person.id).where(func.lower(Person.email) == email.lower())) is not None:
        raise EmailTaken(f"{email} has an account.", remedy="Add that person to the project instead.", field="email")
    person = Person(name=name, email=email, is_admin=is_admin)
    session.add(person)
    session.flush()
    if project_id is not None:
        set_role(session, project_id, person.id, role or Role.ANNOTATOR)
    return person, f"/setup/{_make_link(session, person.id, timedelta(days=INVITATION_DAYS))}"


def renew_invitation(session: Session, actor: Actor, person_id: int) -> str:
    """A fresh link by which the person sets a password, also when the old one is forgotten; earlier links die."""
    _require_admin(actor)
    person = get_person(session, person_id)
    session.execute(delete(OneTimeLink).where(OneTimeLink.person_id == person.id))
    return f"/setup/{_make_link(session, person.id, timedelta(days=INVITATION_DAYS))}"


def list_people(session: Session, actor: Actor) -> Sequence[Person]:
    """Everybody, by name; for admins. What came with the studio was made by nobody who could be let in."""
    _require_admin(actor)
    return session.scalars(
        select(Person).where(Person.email != SYSTEM_EMAIL).order_by(func.lower(Person.name), Person.id)
    ).all()


def get_person(session: Session, person_id: int) -> Person:
    """The person with this id; callers have checked that they may know."""
    person = session.get(Person, person_id)
    if person is None:
        raise NotFound("There is no such person.", remedy="Look at the list of people.")
    return person


def make_system_person(session: Session, name: str) -> Actor | None:
    """Who made what came with the studio, able to do everything; ``None`` if it exists. Nobody can sign in as it."""
    if find_person(session, SYSTEM_EMAIL) is not None:
        return None
    person = add_person(session, name, SYSTEM_EMAIL)
    person.is_active = False
    return Actor(person.id, person.name, is_admin=True)


def add_person(session: Session, name: str, email: str) -> Person:
    """A person without a password or a link: only the studio's own machine can give them a token."""
    person = Person(name=name, email=email)
    session.add(person)
    session.flush()
    return person


def find_person(session: Session, email: str) -> Person | None:
    """The person with this e-mail address."""
    return session.scalar(select(Person).where(func.lower(Person.email) == email.strip().lower()))


def names(session: Session, person_ids: Sequence[int]) -> Mapping[int, str]:
    """Names by id, in one query."""
    found = session.execute(select(Person.id, Person.name).where(Person.id.in_(set(person_ids)))).all()
    return {row.id: row.name for row in found}


def set_active(session: Session, actor: Actor, person_id: int, active: bool) -> None:
    """Let a person in or keep them out; keeping out ends browser sessions and tokens at once, the record stays."""
    _require_admin(actor)
    person = get_person(session, person_id)
    if not active and person.is_admin:
        others = session.scalars(_admins().where(Person.id != person_id).limit(1)).all()
        if not others:
            raise LastAdmin("Nobody could manage the studio any more.", remedy="Make somebody else an admin first.")
    person.is_active = active
    if not active:
        for table in (BrowserSession, ApiToken):
            session.execute(delete(table).where(table.person_id == person_id))


def confirm_password(session: Session, actor: Actor, password: str) -> None:
    """Ask again who is there before something that outlives the browser session is made."""
    person = get_person(session, actor.person_id)
    if not matches(person.password_hash, password):
        raise WrongPassword("The password is wrong.", field="password", remedy="Type the password you sign in with.")


def change_password(session: Session, actor: Actor, old: str, new: str) -> None:
    """Set a new password; all other ways in with the old one end (the caller opens a new browser session)."""
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


# --- roles


def actor_of(session: Session, person_id: int) -> Actor:
    """The actor that a person is in their own browser; for the command line, the demo and tests."""
    person, roles = session.execute(select(Person, _roles_of()).where(Person.id == person_id)).one()
    return _actor(person, roles)


def set_role(session: Session, project_id: int, person_id: int, role: Role | None) -> None:
    """Give a person a role in a project, change it, or (``None``) take it away; callers have checked that they may."""
    membership = session.get(Membership, (project_id, person_id))
    if role is None:
        if membership is not None:
            session.delete(membership)
    elif membership is None:
        session.add(Membership(project_id=project_id, person_id=person_id, role=role))
    else:
        membership.role = role
    session.flush()


def roles_by_person(session: Session) -> Mapping[int, Mapping[int, Role]]:
    """Person id → project id → role, for the list of people."""
    found: dict[int, dict[int, Role]] = {}
    for membership in session.scalars(select(Membership).order_by(Membership.project_id)):
        found.setdefault(membership.person_id, {})[membership.project_id] = Role(membership.role)
    return found


class Member(NamedTuple):
    """A person with their role in the project asked about."""

    person: Person
    role: Role


def members(session: Session, project_id: int) -> list[Member]:
    """Who works in the project, by name."""
    rows = session.execute(
        select(Person, Membership.role)
        .join(Membership, Membership.person_id == Person.id)
        .where(Membership.project_id == project_id)
        .order_by(func.lower(Person.name), Person.id)
    )
    return [Member(person, Role(role)) for person, role in rows]


# --- helpers


def _admins() -> Select[int]:
    return select(Person.id).where(Person.is_admin, Person.is_active, Person.password_hash.is_not(None))


def _roles_of() -> Label[Any]:
    pairs = select(func.jsonb_object_agg(Membership.project_id, Membership.role)).where(
        Membership.person_id == Person.id
    )
    return pairs.scalar_subquery().label("roles")


def _actor(
    person: Person,
    roles: Mapping[str, str] | None,
    scopes: frozenset[Permission] | None = None,
    token_id: int | None = None,
) -> Actor:
    by_project = {int(project): Role(role) for project, role in (roles or {}).items()}
    return Actor(person.id, person.name, person.is_admin, by_project, scopes, token_id)


def _require_admin(actor: Actor) -> None:
    if not actor.may(Permission.ADMIN):
        raise Forbidden("Only an admin manages people.", remedy="Ask an admin.")


def _checked_name(name: str) -> str:
    name = " ".join(name.split())
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise InvalidPerson(
            "A name has 1 to 100 printable characters.", field="name", remedy="Write the name as people say it."
        )
    return name


def _checked_email(email: str) -> str:
    email = email.strip()
    if len(email) > 254 or not email.isprintable() or not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
        raise InvalidPerson(
            f"“{email[:100]}” is not an e-mail address.", field="email", remedy="Write it like name@example.org."
        )
    return email
