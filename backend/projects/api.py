"""REST of projects: a goal and its members."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from backend.accounts.access import Engineer, SignedIn, Viewer
from backend.accounts.actors import Role
from backend.accounts.service import Member
from backend.projects import service
from backend.web.units import UnitOfWork

router = APIRouter(prefix="/api/v1/projects", tags=["projects"])


class NewProject(BaseModel):
    """A project to make."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(examples=["Support tone"])
    goal: str = Field("", examples=["Answers that a customer would thank us for."])


class ProjectOut(BaseModel):
    """A project."""

    id: int
    name: str
    goal: str
    created_at: datetime


class Projects(BaseModel):
    """The projects you are a member of, by name."""

    items: list[ProjectOut]
    next: int | None = None


class MemberOut(BaseModel):
    """A person's role in the project."""

    person_id: int
    name: str
    email: str
    role: Role


class Members(BaseModel):
    """Who works in the project, by name."""

    items: list[MemberOut]
    next: int | None = None


class NewMember(BaseModel):
    """Who gets which role."""

    model_config = ConfigDict(extra="forbid")

    email: str = Field(examples=["wren@example.org"])
    role: Role = Field(examples=["annotator"])


def _member(member: Member) -> MemberOut:
    return MemberOut(person_id=member.person.id, name=member.person.name, email=member.person.email, role=member.role)


@router.get("")
def list_projects(actor: SignedIn, session: UnitOfWork) -> Projects:
    """The projects you are a member of; all of them for an admin."""
    found = service.list_projects(session, actor)
    return Projects(items=[ProjectOut.model_validate(project, from_attributes=True) for project in found])


@router.post("", status_code=201)
def create_project(actor: Engineer, session: UnitOfWork, body: NewProject) -> ProjectOut:
    """Make a project and become its first engineer."""
    return ProjectOut.model_validate(service.create_project(session, actor, body.name, body.goal), from_attributes=True)


@router.get("/{project_id}")
def get_project(actor: SignedIn, session: UnitOfWork, project_id: int) -> ProjectOut:
    """One project of yours."""
    return ProjectOut.model_validate(service.get_project(session, actor, project_id), from_attributes=True)


@router.get("/{project_id}/members")
def list_members(actor: Viewer, session: UnitOfWork, project_id: int) -> Members:
    """Who works in the project."""
    return Members(items=[_member(member) for member in service.list_members(session, actor, project_id)])


@router.put("/{project_id}/members")
def set_member(actor: Engineer, session: UnitOfWork, project_id: int, body: NewMember) -> MemberOut:
    """Add somebody who has an account, or change their role."""
    return _member(service.set_member(session, actor, project_id, body.email, body.role))


@router.delete("/{project_id}/members/{person_id}", status_code=204)
def remove_member(actor: Engineer, session: UnitOfWork, project_id: int, person_id: int) -> None:
    """Take somebody out; what they did stays on record."""
    service.remove_member(session, actor, project_id, person_id)
