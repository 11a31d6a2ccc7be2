"""A project is a goal with members; everything else belongs to exactly one project."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.accounts import service as accounts
from backend.accounts.actors import Actor, Permission, Role
from backend.accounts.service import Member
from backend.errors import Conflict, Forbidden, Invalid, NotFound
from backend.projects.tables import Project


class ProjectNameTaken(Conflict):
    """Another project has this name."""


class InvalidProject(Invalid):
    """This project cannot be made."""


class NoSuchProject(NotFound):
    """There is no such project, or you are not one of its members."""


class ProjectName(NamedTuple):
    """What the rail's switch shows."""

    id: int
    name: str


def create_project(session: Session, actor: Actor, name: str, goal: str = "") -> Project:
    """A new project; who makes it is its first engineer."""
    if not actor.may(Permission.ENGINEER):
        raise Forbidden("Engineers and admins make projects.", remedy="Ask an engineer.")
    name = " ".join(name.split())
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise InvalidProject(
            "A project's name has 1 to 80 printable characters.", field="name", remedy="Name the goal."
        )
    if len(goal) > 2000:
        raise InvalidProject("The goal has at most 2,000 characters.", field="goal", remedy="Shorten it.")
    if session.scalar(select(Project.id).where(Project.name == name)) is not None:
        raise ProjectNameTaken(f"“{name}” exists.", field="name", remedy="Choose another name.")
    project = Project(name=name, goal=goal.strip(), created_by_id=actor.person_id)
    session.add(project)
    session.flush()
    accounts.set_role(session, project.id, actor.person_id, Role.ENGINEER)
    return project


def get_project(session: Session, actor: Actor, project_id: int) -> Project:
    """The project, if the actor is a member (whatever the role) or an admin."""
    project = session.get(Project, project_id)
    if project is None or not (actor.is_admin or project_id in actor.roles):
        raise NoSuchProject(
            "There is no such project, or you are not one of its members.", remedy="Ask an engineer of the project."
        )
    return project


def find_project(session: Session, name: str) -> int | None:
    """Id of the project with this name; for code of the studio's own machine, where nobody's rights are asked."""
    return session.scalar(select(Project.id).where(Project.name == name))


def list_projects(session: Session, actor: Actor) -> Sequence[Project]:
    """The actor's projects by name; all of them for an admin."""
    query = select(Project).order_by(func.lower(Project.name))
    if not actor.is_admin:
        query = query.where(Project.id.in_(actor.roles))
    return session.scalars(query).all()


def list_members(session: Session, actor: Actor, project_id: int) -> list[Member]:
    """Who works in the project, by name; for those who may see it."""
    get_project(session, actor, project_id)
    actor.require(Permission.VIEW, project_id)
    return accounts.members(session, project_id)


def set_member(session: Session, actor: Actor, project_id: int, email: str, role: Role) -> Member:
    """Give somebody who has an account a role in the project, or change it."""
    get_project(session, actor, project_id)
    actor.require(Permission.ENGINEER, project_id)
    person = accounts.find_person(session, email)
    if person is None:
        raise NotFound(
            f"Nobody here has the address {email[:100]}.",
            remedy="An admin can invite them under People.",
            field="email",
        )
    accounts.set_role(session, project_id, person.id, role)
    return Member(person, role)


def remove_member(session: Session, actor: Actor, project_id: int, person_id: int) -> None:
    """Take somebody out of the project; what they did stays on record."""
    get_project(session, actor, project_id)
    actor.require(Permission.ENGINEER, project_id)
    accounts.set_role(session, project_id, person_id, None)
