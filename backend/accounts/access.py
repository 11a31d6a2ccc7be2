"""Who may call a route. Every route takes exactly one of the aliases below; a contract test fails on one without.

``def list_runs(actor: Viewer, session: UnitOfWork, project_id: int)``: the alias is the coarse check (may this actor do
such a thing in *any* project, or in the one that the address names?); services check the very object with ``actor.require``.
"""

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from backend.accounts import credentials, service
from backend.accounts.actors import Actor, Permission
from backend.errors import Forbidden, Invalid, StudioError, Unauthenticated, Unavailable
from backend.settings import Settings
from backend.web.limits import PER_ACCOUNT, PER_ADDRESS, RateLimits
from backend.web.units import UnitOfWork

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class NoAdminYet(Unavailable):
    """This studio has no admin yet."""


class StaleForm(Forbidden):
    """This form is from another sign-in."""


def cookie_name(settings: Settings) -> str:
    """``__Host-`` binds the cookie to this host and to https; browsers refuse the prefix on plain http."""
    return "__Host-studio" if settings.public_url.startswith("https://") else "studio"


def remind_to_set_up(request: Request, session: Session) -> None:
    """Until an admin exists nothing else is of use: say how to get the link. Afterwards this costs nothing."""
    state = request.app.state
    if getattr(state, "has_admin", False):
        return
    state.has_admin = service.has_admin(session)
    if not state.has_admin:
        raise NoAdminYet(
            "The first admin is created with a one-time link.",
            remedy="`studio up` prints that link; `studio admin create-link` on the studio's machine makes a new one.",
        )


@contextmanager
def count_try(request: Request, account: str) -> Iterator[None]:
    """Around a check of a password or link: every try counts for the account, failed ones for the caller's address too.

    Many people behind one address may sign in at nine o'clock; nobody may guess from it.
    """
    limits: RateLimits = request.app.state.limits
    address = request.client.host if request.client else "unknown"
    limits.look(PER_ADDRESS, "address", address)
    limits.hit(PER_ACCOUNT, "account", account.strip().lower())
    try:
        yield
    except StudioError:
        limits.hit(PER_ADDRESS, "address", address)
        raise


async def _sent_csrf(request: Request) -> str:
    """The token in the header or the form field ``csrf``. Forms are parsed once: routes see the same parsed form."""
    if request.method in SAFE or "authorization" in request.headers:
        return ""
    if header := request.headers.get("x-csrf-token"):
        return header
    kind = request.headers.get("content-type", "")
    if kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
        sent = (await request.form()).get("csrf")
        return sent if isinstance(sent, str) else ""
    return ""


def _bearer(request: Request) -> str | None:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return None
    if scheme.lower() != "bearer":
        raise Unauthenticated("Only bearer tokens are taken here.", remedy="Send `Authorization: Bearer sts_…`.")
    return secret.strip()


class Declared:
    """A dependency that yields the actor. ``permission`` is what the contract test looks for on every route."""

    def __init__(self, permission: Permission) -> None:
        self.permission = permission

    def actor(self, request: Request, session: Session, csrf: str) -> Actor | None:
        """Who sent the bearer token or the cookie; sets ``request.state.actor`` and, for pages, ``.shell``."""
        settings: Settings = request.app.state.settings
        secret, key = _bearer(request), request.cookies.get(cookie_name(settings))
        if secret is not None and key is not None:
            raise Invalid("Both a cookie and a bearer token were sent.", remedy="Send one of them.")
        actor: Actor | None = None
        if secret is not None:
            actor = credentials.actor_by_token(session, secret)
            if actor is None:
                raise Unauthenticated(
                    "This API token is unknown, revoked or over.", remedy="Make a new one on the account page."
                )
        elif key is not None:
            browser = credentials.browser_by_key(session, key, idle_hours=settings.session_idle_hours)
            if browser is not None:
                if request.method not in SAFE and not hmac.compare_digest(csrf.encode(), browser.csrf.encode()):
                    raise StaleForm("Nothing was changed.", remedy="Reload the page and send it again.")
                actor = browser.actor
                request.state.browser = browser
                if not request.url.path.startswith("/api/"):
                    request.state.shell = request.app.state.make_shell(session, browser, request)
        request.state.actor = actor
        return actor


class Require(Declared):
    """For people who may: refuses strangers and those without the permission."""

    def __call__(self, request: Request, session: UnitOfWork, csrf: Annotated[str, Depends(_sent_csrf)]) -> Actor:
        """The actor, or ``Unauthenticated``, or ``Forbidden``."""
        actor = self.actor(request, session, csrf)
        if actor is None:
            remind_to_set_up(request, session)
            raise Unauthenticated("This is for people who are signed in.", remedy="Sign in, or send an API token.")
        if not actor.may(self.permission):
            raise Forbidden(
                f"This needs the permission “{self.permission}”, which you do not have in any project"
                + (" or which this API token leaves out." if actor.scopes is not None else "."),
                remedy="Ask an engineer of the project or an admin.",
            )
        return actor


class Welcome(Declared):
    """For everybody: the actor if there is one. A cookie that is over is no obstacle to signing in."""

    def __call__(
        self, request: Request, session: UnitOfWork, csrf: Annotated[str, Depends(_sent_csrf)]
    ) -> Actor | None:
        """The actor or ``None``; never refuses."""
        try:
            return self.actor(request, session, csrf)
        except StudioError:
            return None


class Ignore(Declared):
    """For everybody, whoever it is: nothing is looked up, so it works when the database does not."""

    def __call__(self) -> None:
        """Nothing."""


@cache
def require(permission: Permission) -> Require | Welcome:
    """The dependency for *permission*; the same object each time, so FastAPI resolves it once per request."""
    return Welcome(permission) if permission is Permission.PUBLIC else Require(permission)


Anybody = Annotated[None, Depends(Ignore(Permission.PUBLIC))]
Public = Annotated[Actor | None, Depends(require(Permission.PUBLIC))]
SignedIn = Annotated[Actor, Depends(require(Permission.SIGNED_IN))]
Annotator = Annotated[Actor, Depends(require(Permission.JUDGE))]
Viewer = Annotated[Actor, Depends(require(Permission.VIEW))]
Engineer = Annotated[Actor, Depends(require(Permission.ENGINEER))]
Admin = Annotated[Actor, Depends(require(Permission.ADMIN))]
