"""Datasets over REST: import files, read rows, download versions."""

import csv
import io
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.accounts.access import Engineer, Viewer
from backend.datasets import service
from backend.datasets.importing import Quarantine
from backend.datasets.mapping import Mapping
from backend.datasets.rowfile import RowReader
from backend.datasets.rows import RowType
from backend.datasets.service import Dataset, DatasetVersion, InvalidDataset
from backend.web.units import UnitOfWork

router = APIRouter(prefix="/api/v1", tags=["datasets"])


def quarantine_of(request: Request) -> Quarantine:
    """Where this studio keeps uploads until they are versions."""
    settings = request.app.state.settings
    return Quarantine(settings.studio_home / "quarantine", settings.max_upload_bytes)


Uploads = Annotated[Quarantine, Depends(quarantine_of)]
After = Annotated[int | None, Query(ge=0, description="The `next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=200)]


class NewDataset(BaseModel):
    """A dataset to make; its rows come as versions."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "support-tone"}]})

    name: str = Field(min_length=1, max_length=120)
    description: str = Field("", max_length=4000)


class DatasetView(BaseModel):
    """A dataset and its newest version."""

    id: int
    project_id: int
    name: str
    description: str
    created_at: datetime
    newest: "VersionView | None" = None


class VersionView(BaseModel):
    """An immutable version."""

    id: int
    dataset_id: int
    dataset: str
    number: int
    row_type: RowType
    conversational: bool
    row_count: int
    content_sha256: str
    """SHA-256 over the canonical JSON of the rows in order; the same for the same rows in another file format."""
    bytes: int
    columns: dict[str, str]
    origin: dict[str, Any]
    created_at: datetime


class RowView(BaseModel):
    """One row, and the judgments behind it."""

    position: int
    row: dict[str, Any]
    judgment_ids: list[int]


class DatasetList(BaseModel):
    """A page of datasets."""

    items: list[DatasetView]
    next: int | None


class VersionList(BaseModel):
    """Versions, newest first."""

    items: list[VersionView]
    next: int | None = None


class RowList(BaseModel):
    """A page of rows."""

    items: list[RowView]
    next: int | None
    searched: int
    """How many rows were looked at for this page."""
    row_count: int


class Look(BaseModel):
    """What an uploaded file is, and how its first rows read under a mapping."""

    id: str
    file_name: str
    size: int
    kind: str
    compressed: bool
    delimiter: str | None
    columns: dict[str, str]
    suggestions: list[dict[str, Any]]
    mapping: dict[str, Any] | None
    """The mapping under which `rows` were read: the one that was sent, or the likeliest."""
    looked_at: int
    is_all: bool
    fitting: int
    ties: int = 0
    raw: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    errors: list[dict[str, Any]]


class Progress(BaseModel):
    """How far a running import is; `null` where it did not begin."""

    rows: int | None = None
    share: float | None = None
    seconds: float | None = None


class Asked(BaseModel):
    """A mapping to try."""

    model_config = ConfigDict(extra="forbid")

    mapping: Mapping | None = None


def version_view(version: DatasetVersion) -> VersionView:
    """The version as the API shows it."""
    return VersionView(
        id=version.id,
        dataset_id=version.dataset_id,
        dataset=version.dataset.name,
        number=version.number,
        row_type=RowType(version.row_type),
        conversational=version.conversational,
        row_count=version.row_count,
        content_sha256=version.content_sha256,
        bytes=version.rows_bytes,
        columns=service.columns_of(version),
        origin=version.origin,
        created_at=version.created_at,
    )


def dataset_view(dataset: Dataset, newest: DatasetVersion | None = None) -> DatasetView:
    """The dataset as the API shows it."""
    return DatasetView(
        id=dataset.id,
        project_id=dataset.project_id,
        name=dataset.name,
        description=dataset.description,
        created_at=dataset.created_at,
        newest=version_view(newest) if newest else None,
    )


@router.get("/projects/{project_id}/datasets")
def list_datasets(
    actor: Viewer, session: UnitOfWork, project_id: int, after: After = None, limit: Limit = 50
) -> DatasetList:
    """The project's datasets, newest first, each with its newest version."""
    found = service.list_datasets(session, actor, project_id, after=after, limit=limit + 1)
    items = [dataset_view(*listed) for listed in found[:limit]]
    return DatasetList(items=items, next=items[-1].id if len(found) > limit else None)


@router.post("/projects/{project_id}/datasets", status_code=201)
def create_dataset(actor: Engineer, session: UnitOfWork, project_id: int, new: NewDataset) -> DatasetView:
    """Make an empty dataset."""
    return dataset_view(service.create_dataset(session, actor, project_id, new.name, new.description))


@router.get("/datasets/{dataset_id}")
def get_dataset(actor: Viewer, session: UnitOfWork, dataset_id: int) -> DatasetView:
    """One dataset with its newest version."""
    versions = service.list_versions(session, actor, dataset_id)
    return dataset_view(service.get_dataset(session, actor, dataset_id), versions[0] if versions else None)


@router.get("/datasets/{dataset_id}/versions")
def list_versions(actor: Viewer, session: UnitOfWork, dataset_id: int) -> VersionList:
    """The dataset's versions, newest first."""
    return VersionList(items=[version_view(version) for version in service.list_versions(session, actor, dataset_id)])


@router.get("/projects/{project_id}/versions")
def list_project_versions(
    actor: Viewer, session: UnitOfWork, project_id: int, row_type: Annotated[list[RowType] | None, Query()] = None
) -> VersionList:
    """Versions of the project that have one of the given types: what a run can learn from."""
    found = service.list_project_versions(session, actor, project_id, row_types=row_type)
    return VersionList(items=[version_view(version) for version in found])


def parse_mapping(text: str | None) -> Mapping | None:
    """The mapping in a form field; ``None`` if there is none."""
    if not text:
        return None
    try:
        return Mapping.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("mapping", *first["loc"]))
        raise InvalidDataset(
            f"{place}: {first['msg']}", field=place, remedy="The API reference describes the mapping."
        ) from None


@router.post("/datasets/{dataset_id}/versions", status_code=201)
def create_version(
    actor: Engineer,
    session: UnitOfWork,
    quarantine: Uploads,
    dataset_id: int,
    file: Annotated[
        UploadFile | None, File(description="JSON lines, a JSON array, CSV (each may be gzipped) or Parquet.")
    ] = None,
    upload_id: Annotated[
        str | None, Form(description="Instead of a file: an upload that was looked at before.")
    ] = None,
    mapping: Annotated[
        str | None, Form(description="The mapping as JSON; without it, the likeliest one is used.")
    ] = None,
) -> VersionView:
    """Import a file as a new version, in one step or from an upload.

    `curl -H "Authorization: Bearer $TOKEN" -F file=@pairs.jsonl $STUDIO/api/v1/datasets/1/versions`.
    A file that cannot be read is refused with the `line` at fault, and nothing of it is kept.
    """
    asked = parse_mapping(mapping)
    dataset = service.get_dataset(session, actor, dataset_id)
    if (file is None) == (upload_id is None):
        raise InvalidDataset("Send either a file or an upload_id.", field="file", remedy="-F file=@pairs.jsonl")
    if upload_id is not None:
        upload = service.get_upload(session, actor, dataset.project_id, quarantine, upload_id)
        return version_view(service.import_version(session, actor, dataset_id, quarantine, upload, asked))
    assert file is not None
    service.check_may_import(actor, dataset.project_id)
    upload = quarantine.receive(file.file, file.filename or "file", dataset.project_id, actor.person_id)
    try:
        return version_view(service.import_version(session, actor, dataset_id, quarantine, upload, asked))
    finally:
        quarantine.remove(upload)


@router.post("/projects/{project_id}/imports", status_code=201)
def import_dataset(
    actor: Engineer,
    session: UnitOfWork,
    quarantine: Uploads,
    project_id: int,
    name: Annotated[str, Form(max_length=120, description="The dataset; it is made if it does not exist.")],
    file: Annotated[UploadFile | None, File()] = None,
    upload_id: Annotated[str | None, Form()] = None,
    mapping: Annotated[str | None, Form()] = None,
) -> VersionView:
    """Import a file as the first or next version of the dataset *name*: the dataset and the version, or neither."""
    return version_view(take(actor, session, quarantine, project_id, name, file, upload_id, parse_mapping(mapping)))


def take(
    actor: Engineer,
    session: UnitOfWork,
    quarantine: Quarantine,
    project_id: int,
    name: str,
    file: UploadFile | None,
    upload_id: str | None,
    mapping: Mapping | None,
) -> DatasetVersion:
    """Import a sent file or an earlier upload; what was only sent for this does not stay in quarantine."""
    if upload_id:
        upload = service.get_upload(session, actor, project_id, quarantine, upload_id)
        return service.import_dataset(session, actor, project_id, quarantine, upload, mapping, name)
    if file is None or not file.filename:
        raise InvalidDataset("There is no file.", field="file", remedy="Choose a file.")
    service.check_may_import(actor, project_id)
    upload = quarantine.receive(file.file, file.filename, project_id, actor.person_id)
    try:
        return service.import_dataset(session, actor, project_id, quarantine, upload, mapping, name)
    finally:
        quarantine.remove(upload)


@router.post("/projects/{project_id}/uploads", status_code=201)
def create_upload(
    actor: Engineer, session: UnitOfWork, quarantine: Uploads, project_id: int, file: Annotated[UploadFile, File()]
) -> Look:
    """Send a file and see what it is, before anything is made of it. It is kept for a day."""
    _, look = service.receive_upload(session, actor, project_id, quarantine, file.file, file.filename or "file")
    return Look(**look)


@router.get("/projects/{project_id}/uploads/{upload_id}")
def get_upload(actor: Engineer, session: UnitOfWork, quarantine: Uploads, project_id: int, upload_id: str) -> Progress:
    """How far the import of an upload is."""
    upload = service.get_upload(session, actor, project_id, quarantine, upload_id)
    return Progress(**(upload.progress() or {}))


@router.delete("/projects/{project_id}/uploads/{upload_id}", status_code=204)
def delete_upload(actor: Engineer, session: UnitOfWork, quarantine: Uploads, project_id: int, upload_id: str) -> None:
    """Forget an upload."""
    quarantine.remove(service.get_upload(session, actor, project_id, quarantine, upload_id))


@router.post("/projects/{project_id}/uploads/{upload_id}/preview")
def preview(
    actor: Engineer, session: UnitOfWork, quarantine: Uploads, project_id: int, upload_id: str, asked: Asked
) -> Look:
    """How the first rows read under a mapping, with the first errors by line."""
    upload = service.get_upload(session, actor, project_id, quarantine, upload_id)
    return Look(**quarantine.look(upload, asked.mapping))


@router.get("/versions/{version_id}")
def get_version(actor: Viewer, session: UnitOfWork, version_id: int) -> VersionView:
    """One version."""
    return version_view(service.get_version(session, actor, version_id))


@router.get("/versions/{version_id}/statistics")
def statistics(actor: Viewer, session: UnitOfWork, version_id: int) -> dict[str, Any]:
    """What was counted at import: lengths, turns, duplicates, contradictions, the *longer one wins* baseline."""
    return service.get_version(session, actor, version_id).statistics


Filter = Literal["", "empty", "same", "shorter-wins", "longer-wins", "label-true", "label-false"]


@router.get("/versions/{version_id}/rows")
def rows(
    actor: Viewer,
    session: UnitOfWork,
    version_id: int,
    after: Annotated[int, Query(ge=0, description="Position to begin at: the `next` of the page before.")] = 0,
    limit: Limit = 50,
    search: Annotated[str, Query(max_length=200)] = "",
    only: Filter = "",
) -> RowList:
    """Rows by position. A search looks at up to 20,000 rows at a time; `next` goes on."""
    version = service.get_version(session, actor, version_id)
    page = service.read_rows(session, version, after=after, limit=limit, search=search, only=only)
    origins = service.judgments_of_rows(session, version.id, page.rows[0][0], page.rows[-1][0] + 1) if page.rows else {}
    items = [RowView(position=position, row=row, judgment_ids=origins.get(position, [])) for position, row in page.rows]
    return RowList(items=items, next=page.next, searched=page.searched, row_count=version.row_count)


def safe_cell(value: Any) -> str:
    """A value for a CSV cell that no spreadsheet runs as a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return orjson.dumps(value).decode()
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _csv(reader: RowReader, columns: list[str]) -> Iterator[bytes]:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([safe_cell(column) for column in columns])
    for _, row in reader.rows():
        writer.writerow([safe_cell(row.get(column)) for column in columns])
        if buffer.tell() > 1 << 16:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()


def _json_lines(reader: RowReader) -> Iterator[bytes]:
    pieces, size = [], 0
    for line in reader.lines():
        pieces.append(line)
        size += len(line)
        if size > 1 << 16:
            yield b"".join(pieces)
            pieces, size = [], 0
    yield b"".join(pieces)


def attachment(name: str) -> dict[str, str]:
    """The header that makes a browser save the answer as *name*."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "file"
    return {"Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"}


@router.get("/versions/{version_id}/download")
def download(
    actor: Viewer, session: UnitOfWork, version_id: int, format: Literal["jsonl", "csv", "parquet"] = "jsonl"
) -> Response:
    """The whole version as JSON lines, CSV (formulas made harmless) or Parquet, streamed."""
    version = service.get_version(session, actor, version_id)
    path = service.rows_path(session, version)
    headers = attachment(f"{version.dataset.name}-v{version.number}.{format}")
    if format == "parquet":
        return FileResponse(path, media_type="application/vnd.apache.parquet", headers=headers)
    reader = RowReader(path)
    if format == "csv":
        return StreamingResponse(
            _csv(reader, list(service.columns_of(version))), media_type="text/csv; charset=utf-8", headers=headers
        )
    return StreamingResponse(_json_lines(reader), media_type="application/jsonl; charset=utf-8", headers=headers)
