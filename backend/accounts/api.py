"""REST of accounts: who am I, API tokens, people."""

from datetime import datetime

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from backend.accounts import credentials, service
from backend.accounts.access import Admin, Public, SignedIn, count_try, remind_to_set_up
from backend.accounts.actors import Permission, Role
from backend.web.units import UnitOfWork

router = APIRouter(prefix="/api/v1", tags=["accounts"])


class Closed(BaseModel):
    """A request body: unknown fields are refused, not ignored."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class SignIn(Closed):
    """A password exchanged for an API token; how ``studio login`` gets one."""

    email: str = Field(max_length=254, examples=["finch@example.org"])
    password: str = Field(max_length=1024, examples=["seven quiet herons wade"])
    token_name: str = Field("command line", max_length=100)
    """What the account page calls the token."""
    days: int = Field(30, ge=1, le=credentials.TOKEN_DAYS_MAX)
    """Days until the token is over."""


class NewToken(BaseModel):
    """An API token; ``token`` is shown this once."""

    id: int
    token: str = Field(examples=["sts_Zq3…"])
    scopes: list[Permission]
    expires_at: datetime


class Token(BaseModel):
    """An API token as the studio remembers it."""

    id: int
    name: str
    prefix: str
    scopes: list[Permission]
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None


class Tokens(BaseModel):
    """The actor's tokens."""

    items: list[Token]
    next: int | None = None


class Me(BaseModel):
    """The actor behind the request."""

    id: int
    name: str
    is_admin: bool
    roles: dict[int, Role] = Field(examples=[{"1": "engineer"}])
    """Project id → role."""
    scopes: list[Permission] | None
    """What the token is limited to."""


class PersonOut(BaseModel):
    """Somebody with an account."""

    id: int
    name: str
    email: str
    is_admin: bool
    is_active: bool
    has_password: bool
    """False while the invitation is open."""


class People(BaseModel):
    """Everybody, by name."""

    items: list[PersonOut]
    next: int | None = None


class Invitation(Closed):
    """Somebody to add."""

    name: str = Field(examples=["Wren"])
    email: str = Field(examples=["wren@example.org"])
    project_id: int | None = Field(None, examples=[1])
    role: Role | None = Field(None, examples=["annotator"])
    is_admin: bool = False


class Invited(BaseModel):
    """The new person, and where they set their password: once, within a week."""

    id: int
    link: str = Field(examples=["https://studio.example.org/setup/…"])


class PersonChange(Closed):
    """What may change about a person."""

    is_active: bool


@router.post("/sign-in", status_code=201)
def sign_in(actor: Public, request: Request, session: UnitOfWork, body: SignIn) -> NewToken:
    """Exchange a password for an API token with all of the person's permissions."""
    remind_to_set_up(request, session)
    with count_try(request, body.email):
        person = credentials.sign_in(session, body.email, body.password)
    known = service.actor_of(session, person.id)
    scopes = [scope for scope in credentials.GRANTABLE if scope is not Permission.ADMIN or known.is_admin]
    token, secret = credentials.create_token(session, known, body.token_name, scopes, body.days)
    return NewToken(id=token.id, token=secret, scopes=scopes, expires_at=token.expires_at)


@router.get("/me")
def me(actor: SignedIn) -> Me:
    """Who this token or browser belongs to."""
    scopes = None if actor.scopes is None else sorted(actor.scopes)
    return Me(id=actor.person_id, name=actor.name, is_admin=actor.is_admin, roles=dict(actor.roles), scopes=scopes)


@router.get("/tokens")
def list_tokens(actor: SignedIn, session: UnitOfWork) -> Tokens:
    """Your API tokens; their secrets are not kept."""
    return Tokens(
        items=[Token.model_validate(token, from_attributes=True) for token in credentials.list_tokens(session, actor)]
    )


@router.delete("/tokens/{token_id}", status_code=204)
def revoke_token(actor: SignedIn, session: UnitOfWork, token_id: int) -> None:
    """End one of your API tokens at once."""
    credentials.revoke_token(session, actor, token_id)


@router.get("/people")
def list_people(actor: Admin, session: UnitOfWork) -> People:
    """Everybody with an account."""
    return People(
        items=[
            PersonOut(
                id=person.id,
                name=person.name,
                email=person.email,
                is_admin=person.is_admin,
                is_active=person.is_active,
                has_password=person.password_hash is not None,
            )
            for person in service.list_people(session, actor)
        ]
    )


@router.post("/people", status_code=201)
def invite_person(actor: Admin, request: Request, session: UnitOfWork, body: Invitation) -> Invited:
    """Add a person. Send them the link; nobody else ever knows their password."""
    person, path = service.invite_person(
        session, actor, body.name, body.email, project_id=body.project_id, role=body.role, is_admin=body.is_admin
    )
    return Invited(id=person.id, link=request.app.state.settings.public_url.rstrip("/") + path)


@router.post("/people/{person_id}/invitation", status_code=201)
def renew_invitation(actor: Admin, request: Request, session: UnitOfWork, person_id: int) -> Invited:
    """A fresh link to set a password, when the first is over or the password forgotten."""
    path = service.renew_invitation(session, actor, person_id)
    return Invited(id=person_id, link=request.app.state.settings.public_url.rstrip("/") + path)


@router.patch("/people/{person_id}", status_code=204)
def change_person(actor: Admin, session: UnitOfWork, person_id: int, body: PersonChange) -> None:
    """Let a person in, or keep them out: browsers and tokens end at once, what they did stays on record."""
    service.set_active(session, actor, person_id, body.is_active)
