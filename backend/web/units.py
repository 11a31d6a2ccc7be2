"""The dependency that gives a route its session: one request, one transaction, committed *before* the answer leaves."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated
from weakref import WeakKeyDictionary

from fastapi import Depends, Request
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.orm import Session

from backend import db

AT_ONCE = 32
"""Requests with a session at the same time: fewer than the pool's 40 connections and the 40 threads.

A request holds its connection while it waits for a thread to go on in. Without this bound, forty others would hold all
threads, each waiting for a connection, and nobody could go on: 200 clients at once stood still until the pool's time-out.
"""

_at_once: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


async def _session(request: Request) -> AsyncIterator[Session]:
    limit = _at_once.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE))
    async with limit, contextmanager_in_threadpool(db.unit_of_work(request.app.state.sessions)) as session:
        yield session


# scope="function": with FastAPI's default the code after ``yield`` runs after the response, so a failing commit would answer 200
UnitOfWork = Annotated[Session, Depends(_session, scope="function")]
