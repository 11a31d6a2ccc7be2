"""What surrounds every page: who is signed in, their projects, the project at hand, and the numbers in the rail."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fastapi import Request
from sqlalchemy.orm import Session

from backend.accounts import credentials
from backend.accounts.actors import Actor
from backend.accounts.credentials import KnownBrowser
from backend.projects import service as projects
from backend.projects.service import ProjectName


class Count(Protocol):
    """A part's numbers for the rail (``{"datasets": 6}``), in one query; a number that is unknown is left out."""

    def __call__(self, session: Session, actor: Actor, project_id: int) -> Mapping[str, int]:
        """Count for *actor* in *project_id*."""
        ...


class Shell:
    """Everything ``base.html`` needs. The numbers are counted only when a page shows them, so that an API call costs nothing."""

    def __init__(
        self, session: Session, browser: KnownBrowser, wanted: int | None, path: str, counters: Sequence[Count]
    ) -> None:
        self._session, self._counters = session, counters
        self._counts: dict[str, int] | None = None
        self.actor = browser.actor
        self.csrf = browser.csrf
        self.path = path
        self.projects = [
            ProjectName(project.id, project.name) for project in projects.list_projects(session, browser.actor)
        ]
        by_id = {project.id: project for project in self.projects}
        first = self.projects[0] if self.projects else None
        self.project: ProjectName | None = by_id.get(wanted or 0) or by_id.get(browser.project_id or 0) or first

    def enter(self, project_id: int) -> None:
        """The page's object belongs to *project_id*: the rail shows that project."""
        if self.project is None or self.project.id != project_id:
            self.project = next((project for project in self.projects if project.id == project_id), self.project)
            self._counts = None

    def without_counts(self) -> None:
        """For error pages: the request's transaction is over, nothing may be asked any more."""
        self._counts = self._counts or {}

    @property
    def counts(self) -> Mapping[str, int]:
        """``judge``, ``labeling``, ``datasets``, ``runs``, ``running``, ``queued``, ``models``, ``silent``; absent means unknown."""
        if self._counts is None:
            self._counts = {}
            for count in self._counters if self.project else ():
                self._counts.update(count(self._session, self.actor, self.project.id if self.project else 0))
        return self._counts


def shell_maker(counters: Sequence[Count]) -> Callable[[Session, KnownBrowser, Request], Shell]:
    """What ``accounts.access`` calls for a signed-in browser. The project in the address wins and is remembered."""

    def make(session: Session, browser: KnownBrowser, request: Request) -> Shell:
        given = request.path_params.get("project_id") or (
            request.query_params.get("project") if request.url.path == "/" else None
        )
        wanted = int(given) if given is not None and str(given).isascii() and str(given).isdigit() else None
        shell = Shell(session, browser, wanted, request.url.path, counters)
        if shell.project is not None and shell.project.id == wanted and wanted != browser.project_id:
            credentials.remember_project(session, browser.session_id, wanted)
        return shell

    return make
