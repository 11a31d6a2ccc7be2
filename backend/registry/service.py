"""Models: what they are made of, where they came from and what was made from them."""

import json
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import orjson
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.accounts import service as accounts
from backend.accounts.actors import Actor, Permission
from backend.artifacts import Artifacts, FileEntry, Manifest
from backend.errors import Invalid, NotFound
from backend.registry.tables import Model

__all__ = ["Model"]

Kind = Literal["language", "reward"]

MAX_FILES = 1_000
MAX_HEADER_BYTES = 100_000_000
MAX_CONFIG_BYTES = 64 << 20
FORBIDDEN = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".npy",
    ".npz",
    ".h5",
    ".msgpack",
    ".py",
    ".so",
    ".gguf",
    ".joblib",
)
"""Files that run code when they are read, or that nothing here reads."""
ALLOWED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md", ".jsonl")
"""What a model's folder may hold: weights, config, tokenizer, chat template, words about it."""


class NoSuchModel(NotFound):
    """There is no such model, or it is not yours to see."""


class UnsafeModel(Invalid):
    """This model is not taken."""


class Weights(NamedTuple):
    """What the headers of a model's safetensors say."""

    parameters: int
    dtype: str


def artifacts_of(session: Session) -> Artifacts:
    """The artifact store that the session was made with."""
    store: Artifacts = session.info["artifacts"]
    return store


