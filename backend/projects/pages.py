"""Pages of projects: the list, and one project with its members."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy.orm import Session

from backend.accounts.access import Engineer, SignedIn, Viewer
from backend.accounts.actors import Actor, Permission, Role
from backend.errors import StudioError
from backend.projects import service
from backend.web.problems import status_of
from backend.web.rendering import render
from backend.web.units import UnitOfWork

router = APIRouter(prefix="/projects", include_in_schema=False)
Text = Annotated[str, Form()]


@router.get("")
def projects_page(actor: SignedIn, request: Request, session: UnitOfWork) -> HTMLResponse:
    """All projects of the actor."""
    return _list(request, session, actor)


@router.post("")
def create_project(
    actor: Engineer, request: Request, session: UnitOfWork, name: Text = "", goal: Text = ""
) -> Response:
    """Make a project and go there."""
    try:
        with session.begin_nested():
            project = service.create_project(session, actor, name, goal)
    except StudioError as error:
        return _list(request, session, actor, status=status_of(error), error=error, name=name, goal=goal)
    return RedirectResponse(f"/?project={project.id}", status_code=303)


@router.get("/{project_id}/members")
def members_page(actor: Viewer, request: Request, session: UnitOfWork, project_id: int) -> HTMLResponse:
    """The project's goal and who works in it."""
    return _members(request, session, actor, project_id)


@router.post("/{project_id}/members")
def set_member(
    actor: Engineer,
    request: Request,
    session: UnitOfWork,
    project_id: int,
    email: Text = "",
    role: Annotated[Role, Form()] = Role.ANNOTATOR,
) -> Response:
    """Add a member or change a role."""
    try:
        with session.begin_nested():
            service.set_member(session, actor, project_id, email, role)
    except StudioError as error:
        return _members(request, session, actor, project_id, status=status_of(error), error=error, email=email)
    return RedirectResponse(f"/projects/{project_id}/members", status_code=303)


@router.post("/{project_id}/members/{person_id}/remove")
def remove_member(actor: Engineer, session: UnitOfWork, project_id: int, person_id: int) -> Response:
    """Take somebody out of the project."""
    service.remove_member(session, actor, project_id, person_id)
    return RedirectResponse(f"/projects/{project_id}/members", status_code=303)


def _list(
    request: Request,
    session: Session,
    actor: Actor,
    *,
    status: int = 200,
    error: StudioError | None = None,
    name: str = "",
    goal: str = "",
) -> HTMLResponse:
    return render(
        request,
        "projects/projects.html",
        status=status,
        projects=service.list_projects(session, actor),
        may_create=actor.may(Permission.ENGINEER),
        error=error,
        name=name,
        goal=goal,
    )


def _members(
    request: Request,
    session: Session,
    actor: Actor,
    project_id: int,
    *,
    status: int = 200,
    error: StudioError | None = None,
    email: str = "",
) -> HTMLResponse:
    return render(
        request,
        "projects/members.html",
        status=status,
        this_project=service.get_project(session, actor, project_id),
        members=service.list_members(session, actor, project_id),
        may_change=actor.may(Permission.ENGINEER, project_id),
        roles=list(Role),
        error=error,
        email=email,
    )
