"""Pages of datasets: the list, one dataset, one version with its rows, and the import in three steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy.orm import Session

from backend.accounts.access import Engineer, Viewer
from backend.accounts.actors import Actor, Permission
from backend.datasets import service
from backend.datasets.api import Filter, Uploads, take
from backend.datasets.cells import ROLES
from backend.datasets.rows import COLUMNS, RowType
from backend.datasets.service import DatasetVersion, Use
from backend.errors import StudioError
from backend.web.problems import status_of
from backend.web.rendering import render
from backend.web.units import UnitOfWork

router = APIRouter(include_in_schema=False)

TYPE_NAMES = {
    RowType.LANGUAGE_MODELING: "Language modeling",
    RowType.PROMPT_COMPLETION: "Prompts and completions",
    RowType.PREFERENCE: "Preference pairs",
    RowType.UNPAIRED: "Thumbs",
    RowType.PROMPT_ONLY: "Prompts only",
    RowType.STEPWISE: "Steps with labels",
    RowType.SCORED: "Completions with scores",
}
ROW_NAMES = {RowType.PREFERENCE: "pairs", RowType.PROMPT_ONLY: "prompts", RowType.STEPWISE: "solutions"}
FILTER_NAMES = {
    "": "all rows",
    "empty": "empty texts",
    "same": "chosen is rejected",
    "longer-wins": "the longer one was chosen",
    "shorter-wins": "the shorter one was chosen",
    "label-true": "good",
    "label-false": "bad",
}
FILTERS_OF = {
    RowType.PREFERENCE: ("", "empty", "same", "longer-wins", "shorter-wins"),
    RowType.UNPAIRED: ("", "empty", "label-true", "label-false"),
}
PAGE_ROWS = 20

Uses = Callable[[Session, Actor, Sequence[int]], Mapping[int, Sequence[Use]]]


def _uses(request: Request, session: Session, actor: Actor, versions: Sequence[DatasetVersion]) -> dict[int, list[Use]]:
    """What used each version, told by the parts that stand above datasets (``app.state.version_uses``)."""
    found: dict[int, list[Use]] = {version.id: [] for version in versions}
    tellers: Sequence[Uses] = getattr(request.app.state, "version_uses", ())
    for tell in tellers if found else ():
        for version_id, uses in tell(session, actor, list(found)).items():
            found[version_id].extend(uses)
    return found


def _enter(request: Request, project_id: int) -> None:
    shell = getattr(request.state, "shell", None)
    if shell is not None:
        shell.enter(project_id)


def from_words(version: DatasetVersion) -> str:
    """Where a version came from, in a few words."""
    origin = version.origin
    match origin.get("kind"):
        case "import":
            names = {"json_lines": "JSON lines", "json_array": "JSON", "csv": "CSV", "parquet": "Parquet"}
            return f"imported, {names.get(str(origin.get('format')), 'a file')}"
        case "labeling" | "labeling_session" | "freeze":
            return "frozen from judgments"
        case "demo":
            return "written by the demo"
        case None:
            return "not recorded"
        case kind:
            return str(kind)


def labeling_session_of(version: DatasetVersion) -> int | None:
    """The labeling session whose judgments became the version."""
    found = version.origin.get("labeling_session_id") or version.origin.get("labeling_session")
    return found if isinstance(found, int) else None


@router.get("/projects/{project_id}/datasets")
def list_page(
    request: Request, actor: Viewer, session: UnitOfWork, project_id: int, after: int | None = None
) -> HTMLResponse:
    """The project's datasets and their newest versions."""
    listed = service.list_datasets(session, actor, project_id, after=after, limit=51)
    newest = [item.newest for item in listed if item.newest]
    return render(
        request,
        "datasets/list.html",
        project_id=project_id,
        listed=listed[:50],
        uses=_uses(request, session, actor, newest),
        next=f"?after={listed[49].dataset.id}" if len(listed) > 50 else None,
        may_import=actor.may(Permission.ENGINEER, project_id),
        columns_of=service.columns_of,
        from_words=from_words,
        session_of=labeling_session_of,
    )


