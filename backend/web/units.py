"""The dependency that gives a route its session: one request, one transaction, committed *before* the answer leaves."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from backend import db

TURNS = 30
"""Requests of one process that may hold a database connection at once; fewer than the pool has, and than there are threads."""


async def _turn(request: Request) -> AsyncIterator[None]:
    """Wait here, in the event loop, until a connection is to be had.

    A request uses a worker thread several times and keeps its connection in between. Without this gate, requests that wait
    for a connection take up all threads, and those that have one wait for a thread: with a hundred at once nothing moves
    any more until the pool gives up (measured with 200 annotators: every request 30 s, then 503).
    """
    state = request.app.state
    if not hasattr(state, "turns"):
        state.turns = asyncio.Semaphore(TURNS)
    async with state.turns:
        yield


def _session(request: Request, _: Annotated[None, Depends(_turn, scope="function")]) -> Iterator[Session]:
    with db.unit_of_work(request.app.state.sessions) as session:
        yield session


# scope="function": with FastAPI's default the code after ``yield`` runs after the response, so a failing commit would answer 200
UnitOfWork = Annotated[Session, Depends(_session, scope="function")]
