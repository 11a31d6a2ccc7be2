"""Errors as RFC 9457 problem documents for the API, and as a plain page for the browser."""

import logging
import re
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend import errors
from backend.web.rendering import render

log = logging.getLogger(__name__)

STATUS: dict[type[errors.StudioError], int] = {
    errors.Invalid: 422,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.TooMany: 429,
    errors.Unavailable: 503,
}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "60"}, 503: {"Retry-After": "5"}}
TITLES = {
    400: ("invalid", "What was sent does not make sense."),
    404: ("not-found", "There is nothing at this address."),
    405: ("method-not-allowed", "This address does not do that."),
    413: ("too-large", "More than the studio takes at once."),
    415: ("wrong-type", "The studio does not read this kind of content here."),
}


def status_of(error: errors.StudioError) -> int:
    """The HTTP status of the error's kind."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def kebab(name: str) -> str:
    """``AssignmentExpired`` → ``assignment-expired``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def title_of(error: errors.StudioError) -> str:
    """The first line of the docstring of the error's class."""
    return (type(error).__doc__ or "Something the studio cannot do.").strip().splitlines()[0]


def _answer(request: Request, status: int, kind: str, title: str, detail: str, **fields: object) -> Response:
    document = {"type": f"/problems/{kind}", "title": title, "status": status, "detail": detail, **fields}
    if request.url.path.startswith("/api/") or "application/json" in request.headers.get("accept", ""):
        return JSONResponse(document, status, HEADERS.get(status), media_type="application/problem+json")
    if status == 401 and request.method == "GET":
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/sign-in?next={quote(request.url.path + query)}", status_code=303)
    shell = getattr(request.state, "shell", None)
    if shell is not None:
        shell.without_counts()
    return render(request, "problem.html", status=status, problem=document)


def _unexpected(request: Request) -> Response:
    title = "Something went wrong in the studio."
    return _answer(
        request,
        500,
        "unexpected",
        title,
        "Nothing was saved; the studio's web log says what happened.",
        remedy="Try again; if it stays, tell an admin.",
    )


class Unexpected:
    """The last net, below the security headers: an error nobody foresaw is logged and answered like any other problem."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; answer 500 if that fails before the answer began."""
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if began or scope["type"] != "http":
                raise
            log.exception("unexpected error in %s %s", scope["method"], scope["path"])
            await _unexpected(Request(scope, receive))(scope, receive, send)


def install(app: FastAPI) -> None:
    """Translate every error that a route can raise into a problem."""

    @app.exception_handler(errors.StudioError)
    def studio_error(request: Request, error: errors.StudioError) -> Response:
        fields = {**({"remedy": error.remedy} if error.remedy else {}), **error.fields}
        return _answer(request, status_of(error), kebab(type(error).__name__), title_of(error), error.detail, **fields)

    @app.exception_handler(RequestValidationError)
    def validation_error(request: Request, error: RequestValidationError) -> Response:
        problems = [{"field": _place(item["loc"]), "message": item["msg"]} for item in error.errors()]
        first = problems[0]
        detail = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
        return _answer(
            request, 422, "invalid", "What was sent does not make sense.", detail, field=first["field"], errors=problems
        )

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        kind, title = TITLES.get(error.status_code, ("http", str(error.detail)))
        detail = f"{request.method} {request.url.path}" if error.status_code in (404, 405) else str(error.detail)
        return _answer(request, error.status_code, kind, title, detail)

    @app.exception_handler(DataError)
    @app.exception_handler(UnicodeEncodeError)
    def unstorable(request: Request, error: Exception) -> Response:
        log.info("the database cannot hold what was sent to %s: %s", request.url.path, type(error).__name__)
        detail = "It has a character or a number that the database cannot hold, such as U+0000."
        return _answer(
            request, 422, "invalid", "What was sent does not make sense.", detail, remedy="Remove it and send again."
        )

    @app.exception_handler(IntegrityError)
    def raced(request: Request, error: IntegrityError) -> Response:
        log.warning("constraint in %s %s: %s", request.method, request.url.path, error.orig)
        title = "Somebody else was faster, or something it needs is gone."
        return _answer(request, 409, "conflict", title, "Nothing was changed.", remedy="Reload and look.")

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(PoolTimeout)
    def database_error(request: Request, error: Exception) -> Response:
        log.error("database does not answer: %s", getattr(error, "orig", None) or error)
        title = "The database does not answer."
        return _answer(request, 503, "unavailable", title, "Nothing was changed.", remedy="Try again in a moment.")


def _place(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location if part not in ("body", "query", "path", "header"))
