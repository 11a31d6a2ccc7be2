"""The schema that the migrations make is the one that the code expects, and every step goes both ways."""

import re
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from backend import migrate, schema
from backend.db import connect
from tests.conftest import Servers


@pytest.fixture
def empty_database(servers: Servers) -> Iterator[str]:
    name = f"migrations_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(servers.postgres, autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
        yield f"{servers.postgres.rsplit('/', 1)[0]}/{name}"
        admin.execute(f'drop database "{name}" with (force)')


def snapshot(connection: Connection) -> dict[str, list[str]]:
    """Everything that a migration may make: columns with types and defaults, constraints, indexes, triggers, functions."""
    queries = {
        "columns": """select table_name, column_name, data_type, is_nullable, coalesce(column_default, ''), is_identity
                      from information_schema.columns where table_schema = 'public'""",
        "constraints": """select conrelid::regclass, conname, pg_get_constraintdef(oid) from pg_constraint
                          where connamespace = 'public'::regnamespace""",
        "indexes": "select tablename, indexname, indexdef from pg_indexes where schemaname = 'public'",
        "triggers": "select tgrelid::regclass, tgname, pg_get_triggerdef(oid) from pg_trigger where not tgisinternal",
        "functions": "select proname, prosrc from pg_proc where pronamespace = 'public'::regnamespace",
        "types": """select typname from pg_type where typnamespace = 'public'::regnamespace and typtype = 'e'""",
    }
    return {name: sorted(str(tuple(row)) for row in connection.execute(text(query))) for name, query in queries.items()}


def test_up_down_up_arrives_at_the_same_schema(empty_database: str) -> None:
    engine = connect(empty_database)
    migrate.upgrade(empty_database)
    with engine.connect() as connection:
        first = snapshot(connection)
    assert len(first["columns"]) > 50
    migrate.downgrade(empty_database, "base")
    with engine.connect() as connection:
        left = snapshot(connection)
    # Alembic's own table stays.
    assert {name: [row for row in rows if "alembic_version" not in row] for name, rows in left.items()} == {
        name: [] for name in left
    }
    migrate.upgrade(empty_database)
    with engine.connect() as connection:
        assert snapshot(connection) == first
    engine.dispose()


def test_every_single_step_goes_down_and_up_again(empty_database: str) -> None:
    revisions = [script.revision for script in ScriptDirectory.from_config(migrate.alembic_config("")).walk_revisions()]
    engine = connect(empty_database)
    migrate.upgrade(empty_database)
    for revision in revisions:  # newest first
        with engine.connect() as connection:
            before = snapshot(connection)
        migrate.downgrade(empty_database, "-1")
        migrate.upgrade(empty_database, revision)
        with engine.connect() as connection:
            assert snapshot(connection) == before, f"{revision} does not come back as it was"
        migrate.downgrade(empty_database, "-1")
    engine.dispose()


def test_the_tables_in_the_code_are_those_that_the_migrations_make(empty_database: str) -> None:
    migrate.upgrade(empty_database)
    engine = connect(empty_database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []
        made = set(inspect(connection).get_table_names()) - {"alembic_version"}
    engine.dispose()
    assert made == set(schema.metadata.tables)


def test_the_migrations_are_one_line_without_forks() -> None:
    scripts = list(ScriptDirectory.from_config(migrate.alembic_config("")).walk_revisions())
    assert [script.revision for script in reversed(scripts)] == [
        f"{number:04d}" for number in range(1, len(scripts) + 1)
    ]


def test_no_migration_needs_an_extension() -> None:
    """The embedded Postgres has none, and a database administrator should not have to be asked."""
    for path in (migrate.MIGRATIONS / "versions").glob("*.py"):
        assert not re.search(r"create\s+extension", path.read_text(), re.IGNORECASE), path.name


def test_no_two_advisory_locks_are_the_same() -> None:
    """The database knows a lock by its number only: with one number, who sets the studio up would stop the reaper."""
    root = migrate.MIGRATIONS.parent
    found = {
        f"{path.relative_to(root)} {match[1]}": int(match[2])
        for folder in ("backend", "migrations", "worker")
        for path in (root / folder).rglob("*.py")
        for match in re.finditer(r"^(\w*LOCK) = (\d+)$", path.read_text(), re.MULTILINE)
    }
    assert len(found) >= 3
    assert len(set(found.values())) == len(found), found
