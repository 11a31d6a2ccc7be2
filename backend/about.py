"""What the studio says about itself: its health, and its API as OpenAPI and as a page to read."""

import json
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from backend.accounts.access import Anybody, SignedIn
from backend.web.health import health
from backend.web.rendering import render

router = APIRouter(include_in_schema=False)

VERBS = ("get", "post", "put", "patch", "delete")
PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong (RFC 9457). Further members say where: `field`, `line`, `errors`.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["/problems/dataset-name-taken"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened."},
        "remedy": {"type": "string", "description": "What to do about it."},
        "field": {"type": "string"},
        "line": {"type": "integer"},
    },
}


@router.get("/healthz")
def healthz(nobody: Anybody, request: Request) -> Response:
    """Database and Redis, for load balancers."""
    return health(request)


@router.get("/api/v1/openapi.json")
def openapi(actor: SignedIn, request: Request) -> JSONResponse:
    """The API's description, only for people who may use it."""
    return JSONResponse(describe(request.app))


@router.get("/reference")
def reference(actor: SignedIn, request: Request) -> HTMLResponse:
    """The same to read, without anything from elsewhere."""
    document = describe(request.app)
    return render(
        request,
        "reference.html",
        operations=_operations(document),
        schemas=document["components"]["schemas"],
        base=request.app.state.settings.public_url,
    )


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with what FastAPI cannot know: how to sign in, and that every error is a problem document."""
    document = app.openapi()
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    if "Problem" in schemas:
        return document
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "An API token, `sts_…`."}
    }
    document["security"] = [{"token": []}]
    for outdated in ("HTTPValidationError", "ValidationError"):
        schemas.pop(outdated, None)
    schemas["Problem"] = PROBLEM
    answer = {
        "description": "A problem",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for _, _, operation in _each(document):
        operation["responses"].pop("422", None)
        operation["responses"]["4XX"] = answer
    return document


def _each(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, verb, item[verb]) for path, item in document.get("paths", {}).items() for verb in VERBS if verb in item
    ]


def _operations(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Tag → operations as the page shows them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, verb, operation in _each(document):
        body = next(iter(operation.get("requestBody", {}).get("content", {}).items()), None)
        answers = [code for code in operation["responses"] if code.startswith("2")]
        content = operation["responses"][answers[0]].get("content", {}) if answers else {}
        found.setdefault((operation.get("tags") or ["more"])[0], []).append(
            {
                "id": operation["operationId"],
                "verb": verb.upper(),
                "path": path,
                "about": operation.get("description", operation.get("summary", "")),
                "parameters": [one for one in operation.get("parameters", []) if one["in"] in ("path", "query")],
                "body_type": body[0] if body else None,
                "body": _name(body[1].get("schema", {})) if body else None,
                "example": _example(document, body[1].get("schema", {}))
                if body and body[0] == "application/json"
                else None,
                "answer": next((_name(kind.get("schema", {})) for kind in content.values()), ""),
                "status": answers[0] if answers else "",
            }
        )
    return found


def _name(schema: dict[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2] or str(schema.get("title", schema.get("type", "")))


def _example(document: dict[str, Any], schema: dict[str, Any]) -> str:
    return json.dumps(_sample(document, schema, 0), indent=2, ensure_ascii=False)


def _sample(document: dict[str, Any], schema: dict[str, Any], depth: int) -> Any:
    """One value that fits *schema*: its example, its default, or the simplest there is."""
    if "$ref" in schema:
        schema = document["components"]["schemas"].get(_name(schema), {})
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    if "const" in schema or "default" in schema:
        return schema.get("const", schema.get("default"))
    for key in ("oneOf", "anyOf"):
        if schema.get(key):
            return _sample(document, schema[key][0], depth)
    if schema.get("type") == "object":
        wanted = schema.get("properties", {}) if depth < 3 else {}
        required = schema.get("required", ())
        return {
            name: _sample(document, inner, depth + 1)
            for name, inner in wanted.items()
            if name in required or "examples" in inner
        }
    if schema.get("type") == "array":
        return [_sample(document, schema.get("items", {}), depth + 1)] if depth < 3 else []
    return {"integer": 1, "number": 0.5, "boolean": True, "string": "…"}.get(str(schema.get("type")))
