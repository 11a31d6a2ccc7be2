"""Models over REST: register files, look, trace, download."""

import tarfile
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from backend.accounts.access import Engineer, Viewer
from backend.artifacts import CHUNK, Artifacts, Manifest
from backend.datasets.api import attachment
from backend.registry import lineage, service
from backend.registry.service import Kind, Model
from backend.web.units import UnitOfWork

router = APIRouter(prefix="/api/v1", tags=["models"])


class FileView(BaseModel):
    """One file of a model."""

    name: str
    size: int
    sha256: str


class ModelView(BaseModel):
    """A model and where it came from."""

    id: int
    project_id: int
    name: str
    kind: Kind
    adapter_of_id: int | None
    """The model whose weights this adapter changes."""
    run_id: int | None
    """The run that made it."""
    step: int | None
    parameters: int
    dtype: str
    architecture: str
    size_bytes: int
    note: str
    files: list[FileView]
    created_at: datetime


class ModelList(BaseModel):
    """A page of models."""

    items: list[ModelView]
    next: int | None


class NodeView(BaseModel):
    """A model, a run, a dataset version or judgments in a lineage."""

    kind: Literal["model", "run", "data", "votes"]
    id: int
    name: str
    detail: str
    href: str
    is_ancestor: bool


class LineageView(BaseModel):
    """What a model came from and what was made from it; each edge leads from cause to effect."""

    nodes: list[NodeView]
    edges: list[tuple[str, str]]
    """Pairs of ``kind:id``."""


def model_view(model: Model) -> ModelView:
    """The model as the API shows it."""
    return ModelView(
        id=model.id,
        project_id=model.project_id,
        name=model.name,
        kind="reward" if model.kind == "reward" else "language",
        adapter_of_id=model.adapter_of_id,
        run_id=model.run_id,
        step=model.step,
        parameters=model.parameters,
        dtype=model.dtype,
        architecture=model.architecture,
        size_bytes=model.size_bytes,
        note=model.note,
        files=[FileView(name=entry.name, size=entry.size, sha256=entry.sha256) for entry in service.manifest_of(model)],
        created_at=model.created_at,
    )


@router.get("/projects/{project_id}/models")
def list_models(
    actor: Viewer,
    session: UnitOfWork,
    project_id: int,
    kind: Kind | None = None,
    after: Annotated[int | None, Query(ge=0)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> ModelList:
    """The project's models, newest first."""
    found = service.list_models(session, actor, project_id, kind=kind, after=after, limit=limit + 1)
    items = [model_view(model) for model in found[:limit]]
    return ModelList(items=items, next=items[-1].id if len(found) > limit else None)


@router.post("/projects/{project_id}/models", status_code=201)
def register_model(
    actor: Engineer,
    session: UnitOfWork,
    project_id: int,
    name: Annotated[str, Form(max_length=200)],
    files: Annotated[
        list[UploadFile], File(description="Safetensors, config and tokenizer: the files of the model's folder.")
    ],
    kind: Annotated[Kind, Form()] = "language",
    adapter_of_id: Annotated[int | None, Form()] = None,
    note: Annotated[str, Form(max_length=2000)] = "",
) -> ModelView:
    """Register a model from its files. Weights are taken as safetensors only, and nothing that brings code of its own.

    `curl -H "Authorization: Bearer $TOKEN" -F name=tiny -F files=@model.safetensors -F files=@config.json -F files=@tokenizer.json $STUDIO/api/v1/projects/1/models`
    """
    service.check_may_register(actor, project_id)
    if len(files) > service.MAX_FILES:
        raise service.UnsafeModel(f"A model has at most {service.MAX_FILES:,} files.", field="files")
    for file in files:
        service.check_name(file.filename or "")
    with tempfile.TemporaryDirectory(prefix="studio-model-") as made:
        folder = Path(made)
        for file in files:
            path = folder / (file.filename or "")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise service.UnsafeModel(f"“{file.filename}” was sent twice.", field="files")
            with path.open("xb") as target:
                while chunk := file.file.read(CHUNK):
                    target.write(chunk)
        model = service.receive_files(
            session, actor, project_id, folder, name, kind=kind, adapter_of_id=adapter_of_id, note=note
        )
    return model_view(model)


@router.get("/models/{model_id}")
def get_model(actor: Viewer, session: UnitOfWork, model_id: int) -> ModelView:
    """One model."""
    return model_view(service.get_model(session, actor, model_id))


@router.get("/models/{model_id}/lineage")
def get_lineage(request: Request, actor: Viewer, session: UnitOfWork, model_id: int) -> LineageView:
    """What the model came from and what was made from it."""
    found = lineage.trace(session, actor, model_id, getattr(request.app.state, "tell_runs", None))
    return LineageView(
        nodes=[
            NodeView(
                kind=node.kind,
                id=node.id,
                name=node.name,
                detail=node.detail,
                href=node.href,
                is_ancestor=key in found.ancestors,
            )
            for key, node in found.nodes.items()
        ],
        edges=[(f"{a[0]}:{a[1]}", f"{b[0]}:{b[1]}") for a, b in found.edges],
    )


def _tar(store: Artifacts, manifest: Manifest) -> Iterator[bytes]:
    """The files as an uncompressed tar, a chunk at a time."""
    for entry in manifest:
        about = tarfile.TarInfo(entry.name)
        about.size, about.mode = entry.size, 0o644
        yield about.tobuf(tarfile.PAX_FORMAT)
        with store.open(entry.sha256) as file:
            while chunk := file.read(CHUNK):
                yield chunk
        yield b"\0" * (-entry.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


@router.get("/models/{model_id}/download")
def download(actor: Viewer, session: UnitOfWork, model_id: int) -> StreamingResponse:
    """The model's folder as a tar of safetensors, config and tokenizer."""
    model = service.get_model(session, actor, model_id)
    chunks = _tar(service.artifacts_of(session), service.manifest_of(model))
    return StreamingResponse(chunks, media_type="application/x-tar", headers=attachment(f"{model.name}-{model.id}.tar"))
