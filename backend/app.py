"""The composition root of the web: settings in, one FastAPI application out. Start it with ``uvicorn --factory backend.app:create``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from sqlalchemy import make_url
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles

from backend import __version__, about, home
from backend.accounts import api as accounts_api
from backend.accounts import pages as accounts_pages
from backend.artifacts import Artifacts
from backend.datasets import api as datasets_api
from backend.datasets import pages as datasets_pages
from backend.datasets import service as datasets_service
from backend.db import Sessions, connect, make_sessions
from backend.jobs import make_celery
from backend.labeling import api as labeling_api
from backend.labeling import pages as labeling_pages
from backend.labeling import service as labeling_service
from backend.live import Bell
from backend.projects import api as projects_api
from backend.projects import pages as projects_pages
from backend.registry import api as registry_api
from backend.registry import pages as registry_pages
from backend.registry import service as registry_service
from backend.runs import api as runs_api
from backend.runs import pages as runs_pages
from backend.runs import service as runs_service
from backend.runs import uses
from backend.settings import Settings
from backend.shell import Count, shell_maker
from backend.web import problems
from backend.web.bodies import BodyGuard
from backend.web.limits import RateLimits
from backend.web.rendering import FRONTEND
from backend.web.security import SameOrigin, SecurityHeaders

ROUTERS: list[APIRouter] = [
    part.router
    for part in (
        accounts_api,
        accounts_pages,
        projects_api,
        projects_pages,
        datasets_api,
        datasets_pages,
        registry_api,
        registry_pages,
        runs_api,
        runs_pages,
        labeling_api,
        labeling_pages,
        home,
        about,
    )
]
RAIL_COUNTS: list[Count] = [
    datasets_service.rail_counts,
    registry_service.rail_counts,
    runs_service.rail_counts,
    labeling_service.rail_counts,
]
"""What the rail counts beside the names of the parts."""

DESCRIPTION = """
Everything the browser does, this API does too: import preferences, freeze judgments into dataset versions, train, watch, compare.

Send `Authorization: Bearer sts_…`; tokens are made on the account page or by `studio login`.
Errors are problem documents (RFC 9457) with `title`, `detail`, `remedy` and, where one is at fault, `field` or `line`.
Lists answer `{"items": […], "next": cursor}`; send the cursor back as `after`.
"""


def create(settings: Settings | None = None) -> FastAPI:
    """The application for uvicorn, with settings from the environment."""
    return create_app(settings or Settings())


def create_app(settings: Settings, sessions: Sessions | None = None) -> FastAPI:
    """The whole web. *sessions* replaces the database connection (tests bring their own); its ``info`` is filled up."""
    made = sessions or make_sessions(connect(settings.database_url))
    bell = Bell(settings.redis_url)
    info = made.kw.setdefault("info", {})
    info.setdefault("artifacts", Artifacts(settings.artifacts_url, settings.studio_home / "artifact-cache"))
    info.setdefault("producer", make_celery(settings.redis_url))
    info.setdefault("bell", bell)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if sessions is None:
            made.kw["bind"].dispose()

    app = FastAPI(
        title="Alignment Studio",
        version=__version__,
        description=DESCRIPTION,
        openapi_url=None,  # served by backend.web.reference, behind the sign-in
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        middleware=[
            Middleware(SecurityHeaders, https=settings.public_url.startswith("https://")),
            Middleware(problems.Unexpected),
            Middleware(SameOrigin),
            Middleware(BodyGuard, max_upload_bytes=settings.max_upload_bytes),
        ],
    )
    app.state.settings = settings
    app.state.sessions = made
    app.state.bell = bell
    app.state.limits = RateLimits(settings.redis_url, studio=make_url(settings.database_url).database or "")
    app.state.make_shell = shell_maker(RAIL_COUNTS)
    # what runs tell the parts below them, which may not import runs
    app.state.version_uses = [uses.version_uses]
    app.state.tell_runs = uses.tell_runs
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=FRONTEND / "dist", check_dir=False), name="static")
    return app
