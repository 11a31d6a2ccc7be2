"""Who is asking, and what they may do: pure values, no web, no tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from backend.errors import Forbidden, NotFound


class Role(StrEnum):
    """What a member may do in one project; admins may do everything everywhere."""

    ENGINEER = "engineer"
    ANNOTATOR = "annotator"
    VIEWER = "viewer"


class Permission(StrEnum):
    """What a route asks for."""

    PUBLIC = "public"
    """Nobody needs to be signed in."""
    SIGNED_IN = "signed_in"
    """Any person; the route touches only what is theirs."""
    JUDGE = "judge"
    """Take assignments and submit judgments."""
    VIEW = "view"
    """See datasets, runs, models and aggregate quality; never an annotator's own page of assignments."""
    ENGINEER = "engineer"
    """Import, label sessions, launch and cancel runs."""
    ADMIN = "admin"
    """People, tokens of others, everything."""


GRANTS: dict[Role, frozenset[Permission]] = {
    Role.ENGINEER: frozenset({Permission.JUDGE, Permission.VIEW, Permission.ENGINEER}),
    Role.ANNOTATOR: frozenset({Permission.JUDGE}),
    Role.VIEWER: frozenset({Permission.VIEW}),
}


@dataclass(frozen=True)
class Actor:
    """A person, known by a browser session or an API token."""

    person_id: int
    name: str
    is_admin: bool = False
    roles: Mapping[int, Role] = field(default_factory=dict)
    """Project id → role."""
    scopes: frozenset[Permission] | None = None
    """What a token is limited to; ``None`` for a browser session: everything the person may do."""
    token_id: int | None = None

    def may(self, permission: Permission, project_id: int | None = None) -> bool:
        """Whether *permission* is granted in *project_id* (``None``: in any project)."""
        if permission in (Permission.PUBLIC, Permission.SIGNED_IN):
            return True
        if self.scopes is not None and permission not in self.scopes:
            return False
        if self.is_admin:
            return True
        if permission is Permission.ADMIN:
            return False
        roles = self.roles.values() if project_id is None else filter(None, [self.roles.get(project_id)])
        return any(permission in GRANTS[role] for role in roles)

    def require(self, permission: Permission, project_id: int) -> None:
        """Raise ``NotFound`` to outsiders (so that ids tell nothing) and ``Forbidden`` to members who may not."""
        if self.may(permission, project_id):
            return
        if self.is_admin or project_id in self.roles:
            raise Forbidden(f"This needs the permission “{permission}” in the project.")
        raise NotFound("There is no such thing here, or it is not yours to see.")
