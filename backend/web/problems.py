"""Errors as RFC 9457 problem documents for the API, and as a plain page for the browser."""

import logging
import re

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

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


def _status(error: errors.StudioError) -> int:
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def _is_api(request: Request) -> bool:
    return request.url.path.startswith("/api/")


def _answer(request: Request, status: int, kind: str, title: str, detail: str, **fields: object) -> Response:
    document = {"type": f"/problems/{kind}", "title": title, "status": status, "detail": detail, **fields}
    if _is_api(request) or "application/json" in request.headers.get("accept", ""):
        return JSONResponse(document, status_code=status, media_type="application/problem+json")
    if status == 401 and request.method == "GET":
        return RedirectResponse(f"/sign-in?next={request.url.path}", status_code=303)
    return render(request, "problem.html", status=status, problem=document)


def kebab(name: str) -> str:
    """``AssignmentExpired`` → ``assignment-expired``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def install(app: FastAPI) -> None:
    """Translate every error that a route can raise into a problem."""

    @app.exception_handler(errors.StudioError)
    def studio_error(request: Request, error: errors.StudioError) -> Response:
        title = (type(error).__doc__ or "").strip().splitlines()[0]
        fields = {**({"remedy": error.remedy} if error.remedy else {}), **error.fields}
        return _answer(request, _status(error), kebab(type(error).__name__), title, error.detail, **fields)

    @app.exception_handler(RequestValidationError)
    def validation_error(request: Request, error: RequestValidationError) -> Response:
        problems = [
            {"field": ".".join(str(part) for part in item["loc"] if part != "body"), "message": item["msg"]}
            for item in error.errors()
        ]
        first = problems[0]
        return _answer(
            request,
            422,
            "invalid",
            "What was sent does not make sense.",
            f"{first['field']}: {first['message']}",
            errors=problems,
        )

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        return _answer(request, error.status_code, "http", str(error.detail), str(error.detail))

    @app.exception_handler(OperationalError)
    def database_error(request: Request, error: OperationalError) -> Response:
        log.error("database does not answer: %s", error.orig)
        return _answer(
            request,
            503,
            "unavailable",
            "The database does not answer.",
            "Nothing was changed.",
            remedy="Try again in a moment.",
        )

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        log.exception("unexpected error in %s %s", request.method, request.url.path)
        return _answer(
            request,
            500,
            "unexpected",
            "Something went wrong in the studio.",
            "The studio's web log has the traceback; nothing was saved.",
        )
