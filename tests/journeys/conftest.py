"""A real browser on the real web: uvicorn on a free port, the test's own database, Debian's or any installed Chromium.

Whatever a page loads must come from the studio, and nothing may be wrong in the console: each opened page is held to that.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect

from backend import embedded
from backend.accounts import credentials
from backend.accounts.access import cookie_name
from backend.accounts.actors import Actor
from backend.accounts.tables import Person
from backend.app import create_app
from backend.db import Sessions, unit_of_work
from backend.settings import Settings
from tests.conftest import MakeActor

expect.set_options(timeout=15_000)  # two cores, shared with Postgres, Valkey and the web

FRONTEND = Path(__file__).resolve().parents[2] / "frontend"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _missing(why: str) -> None:
    if os.environ.get("STUDIO_REQUIRE_BROWSER") == "1":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    """Which browser, and without what it would fetch by itself."""
    found = os.environ.get("STUDIO_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        _missing("no Chromium on this machine: install one, or name it in STUDIO_CHROMIUM")
    if not (FRONTEND / "dist" / "manifest.json").exists():
        _missing("the frontend is not built: run `node build.mjs` in frontend/")
    return {"executable_path": found, "args": FLAGS}


@dataclass
class Site:
    """The running web: its address, and the settings it runs with."""

    url: str
    settings: Settings
    stop: Callable[[], None]
    """Take the web away, open streams included, as a crash would."""


@pytest.fixture
def site(settings: Settings, sessions: Sessions) -> Iterator[Site]:
    """The whole web on a free port, in a thread of this process."""
    port = embedded.free_port()
    here = settings.model_copy(update={"public_url": f"http://127.0.0.1:{port}"})
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(here, sessions),
            host="127.0.0.1",
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    embedded.wait_until(lambda: server.started, "the web")

    def stop() -> None:
        server.should_exit = server.force_exit = True
        thread.join(15)

    yield Site(here.public_url, here, stop)
    stop()


@dataclass
class Watch:
    """What went wrong in the pages of one context."""

    site: str
    complaints: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """Parts of complaints that a test provokes on purpose."""

    def on(self, page: Page) -> None:
        page.on(
            "console",
            lambda said: self._add(f"console: {said.text} ({said.location['url']})") if said.type == "error" else None,
        )
        page.on("pageerror", lambda error: self._add(f"error: {error}"))
        page.on("request", lambda request: self._request(request.url))

    def _request(self, url: str) -> None:
        if urlsplit(url).scheme not in ("data", "blob", "about") and not url.startswith(self.site):
            self._add(f"asked elsewhere: {url}")

    def _add(self, complaint: str) -> None:
        if not any(part in complaint for part in self.expected):
            self.complaints.append(complaint)


class OpenPage(Protocol):
    def __call__(
        self,
        who: str | Actor | None,
        path: str = "/",
        *,
        width: int = 1440,
        scheme: Literal["light", "dark"] = "light",
        expected: tuple[str, ...] = (),
        javascript: bool = True,
    ) -> Page: ...


@pytest.fixture
def open_page(browser: Browser, site: Site, sessions: Sessions, make_actor: MakeActor) -> Iterator[OpenPage]:
    """``open_page("engineer", "/workers")``: a page of its own browser context, signed in as that role or person."""
    contexts: list[tuple[BrowserContext, Watch]] = []

    def make(
        who: str | Actor | None,
        path: str = "/",
        *,
        width: int = 1440,
        scheme: Literal["light", "dark"] = "light",
        expected: tuple[str, ...] = (),
        javascript: bool = True,
    ) -> Page:
        context = browser.new_context(
            base_url=site.url,
            locale="en-US",
            timezone_id="UTC",
            viewport={"width": width, "height": 900 if width > 600 else 844},
            color_scheme=scheme,
            reduced_motion="reduce",
            java_script_enabled=javascript,
            has_touch=width <= 600,
        )
        watch = Watch(site.url, expected=expected)
        contexts.append((context, watch))
        context.on("page", watch.on)
        if who is not None:
            actor = make_actor(who) if isinstance(who, str) else who
            with unit_of_work(sessions) as session:
                opened = credentials.open_session(session, session.get_one(Person, actor.person_id), absolute_hours=1)
                context.add_cookies([{"name": cookie_name(site.settings), "value": opened.key, "url": site.url}])
        page = context.new_page()
        page.set_default_timeout(15_000)
        answer = page.goto(path)
        assert answer is not None
        return page

    yield make
    complaints = [complaint for context, watch in contexts for complaint in watch.complaints]
    for context, _ in contexts:
        context.close()
    assert not complaints, complaints


@pytest.fixture(scope="session")
def axe_source() -> str:
    """axe-core from the frontend's development dependencies."""
    path = FRONTEND / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        _missing("axe-core is not installed: run `npm ci` in frontend/")
    return path.read_text()


class Axe(Protocol):
    def __call__(self, page: Page) -> None: ...


@pytest.fixture
def axe(axe_source: str) -> Axe:
    """``axe(page)`` fails on any serious or critical finding of the accessibility rules."""

    def check(page: Page) -> None:
        # evaluate() is the debugger's word and not bound by the page's Content-Security-Policy
        page.evaluate(axe_source)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        bad = [
            f"{item['id']} ({item['impact']}): {item['help']}: "
            + "; ".join(node["html"][:160] for node in item["nodes"][:4])
            for item in found
            if item["impact"] in ("serious", "critical")
        ]
        assert not bad, f"{page.url}:\n" + "\n".join(bad)

    return check
