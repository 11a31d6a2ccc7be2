"""Real servers for the tests: Postgres and Valkey from their wheels, or those that ``STUDIO_TEST_*_URL`` name.

Each test that asks for ``session`` or ``sessions`` gets a database of its own, cloned from a migrated template.
"""

import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import psycopg
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from backend import embedded, migrate
from backend.accounts import credentials
from backend.accounts import service as accounts
from backend.accounts.access import cookie_name
from backend.accounts.actors import Actor, Permission, Role
from backend.accounts.tables import Person
from backend.app import create_app
from backend.artifacts import Artifacts
from backend.db import Sessions, connect, make_sessions, unit_of_work
from backend.projects import service as projects
from backend.projects.service import ProjectName
from backend.settings import Settings


class Servers(NamedTuple):
    """Where the session's servers listen; ``postgres`` names the maintenance database."""

    postgres: str
    redis: str


def _stop(process: subprocess.Popen[bytes], sig: int) -> None:
    process.send_signal(sig)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the servers is an integration test, without anybody having to remember the mark."""
    for item in items:
        if "servers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Postgres and a Redis-protocol server, started once per test process."""
    postgres, redis = os.environ.get("STUDIO_TEST_DATABASE_URL"), os.environ.get("STUDIO_TEST_REDIS_URL")
    if postgres and redis:
        # Test processes that run side by side share the given server: each takes a Redis database of its own.
        side = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        yield Servers(postgres, _named(redis, side))
        return
    home = tmp_path_factory.mktemp("servers")
    password, data = uuid.uuid4().hex, home / "postgres"
    embedded.init_postgres(data, password)
    pg_port, redis_port = embedded.free_port(), embedded.free_port()
    pg = embedded.start(
        embedded.postgres_command(data, pg_port, "fsync=off", "max_connections=200"),
        home / "postgres.log",
        signal.SIGINT,
    )
    valkey = embedded.start(
        embedded.valkey_command(home / "valkey", redis_port, password, durable=False), home / "valkey.log"
    )
    found = Servers(
        f"postgresql://studio:{password}@127.0.0.1:{pg_port}/postgres", f"redis://:{password}@127.0.0.1:{redis_port}/0"
    )
    try:
        embedded.wait_until(lambda: embedded.postgres_answers(found.postgres), "Postgres")
        embedded.wait_until(lambda: embedded.redis_answers(found.redis), "Valkey")
        yield found
    finally:
        _stop(valkey, signal.SIGTERM)
        _stop(pg, signal.SIGINT)


def _named(url: str, database: str) -> str:
    return f"{url.rsplit('/', 1)[0]}/{database}"


@pytest.fixture(scope="session")
def template(servers: Servers) -> str:
    """Name of a database with the whole schema, from which each test's is cloned."""
    name = f"template_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(servers.postgres, autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
    migrate.upgrade(_named(servers.postgres, name))
    return name


@pytest.fixture
def database_url(servers: Servers, template: str) -> Iterator[str]:
    """A fresh, migrated database; dropped afterwards, whoever is still connected."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(servers.postgres, autocommit=True) as admin:
        admin.execute(f'create database "{name}" template "{template}"')
        yield _named(servers.postgres, name)
        admin.execute(f'drop database "{name}" with (force)')


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    """An empty artifact store."""
    return Artifacts(str(tmp_path / "artifacts"), tmp_path / "cache")


@pytest.fixture
def sessions(database_url: str, artifacts: Artifacts) -> Iterator[Sessions]:
    """Sessions on the test's database, for code that opens its own (web, threads, workers)."""
    engine = connect(database_url)
    yield make_sessions(engine, artifacts=artifacts)
    engine.dispose()


@pytest.fixture
def session(sessions: Sessions) -> Iterator[Session]:
    """One open session on the test's database; what it flushes is gone after the test."""
    with sessions() as opened:
        yield opened


PASSWORD = "seven quiet herons wade"


