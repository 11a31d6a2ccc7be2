"""Server-sent events with catch-up: the id of an event is its sequence number, ``Last-Event-ID`` resumes after it."""

import json
from typing import Any


def sse(event: str, data: Any, id: int | None = None) -> bytes:
    """One event on the wire."""
    head = f"id: {id}\n" if id is not None else ""
    return f"{head}event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


KEEP_ALIVE = b": still here\n\n"


def last_event_id(header: str | None, query: int | None = None) -> int:
    """Where to resume: the ``Last-Event-ID`` header, else ``?after=``, else the beginning."""
    if header and header.isdigit():
        return int(header)
    return query or 0
