"""Real servers for the tests: Postgres and Valkey from their wheels, or those that ``STUDIO_TEST_*_URL`` name.

Each test that asks for ``session`` or ``sessions`` gets a database of its own, cloned from a migrated template.
"""

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from sqlalchemy.orm import Session

from backend import embedded, migrate
from backend.artifacts import Artifacts
from backend.db import Sessions, connect, make_sessions


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


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Postgres and a Redis-protocol server, started once per test process."""
    postgres, redis = os.environ.get("STUDIO_TEST_DATABASE_URL"), os.environ.get("STUDIO_TEST_REDIS_URL")
    if postgres and redis:
        yield Servers(postgres, redis)
        return
    home = tmp_path_factory.mktemp("servers")
    password, data = uuid.uuid4().hex, home / "postgres"
    embedded.init_postgres(data, password)
    pg_port, redis_port = embedded.free_port(), embedded.free_port()
    pg = embedded.start(
        embedded.postgres_command(data, pg_port, "fsync=off", "max_connections=200"), home / "postgres.log", signal.SIGINT
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
