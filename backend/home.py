"""The first page."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from backend.accounts.access import SignedIn
from backend.web.rendering import render

router = APIRouter()


@router.get("/", include_in_schema=False)
def home(request: Request, actor: SignedIn) -> HTMLResponse:
    """What waits for the person who is signed in."""
    return render(request, "home.html")
