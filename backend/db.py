"""One synchronous SQLAlchemy session per request or task; services take it first and never commit.

What must leave the process only if the transaction succeeds (messages, rings) is queued with :func:`after_commit`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Parent of every table; constraint names are deterministic so that migrations can name them."""

    metadata = MetaData(naming_convention=NAMING)


Sessions = sessionmaker[Session]


def connect(url: str, *, pool_size: int = 20) -> Engine:
    """An engine for *url* that notices dead connections (a restarted Postgres) before handing them out."""
    if url.startswith("postgresql://"):
        url = "postgresql+psycopg://" + url.removeprefix("postgresql://")
    return create_engine(
        url, pool_size=pool_size, max_overflow=20, pool_pre_ping=True, connect_args={"connect_timeout": 5}
    )


def make_sessions(engine: Engine, **info: Any) -> Sessions:
    """A session factory; *info* (``producer``, ``bell``, ``artifacts``) is what services may reach through ``session.info``."""
    return sessionmaker(engine, expire_on_commit=False, info=info)


@contextmanager
def unit_of_work(sessions: Sessions) -> Iterator[Session]:
    """One transaction: commit at the end, roll back on any exception, then run what waited for the commit."""
    with sessions() as session:
        yield session
        session.commit()


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Run *action* once the present transaction has committed; forget it if it rolls back."""
    session.info.setdefault("after_commit", []).append(action)


@event.listens_for(Session, "after_commit")
def _run_actions(session: Session) -> None:
    if session.in_nested_transaction():
        return
    for action in session.info.pop("after_commit", []):
        action()


@event.listens_for(Session, "after_rollback")
def _forget_actions(session: Session) -> None:
    if not session.in_nested_transaction():
        session.info.pop("after_commit", None)
