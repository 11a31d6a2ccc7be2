"""A run's stream of server-sent events: what happened since the last one, then what happens."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from backend import db
from backend.db import Sessions
from backend.live import Bell
from backend.runs import service
from backend.runs.lifecycle import TERMINAL
from backend.web.streams import KEEP_ALIVE, sse

KEEP_ALIVE_SECONDS = 15.0
BATCH = 1000
"""Events read from Postgres at once; a page that catches up gets several batches."""


def _look(sessions: Sessions, run_id: int, seq: int) -> tuple[service.Status, Sequence[service.Heard]]:
    with db.unit_of_work(sessions) as session:
        # the status first: an event that comes between the two is read again, never lost
        status = service.status(session, run_id)
        return status, service.events_after(session, run_id, seq, limit=BATCH)


async def follow(request: Request, run_id: int, seq: int) -> AsyncIterator[bytes]:
    """What happened after event *seq*, and then what happens, until the run has ended or nobody listens."""
    sessions: Sessions = request.app.state.sessions
    bell: Bell = request.app.state.bell
    told: dict[str, Any] | None = None
    loop = asyncio.get_running_loop()
    quiet_since = loop.time()
    async for _ in bell.listen(f"run:{run_id}"):
        caught_up = False
        while not caught_up:
            if await request.is_disconnected():
                return
            status, events = await run_in_threadpool(_look, sessions, run_id, seq)
            caught_up = len(events) < BATCH
            for event in events:
                seq = event.seq
                yield _on_the_wire(event)
            now = _status(status)
            if events or now != told:
                told, quiet_since = now, loop.time()
                yield sse("run", now, id=seq)
        if status.state in TERMINAL and seq >= status.seq:
            return
        if loop.time() - quiet_since > KEEP_ALIVE_SECONDS:
            quiet_since = loop.time()
            yield KEEP_ALIVE


def _on_the_wire(event: service.Heard) -> bytes:
    match event.kind:
        case "metrics":
            return sse("metrics", {"at": event.at.isoformat(), **event.data}, id=event.seq)
        case "completions":
            return sse("completions", event.data | _line(event), id=event.seq)
        case "started":
            return sse("log", _line(event) | {"first_step": event.data["first_step"]}, id=event.seq)
        case _:
            return sse("log", _line(event), id=event.seq)


def _line(event: service.Heard) -> dict[str, Any]:
    """As the log shows it."""
    level = event.data.get("level", "info")
    return {"kind": event.kind, "at": event.at.isoformat(), "level": level, "text": service.sentence(event)}


def _status(status: service.Status) -> dict[str, Any]:
    """What changes only with something that happened; the running clock is left to the reader."""
    said = status._asdict()
    said.pop("elapsed_seconds")
    said["exit_reason"] = said.pop("reason")
    return said
