"""Security headers, a nonce per response, and the refusal of unsafe requests from other origins."""

import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE = {"GET", "HEAD", "OPTIONS"}


def _policy(nonce: str) -> str:
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}' 'strict-dynamic'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )


def _caching(path: str, status: int) -> str:
    # built files carry a hash of their content in their name, so they never change
    return (
        "public, max-age=31536000, immutable"
        if path.startswith("/static/") and status in (200, 206, 304)
        else "no-store"
    )


class SecurityHeaders:
    """Nonce CSP and friends on every response; private pages are never cached."""

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self._app, self._https = app, https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; headers that the answer has already set stay."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        nonce = secrets.token_urlsafe(16)
        scope.setdefault("state", {})["nonce"] = nonce

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", _policy(nonce))
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
                headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
                headers.setdefault("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
                headers.setdefault("Cache-Control", _caching(scope["path"], message["status"]))
                if self._https:
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        await self._app(scope, receive, with_headers)


class SameOrigin:
    """Unsafe requests must come from our own pages, or carry a bearer token instead of a cookie.

    Browsers always send ``Sec-Fetch-Site`` or ``Origin`` with them; programs have no cookie and need neither.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] != "http" or scope["method"] in SAFE or self._allowed(Headers(scope=scope)):
            return await self._app(scope, receive, send)
        refusal = JSONResponse(
            {
                "type": "/problems/cross-origin",
                "title": "This request came from another site.",
                "status": 403,
                "detail": "Unsafe requests are taken only from the studio's own pages, or with an API token.",
            },
            status_code=403,
            media_type="application/problem+json",
        )
        await refusal(scope, receive, send)

    def _allowed(self, headers: Headers) -> bool:
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if "cookie" not in headers and (headers.get("authorization") or (site is None and origin is None)):
            return True  # no browser's credentials ride along, so there is nothing to forge
        if site is not None:
            return site in ("same-origin", "none")
        return origin is not None and urlsplit(origin).netloc == headers.get("host")