def check_name(name: str) -> None:
    """Raise :class:`UnsafeModel` unless *name* is a plain relative path to a kind of file that a model may hold."""
    path = PurePosixPath(name)
    parts = name.split("/")
    hostile = (
        not name
        or name.startswith("/")
        or "\\" in name
        or ":" in name
        or any(ord(c) < 32 or ord(c) == 127 for c in name)
    )
    if hostile or any(part in ("", ".", "..") for part in parts) or len(parts) > 3 or len(name) > 200:
        raise UnsafeModel(
            f"“{name[:80]}” is no plain file name.", field="files", remedy="Send the model's files without folders."
        )
    suffix = path.suffix.lower()
    if suffix in FORBIDDEN:
        raise UnsafeModel(
            f"“{name}” may run code when it is read.",
            field="files",
            remedy="Save the weights as safetensors and send those.",
        )
    if suffix not in ALLOWED and path.name not in ("LICENSE", "NOTICE", "README", ".gitattributes"):
        raise UnsafeModel(f"“{name}” is no file of a model.", field="files", remedy=f"Taken are {', '.join(ALLOWED)}.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def read_header(path: Path) -> Counter[str]:
    """Data type → number of parameters, from the header of the safetensors file at *path*; checks that the file is whole.

    Format: 8 bytes little-endian header length, JSON header, tensors without gaps
    (https://huggingface.co/docs/safetensors). Raises :class:`UnsafeModel`.
    """
    total = path.stat().st_size
    broken = UnsafeModel(
        f"“{path.name}” is no whole safetensors file.", field="files", remedy="Save and send it again."
    )
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise broken
        (length,) = struct.unpack("<Q", start)
        if length > min(MAX_HEADER_BYTES, total - 8):
            raise broken
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            raise broken from None
    if not isinstance(header, dict):
        raise broken
    counts, spans = Counter[str](), []
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
            n = 1
            for size in shape:
                if not isinstance(size, int) or size < 0:
                    raise broken
                n *= size
            if (
                not isinstance(dtype, str)
                or not isinstance(begin, int)
                or not isinstance(end, int)
                or end < begin
                or begin < 0
            ):
                raise broken
        except (TypeError, KeyError, ValueError):
            raise broken from None
        counts[dtype] += n
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise broken
        at = end
    if not spans or at != total - 8 - length:
        raise broken
    return counts


def _json(path: Path, name: str) -> Any:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UnsafeModel(f"“{name}” is larger than a config.", field="files")
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        raise UnsafeModel(f"“{name}” is no JSON.", field="files") from None


def _config(path: Path, name: str) -> dict[str, Any]:
    config = _json(path, name)
    if not isinstance(config, dict):
        raise UnsafeModel(f"“{name}” is no JSON object.", field="files")
    return config


def _check_no_code(config: Any, name: str) -> None:
    """Raise if *config* asks for code of its own anywhere."""
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            for key in ("auto_map", "custom_pipelines", "custom_code"):
                if value.get(key):
                    raise UnsafeModel(
                        f"“{name}” asks for code of its own ({key}).",
                        field="files",
                        remedy="Only architectures that the library knows are taken.",
                    )
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def inspect(store: Artifacts, manifest: Manifest) -> tuple[Weights, str]:
    """Check a stored model's files; returns its weights and its architecture. Raises :class:`UnsafeModel`."""
    if not 0 < len(manifest) <= MAX_FILES:
        raise UnsafeModel(f"A model has 1 to {MAX_FILES:,} files.", field="files")
    by_name = {entry.name: entry for entry in manifest}
    if len(by_name) != len(manifest):
        raise UnsafeModel("Two files have the same name.", field="files")
    for entry in manifest:
        check_name(entry.name)
    return inspect_files({entry.name: store.local_path(entry.sha256) for entry in manifest})


def inspect_files(files: dict[str, Path]) -> tuple[Weights, str]:
    """The same for files that are not stored yet: name → where it lies."""
    for name in files:
        check_name(name)
    counts = Counter[str]()
    for name, path in files.items():
        if name.endswith(".safetensors"):
            try:
                counts += read_header(path)
            except UnsafeModel as error:
                # stored files are named by their hash; people know the file's name
                raise UnsafeModel(error.detail.replace(path.name, name), field="files", remedy=error.remedy) from None
        elif name.endswith(".json"):
            # parsed whole: a search in the text would miss a key that is written in escapes
            _check_no_code(_json(path, name), name)
    if not counts:
        raise UnsafeModel(
            "There is no safetensors file.", field="files", remedy="A model needs its weights as safetensors."
        )
    architecture = ""
    if "adapter_config.json" in files:
        architecture = str(_config(files["adapter_config.json"], "adapter_config.json").get("peft_type", ""))
    elif "config.json" in files:
        known = _config(files["config.json"], "config.json").get("architectures") or [""]
        architecture = str(known[0]) if isinstance(known, list) else ""
    else:
        raise UnsafeModel("There is no config.json.", field="files", remedy="Send the whole folder of the model.")
    return Weights(sum(counts.values()), max(counts, key=lambda dtype: counts[dtype])), architecture[:200]


def register_model(
    session: Session,
    *,
    project_id: int,
    name: str,
    kind: Kind,
    manifest: Manifest,
    adapter_of_id: int | None = None,
    run_id: int | None = None,
    step: int | None = None,
    created_by: int | None = None,
    note: str = "",
) -> Model:
    """A new model from files in the artifact store. Raises :class:`UnsafeModel` for anything that could run code."""
    manifest = [FileEntry(*entry) for entry in manifest]
    weights, architecture = inspect(artifacts_of(session), manifest)
    if adapter_of_id is not None:
        base = session.get(Model, adapter_of_id)
        if base is None or base.project_id != project_id:
            raise NoSuchModel("The model that this adapter changes is not in the project.", field="adapter_of_id")
    name = " ".join(name.split())[:200]
    if not name:
        raise UnsafeModel("A model needs a name.", field="name", remedy="Choose one.")
    model = Model(
        project_id=project_id,
        name=name,
        kind=kind,
        adapter_of_id=adapter_of_id,
        run_id=run_id,
        step=step,
        manifest=[list(entry) for entry in manifest],
        parameters=weights.parameters,
        dtype=weights.dtype,
        architecture=architecture,
        size_bytes=sum(entry.size for entry in manifest),
        note=note,
        created_by_id=created_by,
    )
    session.add(model)
    session.flush()
    return model


def register_folder(
    session: Session,
    project_id: int,
    folder: Path,
    name: str,
    *,
    kind: Kind = "language",
    note: str = "",
    created_by: int | None = None,
) -> Model:
    """Store and register the model in a local *folder*: how the demo's base comes in. Checked before anything is stored."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    inspect_files(files)
    manifest = artifacts_of(session).put_folder(folder)
    return register_model(
        session, project_id=project_id, name=name, kind=kind, manifest=manifest, note=note, created_by=created_by
    )


def get_model(session: Session, actor: Actor, model_id: int) -> Model:
    """The model, if the actor may see it."""
    model = session.get(Model, model_id)
    if model is None:
        raise NoSuchModel("There is no such model, or it is not yours to see.")
    actor.require(Permission.VIEW, model.project_id)
    return model


def manifest_of(model: Model) -> Manifest:
    """The model's files."""
    return [FileEntry(*entry) for entry in model.manifest]


def artifacts_needed(session: Session) -> set[str]:
    """Hashes of the files that models are made of."""
    return {sha256 for manifest in session.scalars(select(Model.manifest)) for _, _, sha256 in manifest}


def list_models(
    session: Session,
    actor: Actor,
    project_id: int,
    *,
    kind: Kind | None = None,
    adapters: bool | None = None,
    after: int | None = None,
    limit: int = 50,
) -> Sequence[Model]:
    """The project's models, newest first; *after* is the id of the last one seen."""
    actor.require(Permission.VIEW, project_id)
    query = select(Model).where(Model.project_id == project_id).order_by(Model.id.desc()).limit(limit)
    if kind is not None:
        query = query.where(Model.kind == kind)
    if adapters is not None:
        query = query.where(Model.adapter_of_id.is_not(None) if adapters else Model.adapter_of_id.is_(None))
    if after is not None:
        query = query.where(Model.id < after)
    return session.scalars(query).all()


def rail_counts(session: Session, actor: Actor, project_id: int) -> dict[str, int]:
    """The project's number of models, for the rail."""
    if not actor.may(Permission.VIEW, project_id):
        return {}
    return {
        "models": session.scalar(select(func.count()).select_from(Model).where(Model.project_id == project_id)) or 0
    }


def kinds(session: Session, actor: Actor, project_id: int) -> dict[str, int]:
    """How many models of each sort there are: ``base``, ``adapter``, ``reward``."""
    actor.require(Permission.VIEW, project_id)
    found = {"base": 0, "adapter": 0, "reward": 0}
    query = select(Model.kind, Model.adapter_of_id.is_not(None), func.count()).where(Model.project_id == project_id)
    for kind, is_adapter, n in session.execute(query.group_by(Model.kind, Model.adapter_of_id.is_not(None))):
        found["reward" if kind == "reward" else "adapter" if is_adapter else "base"] += n
    return found


def chain_of(session: Session, model: Model) -> list[Model]:
    """The models that must be loaded for *model*: the one with whole weights first, *model* last."""
    chain = [model]
    while chain[0].adapter_of_id is not None:
        chain.insert(0, session.get_one(Model, chain[0].adapter_of_id))
    return chain


def receive_files(
    session: Session,
    actor: Actor,
    project_id: int,
    folder: Path,
    name: str,
    *,
    kind: Kind,
    adapter_of_id: int | None,
    note: str,
) -> Model:
    """Register the model whose files were sent into *folder*; nothing of a refused one is stored."""
    check_may_register(actor, project_id)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    inspect_files(files)
    if ("adapter_config.json" in files) != (adapter_of_id is not None):
        raise UnsafeModel(
            "An adapter needs the model that it changes, and only an adapter does.",
            field="adapter_of_id",
            remedy="Send adapter_of_id together with adapter_config.json and adapter_model.safetensors.",
        )
    return register_model(
        session,
        project_id=project_id,
        name=name,
        kind=kind,
        manifest=artifacts_of(session).put_folder(folder),
        adapter_of_id=adapter_of_id,
        created_by=actor.person_id,
        note=note,
    )


def check_may_register(actor: Actor, project_id: int) -> None:
    """Raise unless the actor may add models to the project: asked before files are taken in."""
    actor.require(Permission.ENGINEER, project_id)


def author(session: Session, model: Model) -> str | None:
    """Name of who registered the model."""
    return accounts.names(session, [model.created_by_id]).get(model.created_by_id) if model.created_by_id else None
