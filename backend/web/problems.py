"""Errors as RFC 9457 problem documents for the API, and as a plain page for the browser."""

import logging
import re
from collections.abc import Mapping
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
        problems = [{"field": _place(item, error.body), "message": _message(item)} for item in error.errors()]
        first = problems[0]
        detail = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
        return _answer(
            request,
            422,
            "invalid",
            "What was sent does not make sense.",
            detail,
            field=first["field"],
            remedy="Correct it and send again; /api/v1/openapi.json describes every field with its bounds.",
            errors=problems,
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


def _place(item: Mapping[str, Any], body: object) -> str:
    """The field as it stands in what was sent: ``spec.rewards.components[0].column``.

    Pydantic also names the member of a union that it tried; that is no key of the body. It says nothing of a key that is
    missing but its name.
    """
    location = [part for part in item["loc"] if part not in ("body", "query", "path", "header")]
    here: object = body if item["loc"][:1] == ("body",) else None
    said = ""
    tried = False
    for place, part in enumerate(location):
        if isinstance(here, dict):
            is_member = part in (here.get("kind"), here.get("method")) and not tried
            is_absent = part not in here and not (item["type"] == "missing" and place == len(location) - 1)
            if is_member or is_absent:
                tried = True
                continue
        said += f"[{part}]" if isinstance(part, int) else f".{part}"
        here = here.get(part) if isinstance(here, dict) else _item(here, part)
        tried = False
    if item["type"] == "value_error" and isinstance(at := item["ctx"].get("field"), str):
        said += f".{at}"  # a validator of the whole says where it should be read
    return said.removeprefix(".")


def _item(here: object, part: object) -> object:
    """An item of a list, if it is one."""
    return here[part] if isinstance(here, list) and isinstance(part, int) and part < len(here) else None


def _message(item: Mapping[str, Any]) -> str:
    """What pydantic says, in the studio's words where its own name no key of the body."""
    match item["type"]:
        case "value_error":
            said = str(item["msg"]).removeprefix("Value error, ")
            return said[:1].upper() + said[1:]
        case "extra_forbidden":
            return "There is no such field; leave it out or correct its name."
        case "union_tag_invalid":
            context = item["ctx"]
            return f"“{context['tag']}” is none of {context['expected_tags'].replace(chr(39), '')}."
    return str(item["msg"])
