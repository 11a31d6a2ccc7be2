"""Pages of accounts: setup and sign-in, the account with its API tokens, people."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy.orm import Session

from backend.accounts import credentials, service
from backend.accounts.access import Admin, Public, SignedIn, cookie_name, count_try, remind_to_set_up
from backend.accounts.actors import Permission, Role
from backend.accounts.credentials import OpenedSession
from backend.errors import StudioError
from backend.settings import Settings
from backend.web.problems import status_of
from backend.web.rendering import render
from backend.web.units import UnitOfWork

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]
SCOPES = {
    Permission.JUDGE: "take assignments and submit judgments",
    Permission.VIEW: "see datasets, runs and models",
    Permission.ENGINEER: "import, freeze, launch and cancel",
    Permission.ADMIN: "manage people",
}


def _to(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)


def _own_path(path: str) -> str:
    """*path* if it stays within the studio, else home (``//elsewhere`` leaves it, with backslashes too)."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"


def _signed_in(request: Request, opened: OpenedSession, path: str) -> Response:
    settings: Settings = request.app.state.settings
    answer = _to(path)
    answer.set_cookie(
        cookie_name(settings),
        opened.key,
        max_age=int(settings.session_absolute_hours * 3600),
        path="/",
        secure=settings.public_url.startswith("https://"),
        httponly=True,
        samesite="lax",
    )
    return answer


def _open(request: Request, session: Session, person_id: int) -> OpenedSession:
    settings: Settings = request.app.state.settings
    return credentials.open_session(
        session,
        service.get_person(session, person_id),
        absolute_hours=settings.session_absolute_hours,
        browser=request.headers.get("user-agent", ""),
        replaces=request.cookies.get(cookie_name(settings)),
    )


# --- setup and invitations


@router.get("/setup/{token}")
def setup_page(actor: Public, request: Request, session: UnitOfWork, token: str) -> HTMLResponse:
    """Where the first admin is created, or an invited person sets a password."""
    return render(
        request, "accounts/setup.html", invited=service.link_invites(session, token), error=None, name="", email=""
    )


@router.post("/setup/{token}")
def set_up(
    actor: Public,
    request: Request,
    session: UnitOfWork,
    token: str,
    password: Text = "",
    name: Text = "",
    email: Text = "",
) -> Response:
    """Spend the link and sign in."""
    try:
        with count_try(request, token), session.begin_nested():
            person = service.use_link(session, token, password, name, email)
    except StudioError as error:
        if isinstance(error, service.LinkSpent):
            raise
        invited = service.link_invites(session, token)
        return render(
            request,
            "accounts/setup.html",
            status=status_of(error),
            invited=invited,
            error=error,
            name=name,
            email=email,
        )
    return _signed_in(request, _open(request, session, person.id), "/")


# --- sign in, sign out


@router.get("/sign-in")
def sign_in_page(actor: Public, request: Request, session: UnitOfWork, next: str = "/") -> Response:
    """E-mail address and password."""
    remind_to_set_up(request, session)
    if actor is not None:
        return _to(_own_path(next))
    return render(request, "accounts/sign_in.html", next=_own_path(next), email="", error=None)


@router.post("/sign-in")
def sign_in(
    actor: Public, request: Request, session: UnitOfWork, email: Text = "", password: Text = "", next: Text = "/"
) -> Response:
    """Open a browser session; the former one of this browser ends."""
    remind_to_set_up(request, session)
    try:
        with count_try(request, email):
            person = credentials.sign_in(session, email, password)
    except StudioError as error:
        return render(
            request, "accounts/sign_in.html", status=status_of(error), next=_own_path(next), email=email, error=error
        )
    return _signed_in(request, _open(request, session, person.id), _own_path(next))


@router.post("/sign-out")
def sign_out(actor: SignedIn, request: Request, session: UnitOfWork) -> Response:
    """End this browser's session."""
    name = cookie_name(request.app.state.settings)
    credentials.close_session(session, request.cookies.get(name, ""))
    answer = _to("/sign-in")
    answer.delete_cookie(name, path="/", secure=name.startswith("__Host-"), httponly=True, samesite="lax")
    return answer


# --- the account


@router.get("/account")
def account_page(actor: SignedIn, request: Request, session: UnitOfWork) -> HTMLResponse:
    """Your API tokens, browsers and password."""
    return _account(request, session, actor)


@router.post("/account/tokens")
def create_token(
    actor: SignedIn,
    request: Request,
    session: UnitOfWork,
    name: Text = "",
    days: Annotated[int, Form()] = 30,
    scopes: Annotated[list[Permission], Form()] = [],  # noqa: B006  FastAPI copies defaults
    password: Text = "",
) -> HTMLResponse:
    """Make an API token; its secret is on this answer and nowhere else."""
    try:
        with count_try(request, f"person {actor.person_id}"):
            credentials.confirm_password(session, actor, password)
        token, secret = credentials.create_token(session, actor, name, scopes, days)
    except StudioError as error:
        return _account(request, session, actor, status=status_of(error), token_error=error)
    return _account(request, session, actor, status=201, secret=secret, new_token=token)


@router.post("/account/tokens/{token_id}/revoke")
def revoke_token(actor: SignedIn, session: UnitOfWork, token_id: int) -> Response:
    """End a token."""
    credentials.revoke_token(session, actor, token_id)
    return _to("/account")


@router.post("/account/password")
def change_password(actor: SignedIn, request: Request, session: UnitOfWork, old: Text = "", new: Text = "") -> Response:
    """Set a new password; all browsers are signed out except this one, which gets a fresh session."""
    try:
        with count_try(request, f"person {actor.person_id}"):
            credentials.change_password(session, actor, old, new)
    except StudioError as error:
        return _account(request, session, actor, status=status_of(error), password_error=error)
    return _signed_in(request, _open(request, session, actor.person_id), "/account")


@router.post("/account/sign-out-everywhere")
def sign_out_everywhere(actor: SignedIn, session: UnitOfWork) -> Response:
    """End all of the actor's browser sessions, this one too."""
    credentials.close_sessions(session, actor)
    return _to("/sign-in")


def _account(
    request: Request,
    session: Session,
    actor: SignedIn,
    *,
    status: int = 200,
    secret: str | None = None,
    new_token: object = None,
    token_error: StudioError | None = None,
    password_error: StudioError | None = None,
) -> HTMLResponse:
    browser = getattr(request.state, "browser", None)
    return render(
        request,
        "accounts/account.html",
        status=status,
        person=service.get_person(session, actor.person_id),
        tokens=credentials.list_tokens(session, actor),
        sessions=credentials.list_sessions(session, actor),
        this_session=browser.session_id if browser else None,
        scopes={scope: words for scope, words in SCOPES.items() if actor.may(scope)},
        secret=secret,
        new_token=new_token,
        token_error=token_error,
        password_error=password_error,
    )


# --- people


@router.get("/people")
def people_page(actor: Admin, request: Request, session: UnitOfWork) -> HTMLResponse:
    """Everybody with an account, and how to add somebody."""
    return _people(request, session, actor)


@router.post("/people")
def invite_person(
    actor: Admin,
    request: Request,
    session: UnitOfWork,
    name: Text = "",
    email: Text = "",
    role: Text = "",
    project: Text = "",
) -> HTMLResponse:
    """Add a person and show the link to send them."""
    given = {"name": name, "email": email, "role": role}
    try:
        with session.begin_nested():
            person, path = service.invite_person(
                session,
                actor,
                name,
                email,
                project_id=int(project) if project.isdigit() and role != "admin" else None,
                role=Role(role) if role in list(Role) else None,
                is_admin=role == "admin",
            )
    except StudioError as error:
        return _people(request, session, actor, status=status_of(error), error=error, given=given)
    return _people(request, session, actor, status=201, invited=person, link=_absolute(request, path))


@router.post("/people/{person_id}/invitation")
def renew_invitation(actor: Admin, request: Request, session: UnitOfWork, person_id: int) -> HTMLResponse:
    """A fresh link for somebody whose first is over or whose password is forgotten."""
    path = service.renew_invitation(session, actor, person_id)
    return _people(
        request, session, actor, invited=service.get_person(session, person_id), link=_absolute(request, path)
    )


@router.post("/people/{person_id}/active")
def set_active(actor: Admin, session: UnitOfWork, person_id: int, active: Annotated[bool, Form()]) -> Response:
    """Let somebody in, or keep them out."""
    service.set_active(session, actor, person_id, active)
    return _to("/people")


def _absolute(request: Request, path: str) -> str:
    return str(request.app.state.settings.public_url).rstrip("/") + path


def _people(
    request: Request,
    session: Session,
    actor: Admin,
    *,
    status: int = 200,
    invited: object = None,
    link: str | None = None,
    error: StudioError | None = None,
    given: dict[str, str] | None = None,
) -> HTMLResponse:
    return render(
        request,
        "accounts/people.html",
        status=status,
        people=service.list_people(session, actor),
        roles=service.roles_by_person(session),
        invited=invited,
        link=link,
        error=error,
        given=given or {"name": "", "email": "", "role": "annotator"},
    )
