"""Runs the migrations against ``DATABASE_URL`` or the URL that the caller put into the Alembic config."""

import os

from alembic import context
from sqlalchemy import Connection

from backend import schema
from backend.db import connect

ADVISORY_LOCK = 7305113


def run(connection: Connection) -> None:
    """One transaction for all pending migrations, under a lock: two studios that start at once must not both migrate."""
    context.configure(connection=connection, target_metadata=schema.metadata, compare_type=True)
    with context.begin_transaction():
        connection.exec_driver_sql(f"select pg_advisory_xact_lock({ADVISORY_LOCK})")
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = context.config.get_main_option("sqlalchemy.url") or os.environ.get("DATABASE_URL")
    if not url:
        raise SystemExit("set DATABASE_URL, or use `studio migrate`")
    engine = connect(url)
    with engine.connect() as opened:
        run(opened)
    engine.dispose()