@router.get("/datasets/{dataset_id}")
def dataset_page(request: Request, actor: Viewer, session: UnitOfWork, dataset_id: int) -> HTMLResponse:
    """One dataset: its newest version's figures, and all versions."""
    dataset = service.get_dataset(session, actor, dataset_id)
    _enter(request, dataset.project_id)
    versions = service.list_versions(session, actor, dataset_id)
    return render(
        request,
        "datasets/dataset.html",
        dataset=dataset,
        versions=versions,
        newest=versions[0] if versions else None,
        uses=_uses(request, session, actor, versions),
        authors={version.id: service.author(session, version) for version in versions},
        may_import=actor.may(Permission.ENGINEER, dataset.project_id),
        from_words=from_words,
        session_of=labeling_session_of,
        type_names=TYPE_NAMES,
        row_names=ROW_NAMES,
    )


@router.get("/versions/{version_id}")
def version_page(
    request: Request,
    actor: Viewer,
    session: UnitOfWork,
    version_id: int,
    tab: Annotated[str, Query(pattern="^(rows|statistics|origin|uses)$")] = "rows",
    after: Annotated[int, Query(ge=0)] = 0,
    q: Annotated[str, Query(max_length=200)] = "",
    only: Filter = "",
    view: Annotated[str, Query(pattern="^(read|json)$")] = "read",
) -> HTMLResponse:
    """One version: its rows as conversations, statistics, origin, uses."""
    version = service.get_version(session, actor, version_id)
    _enter(request, version.dataset.project_id)
    page = None
    origins: dict[int, list[int]] = {}
    if tab == "rows":
        after = min(after, version.row_count)
        page = service.read_rows(session, version, after=after, limit=PAGE_ROWS, search=q, only=only)
        if page.rows:
            origins = service.judgments_of_rows(session, version.id, page.rows[0][0], page.rows[-1][0] + 1)
    row_type = RowType(version.row_type)

    def address(**changes: Any) -> str:
        query = {"tab": tab, "after": after, "q": q, "only": only, "view": view} | changes
        defaults = {"tab": "rows", "after": 0, "q": "", "only": "", "view": "read"}
        kept = {key: value for key, value in query.items() if value != defaults[key]}
        return f"/versions/{version.id}" + (f"?{urlencode(kept)}" if kept else "")

    return render(
        request,
        "datasets/version.html",
        version=version,
        dataset=version.dataset,
        page=page,
        origins=origins,
        tab=tab,
        after=after,
        q=q,
        only=only,
        view=view,
        address=address,
        uses=_uses(request, session, actor, [version])[version.id],
        author=service.author(session, version),
        columns=COLUMNS[row_type],
        kinds=service.columns_of(version),
        filters=[(name, FILTER_NAMES[name]) for name in FILTERS_OF.get(row_type, ("", "empty"))],
        row_name=ROW_NAMES.get(row_type, "rows"),
        type_name=TYPE_NAMES[row_type],
        from_words=from_words,
        session_of=labeling_session_of,
        may_train=actor.may(Permission.ENGINEER, version.dataset.project_id),
        as_json=lambda value: orjson.dumps(value, option=orjson.OPT_INDENT_2).decode(),
    )


def _import_page(request: Request, project_id: int, name: str, problem: StudioError | None = None) -> HTMLResponse:
    about = {
        "project": project_id,
        "columns": {kind.value: list(COLUMNS[kind]) for kind in RowType},
        "types": {kind.value: words for kind, words in TYPE_NAMES.items()},
        "roles": sorted(ROLES),
    }
    return render(
        request,
        "datasets/import.html",
        status=status_of(problem) if problem else 200,
        project_id=project_id,
        name=name,
        problem=problem,
        about=orjson.dumps(about).decode().replace("<", "\\u003c"),
    )


@router.get("/projects/{project_id}/datasets/import")
def import_page(
    request: Request, actor: Engineer, session: UnitOfWork, project_id: int, name: str = ""
) -> HTMLResponse:
    """The import: a plain form that works by itself; the island makes three steps with a live preview of it."""
    service.check_may_import(actor, project_id)
    return _import_page(request, project_id, name[:120])


@router.post("/projects/{project_id}/datasets/import")
def import_file(
    request: Request,
    actor: Engineer,
    session: UnitOfWork,
    quarantine: Uploads,
    project_id: int,
    file: Annotated[UploadFile | None, File()] = None,
    name: Annotated[str, Form()] = "",
) -> Response:
    """Import with the likeliest mapping; what is wrong is said above the form."""
    try:
        with session.begin_nested():
            version = take(actor, session, quarantine, project_id, name, file, None, None)
    except StudioError as problem:
        return _import_page(request, project_id, name[:120], problem)
    return RedirectResponse(f"/versions/{version.id}?tab=statistics", status_code=303)