@pytest.fixture
def admin(sessions: Sessions) -> Actor:
    """The first admin, made through the setup link."""
    with unit_of_work(sessions) as session:
        token = accounts.make_setup_link(session).removeprefix("/setup/")
        return accounts.actor_of(session, accounts.use_link(session, token, PASSWORD, "Ada", "ada@example.org").id)


@pytest.fixture
def project(sessions: Sessions, admin: Actor) -> ProjectName:
    """A project (``id``, ``name``) without content, committed."""
    with unit_of_work(sessions) as session:
        made = projects.create_project(session, admin, "Sums and support")
        return ProjectName(made.id, made.name)


class MakeActor(Protocol):
    def __call__(self, role: str, project_id: int | None = None) -> Actor: ...


@pytest.fixture
def make_actor(sessions: Sessions, admin: Actor, project: ProjectName) -> MakeActor:
    """``make_actor("annotator")``: a new person with that role in the project; ``"outsider"`` has none, ``"admin"`` every right."""

    def make(role: str, project_id: int | None = None) -> Actor:
        with unit_of_work(sessions) as session:
            name = f"{role} {uuid.uuid4().hex[:6]}"
            person = Person(name=name, email=f"{name.replace(' ', '.')}@example.org", is_admin=role == "admin")
            session.add(person)
            session.flush()
            if role not in ("admin", "outsider"):
                accounts.set_role(session, project_id or project.id, person.id, Role(role))
            return accounts.actor_of(session, person.id)

    return make


@pytest.fixture
def engineer(make_actor: MakeActor) -> Actor:
    """An engineer of ``project``."""
    return make_actor("engineer")


@pytest.fixture
def annotator(make_actor: MakeActor) -> Actor:
    """An annotator of ``project``."""
    return make_actor("annotator")


@pytest.fixture
def settings(servers: Servers, database_url: str, tmp_path: Path) -> Settings:
    """Settings of a studio on the test's own database and folder."""
    return Settings(
        database_url=database_url,
        redis_url=servers.redis,
        artifacts_url=str(tmp_path / "artifacts"),
        studio_home=tmp_path,
        public_url="http://testserver",
    )


@pytest.fixture
def app(settings: Settings, sessions: Sessions) -> FastAPI:
    """The whole web on the test's database."""
    return create_app(settings, sessions)


class MakeClient(Protocol):
    def __call__(self, who: str | Actor | None, *, browser: bool = False) -> TestClient: ...


@pytest.fixture
def make_client(app: FastAPI, sessions: Sessions, settings: Settings, make_actor: MakeActor) -> MakeClient:
    """``make_client("engineer")``: a client with that role's API token (``None``: nobody's), or signed in like a browser.

    A browser client sends its CSRF token with every request. Redirects are not followed, server errors are answers.
    """

    def make(who: str | Actor | None, *, browser: bool = False) -> TestClient:
        client = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
        if who is None:
            return client
        actor = make_actor(who) if isinstance(who, str) else who
        with unit_of_work(sessions) as session:
            if browser:
                opened = credentials.open_session(session, session.get_one(Person, actor.person_id), absolute_hours=1)
                known = credentials.browser_by_key(session, opened.key, idle_hours=1)
                assert known is not None
                client.cookies.set(cookie_name(settings), opened.key)
                client.headers.update(
                    {"X-CSRF-Token": known.csrf, "Sec-Fetch-Site": "same-origin", "Accept": "text/html"}
                )
            else:
                scopes = [scope for scope in credentials.GRANTABLE if actor.is_admin or scope is not Permission.ADMIN]
                client.headers["Authorization"] = (
                    f"Bearer {credentials.create_token(session, actor, 'test', scopes, 1)[1]}"
                )
        return client

    return make


@pytest.fixture
def served(app: FastAPI) -> Iterator[str]:
    """Address of the web on a real port, for clients that speak real HTTP: the command line, streams, browsers."""
    port = embedded.free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        embedded.wait_until(lambda: server.started, "the web", 20)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
