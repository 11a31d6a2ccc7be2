"""What the studio says about itself: its health, and its API as OpenAPI and as a page to read."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from backend.accounts.access import Public, SignedIn
from backend.web.health import health

router = APIRouter()


@router.get("/healthz", include_in_schema=False)
def healthz(actor: Public, request: Request) -> Response:
    """Database and Redis, for load balancers."""
    return health(request)


@router.get("/api/v1/openapi.json", include_in_schema=False)
def openapi(actor: SignedIn, request: Request) -> JSONResponse:
    """The API's description, only for people who may use it."""
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse(document)
