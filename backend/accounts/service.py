"""People: the one-time links that let them in, and their roles in projects. How they are known later: ``credentials``."""

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import Label, Select, delete, func, select, update
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor, Permission, Role
from backend.accounts.passwords import check_strength, digest, hash_password
from backend.accounts.tables import ApiToken, BrowserSession, Membership, OneTimeLink, Person
from backend.errors import Conflict, Forbidden, Invalid, NotFound

SETUP_LINK_MINUTES = 30
INVITATION_DAYS = 7
SYSTEM_EMAIL = "studio@localhost"
SETUP_LOCK = 7305115


class LinkSpent(NotFound):
    """This link was used already, or its time is over."""


class AdminExists(Conflict):
    """This studio has an admin already."""


class EmailTaken(Conflict):
    """Somebody with this e-mail address is here already."""


class InvalidPerson(Invalid):
    """This person's name or e-mail address cannot be used."""


class LastAdmin(Conflict):
    """The last admin has to stay."""


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
    """Path of a link by which the person with *email* sets a new password; for the studio's own console; earlier links die."""
    person = session.scalar(select(Person).where(func.lower(Person.email) == email.strip().lower()))
    if person is None:
        raise NotFound("Nobody has this e-mail address.", remedy="Look at the list of people.", field="email")
    end_links(session, person.id)
    return f"/setup/{_make_link(session, person.id, timedelta(minutes=SETUP_LINK_MINUTES))}"


def link_invites(session: Session, token: str) -> Person | None:
    """Whom the link invites, ``None`` for the setup link; raises :class:`LinkSpent`."""
    link = session.scalar(_usable_link(token))
    if link is None or (link.person_id is None and has_admin(session)):
        raise _spent()
    return session.get(Person, link.person_id) if link.person_id is not None else None


def use_link(session: Session, token: str, password: str, name: str = "", email: str = "") -> Person:
    """Spend the link: create the first admin, or set the invited person's password. One of two racers wins.

    A password that is set anew may have been known to somebody else, so whatever let in beside it ends too.
    """
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
        for table in (BrowserSession, ApiToken):
            session.execute(delete(table).where(table.person_id == person.id))
    spent = update(OneTimeLink).where(OneTimeLink.token_sha256 == digest(token), OneTimeLink.used_at.is_(None))
    if session.execute(spent.values(used_at=func.now()).returning(OneTimeLink.id)).first() is None:
        raise _spent()
    end_links(session, person.id)
    person.password_hash = hash_password(password)
    session.flush()
    return person


def end_links(session: Session, person_id: int) -> None:
    """Make useless what could still set this person's password without the present one."""
    session.execute(delete(OneTimeLink).where(OneTimeLink.person_id == person_id, OneTimeLink.used_at.is_(None)))


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
    end_links(session, person.id)
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


# --- roles


def roles_column() -> Label[Any]:
    """Beside a person: their roles by project, for :func:`make_actor`."""
    pairs = select(func.jsonb_object_agg(Membership.project_id, Membership.role)).where(
        Membership.person_id == Person.id
    )
    return pairs.scalar_subquery().label("roles")


def make_actor(
    person: Person,
    roles: Mapping[str, str] | None,
    scopes: frozenset[Permission] | None = None,
    token_id: int | None = None,
) -> Actor:
    """The actor that *person* is, with *roles* as :func:`roles_column` gives them; a token limits it to *scopes*."""
    by_project = {int(project): Role(role) for project, role in (roles or {}).items()}
    return Actor(person.id, person.name, person.is_admin, by_project, scopes, token_id)


def actor_of(session: Session, person_id: int) -> Actor:
    """The actor that a person is in their own browser; for the command line, the demo and tests."""
    person, roles = session.execute(select(Person, roles_column()).where(Person.id == person_id)).one()
    return make_actor(person, roles)


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
