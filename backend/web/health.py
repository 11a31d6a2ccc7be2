"""Whether the studio can work: for load balancers, the supervisor and people in doubt."""

from typing import Any

import redis
from fastapi import Request
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError


def _database(request: Request) -> str:
    try:
        with request.app.state.sessions() as session:
            session.execute(text("select 1"))
        return "ok"
    except SQLAlchemyError:
        return "does not answer"


def _redis(request: Request) -> str:
    client = redis.Redis.from_url(request.app.state.settings.redis_url, socket_timeout=1, socket_connect_timeout=1)
    try:
        return "ok" if client.ping() else "does not answer"
    except redis.RedisError:
        return "does not answer; live pages ask every two seconds instead, runs start by the reaper"
    finally:
        client.close()


def health(request: Request) -> JSONResponse:
    """The state of the database and of Redis; 503 only without the database, because nothing else stops the studio."""
    state: dict[str, Any] = {"database": _database(request), "redis": _redis(request)}
    return JSONResponse(state, status_code=200 if state["database"] == "ok" else 503)
