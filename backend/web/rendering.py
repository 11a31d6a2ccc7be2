"""Jinja2 templates: strict about missing names, autoescaped, with the page's nonce and the built assets at hand."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

FRONTEND = Path(__file__).resolve().parents[2] / "frontend"


@cache
def environment() -> Environment:
    """The one Jinja2 environment; filters live in ``web/filters.py``."""
    from backend.web import filters

    made = Environment(
        loader=FileSystemLoader(FRONTEND / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(filters.ALL)
    made.globals["asset"] = asset
    # the fields of a schema come in the order in which they were written
    made.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return made


@cache
def _manifest() -> dict[str, str]:
    path = FRONTEND / "dist" / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def asset(name: str) -> str:
    """URL of a built file: ``asset("app.ts")`` → ``/static/app-1a2b3c.js``."""
    return f"/static/{_manifest().get(name, name)}"


def render(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """Render *template* with what every page needs: ``request``, ``nonce``, and ``shell`` (actor, rail, project) if signed in.

    The rail shows the project of the first object in *context* that belongs to one, so that ``/runs/7`` needs no project in its address.
    """
    shell = getattr(request.state, "shell", None)
    if shell is not None:
        owners = (getattr(value, "project_id", None) for value in context.values())
        project_id = next((owner for owner in owners if isinstance(owner, int)), None)
        if project_id is not None:
            shell.enter(project_id)
    html = (
        environment()
        .get_template(template)
        .render(request=request, nonce=getattr(request.state, "nonce", ""), shell=shell, **context)
    )
    return HTMLResponse(html, status_code=status)
