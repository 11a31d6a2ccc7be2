"""What may come in at all: a size limit while the bytes arrive, and JSON that is only what JSON promises to be.

Python's parser takes ``NaN``, lone surrogates and endless nesting; Postgres takes neither those nor U+0000. So JSON is
checked once, here, and every poison is a 4xx with its place instead of a 500 from deep inside.
"""

import json
import math
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_JSON_BYTES = 16 * 2**20
MAX_STRANGER_BYTES = 64 * 2**10
MAX_DEPTH = 32
MAX_INTEGER = 2**63 - 1


class BodyGuard:
    """Limits the size of every body (little for strangers, who have nothing to upload) and checks JSON before it is parsed."""

    def __init__(self, app: ASGIApp, *, max_upload_bytes: int) -> None:
        self._app, self._max_upload_bytes = app, max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with a counted (JSON: checked) body."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if "\x00" in scope["path"] or b"%00" in scope.get("query_string", b""):
            return await _refuse(scope, receive, send, 400, "U+0000 is not taken in addresses.")
        headers = Headers(scope=scope)
        is_json = _is_json(headers.get("content-type", ""))
        known = "cookie" in headers or "authorization" in headers
        limit = MAX_STRANGER_BYTES if not known else MAX_JSON_BYTES if is_json else self._max_upload_bytes
        announced = headers.get("content-length", "0")
        if not announced.isdigit() or int(announced[:20]) > limit:
            return await _refuse(scope, receive, send, 413, f"This request may have at most {limit:,} bytes.")
        if not is_json:
            return await self._app(scope, _limited(receive, limit), send)
        try:
            body = await _read(_limited(receive, limit))
            check_json(body)
        except HTTPException as error:
            return await _refuse(scope, receive, send, error.status_code, error.detail)
        except ValueError as error:
            return await _refuse(scope, receive, send, 422, str(error))
        await self._app(scope, _replay(body, receive), send)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _limited(receive: Receive, limit: int) -> Receive:
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, f"This request may have at most {limit:,} bytes.")
        return message

    return counted


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def once() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return once


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, detail: str) -> None:
    title = {413: "More than the studio takes at once."}.get(status, "What was sent does not make sense.")
    kind = {413: "too-large"}.get(status, "invalid")
    document = {"type": f"/problems/{kind}", "title": title, "status": status, "detail": detail}
    await JSONResponse(document, status_code=status, media_type="application/problem+json")(scope, receive, send)


def check_json(body: bytes) -> None:
    """Raise ``ValueError`` with a sentence if *body* is not JSON, or JSON that the studio cannot keep."""
    _check_depth(body)
    try:
        value = (
            json.loads(body, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_short_int)
            if body.strip()
            else None
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"This is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"This is not UTF-8 (byte {error.start}).") from error
    _check_text(value)


def _check_depth(body: bytes) -> None:
    depth = deepest = 0
    inside = escaped = False
    for byte in body if body.count(b"[") + body.count(b"{") > MAX_DEPTH else b"":
        if inside:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                inside = False
        elif byte == 0x22:
            inside = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    if deepest > MAX_DEPTH:
        raise ValueError(f"This JSON is nested deeper than {MAX_DEPTH} levels.")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is larger than any number the studio can hold.")
    return value


def _short_int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
        raise ValueError(f"{text[:40]} is larger than any integer the studio can hold.")
    return int(text)


def _check_text(value: Any) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if "\x00" in item:
                raise ValueError("U+0000 (NUL) is not taken in text.")
            try:
                item.encode()
            except UnicodeEncodeError:
                raise ValueError("This text has half of a character (a lone surrogate).") from None
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, list):
            pending += item
