"""Datasets: names, immutable versions, their rows."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sqlalchemy import func, insert, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from backend.accounts import service as accounts
from backend.accounts.actors import Actor, Permission
from backend.artifacts import Artifacts
from backend.datasets.importing import NeedsMemory, NoSuchUpload, Quarantine, Upload
from backend.datasets.mapping import Mapping, identity
from backend.datasets.rowfile import RowReader, RowWriter, Written
from backend.datasets.rows import COLUMNS, Row, RowType
from backend.datasets.strictjson import BadFile, FileTooLarge
from backend.datasets.tables import Dataset, DatasetVersion, RowOrigin
from backend.db import after_commit
from backend.errors import Conflict, Invalid, NotFound, StudioError

__all__ = ["Dataset", "DatasetVersion"]

BATCH = 10_000


class DatasetNameTaken(Conflict):
    """Another dataset of the project has this name."""


class InvalidDataset(Invalid):
    """This dataset cannot be made."""


class NoSuchDataset(NotFound):
    """There is no such dataset, or it is not yours to see."""


class SameContent(Conflict):
    """The dataset has these very rows already."""


def artifacts_of(session: Session) -> Artifacts:
    """The artifact store that the session was made with."""
    store: Artifacts = session.info["artifacts"]
    return store


def create_dataset(session: Session, actor: Actor, project_id: int, name: str, description: str = "") -> Dataset:
    """A new, empty dataset; its name is unique in the project."""
    actor.require(Permission.ENGINEER, project_id)
    name = " ".join(name.split())
    if not 1 <= len(name) <= 120:
        raise InvalidDataset("A dataset's name has 1 to 120 characters.", field="name", remedy="Choose a name.")
    if len(description) > 4000:
        raise InvalidDataset("A description has at most 4,000 characters.", field="description", remedy="Shorten it.")
    taken = session.scalar(select(Dataset.id).where(Dataset.project_id == project_id, Dataset.name == name))
    if taken is not None:
        raise DatasetNameTaken(
            f"“{name}” exists.", field="name", dataset_id=taken, remedy="Add a version to it, or choose another name."
        )
    dataset = Dataset(project_id=project_id, name=name, description=description.strip(), created_by_id=actor.person_id)
    session.add(dataset)
    session.flush()
    return dataset


def get_dataset(session: Session, actor: Actor, dataset_id: int) -> Dataset:
    """The dataset, if the actor may see it."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        raise NoSuchDataset("There is no such dataset, or it is not yours to see.")
    actor.require(Permission.VIEW, dataset.project_id)
    return dataset


def get_version(session: Session, actor: Actor, version_id: int) -> DatasetVersion:
    """The version (its ``dataset`` comes along), if the actor may see it."""
    version = session.get(DatasetVersion, version_id)
    if version is None:
        raise NoSuchDataset("There is no such dataset version, or it is not yours to see.")
    actor.require(Permission.VIEW, version.dataset.project_id)
    return version


def rows_path(session: Session, version: DatasetVersion) -> Path:
    """A local Parquet file with the version's rows; read-only."""
    return artifacts_of(session).local_path(version.rows_sha256)


def columns_of(version: DatasetVersion) -> dict[str, str]:
    """The version's columns and their types: TRL's in their order, then the others (the database keeps no order of keys)."""
    first = COLUMNS[RowType(version.row_type)]
    return {
        column: version.columns[column]
        for column in (*(c for c in first if c in version.columns), *sorted(set(version.columns) - set(first)))
    }


def artifacts_needed(session: Session) -> set[str]:
    """Hashes of the files that versions are made of."""
    return set(session.scalars(select(DatasetVersion.rows_sha256)))


def create_version(
    session: Session,
    dataset_id: int,
    rows: Iterable[Row],
    row_type: RowType,
    *,
    origin: dict[str, Any],
    created_by: int | None,
    judgment_ids: Iterable[Sequence[int]] | None = None,
) -> DatasetVersion:
    """A new version from *rows*, which stream to one Parquet artifact; *judgment_ids* has one sequence per row.

    Raises :class:`SameContent` if a version of the dataset has these very rows, and ``BadRow`` with the row's ``line``.
    """
    with tempfile.TemporaryDirectory(prefix="studio-rows-") as folder:
        writer = RowWriter(Path(folder) / "rows.parquet", row_type)
        checked = identity(row_type)
        try:
            for row in rows:
                writer.add(checked(row))
            written = writer.close()
        except StudioError as error:
            error.fields.setdefault("line", writer.rows + 1)
            raise
        version = record_version(session, dataset_id, written, row_type, origin=origin, created_by=created_by)
    if judgment_ids is not None:
        _record_origins(session, version.id, judgment_ids)
    return version


def record_version(
    session: Session,
    dataset_id: int,
    written: Written,
    row_type: RowType,
    *,
    origin: dict[str, Any],
    created_by: int | None,
) -> DatasetVersion:
    """The version whose rows were written already. The file is stored only once nothing can refuse it any more."""
    # one version at a time, so that numbers have no gaps and the same content cannot come in twice
    dataset = session.scalar(select(Dataset).where(Dataset.id == dataset_id).with_for_update())
    if dataset is None:
        raise NoSuchDataset("There is no such dataset, or it is not yours to see.")
    same = session.scalar(
        select(DatasetVersion).where(
            DatasetVersion.dataset_id == dataset_id, DatasetVersion.content_sha256 == written.content_sha256
        )
    )
    if same is not None:
        raise SameContent(
            f"Version {same.number} has the same rows in the same order; nothing was made.",
            version_id=same.id,
            number=same.number,
            remedy=f"Use version {same.number}.",
        )
    number = session.scalar(select(func.max(DatasetVersion.number)).where(DatasetVersion.dataset_id == dataset_id)) or 0
    stored = artifacts_of(session).put(written.path)
    version = DatasetVersion(
        dataset=dataset,
        number=number + 1,
        row_type=row_type,
        conversational=written.conversational,
        row_count=written.rows,
        content_sha256=written.content_sha256,
        rows_sha256=stored.sha256,
        rows_bytes=stored.size,
        columns=written.columns,
        statistics=written.statistics,
        origin=origin,
        created_by_id=created_by,
    )
    session.add(version)
    session.flush()
    return version


def receive_upload(
    session: Session, actor: Actor, project_id: int, quarantine: Quarantine, stream: BinaryIO, file_name: str
) -> tuple[Upload, dict[str, Any]]:
    """Take a file into quarantine and look at it: what it is, its first rows, mappings that fit. A broken file is removed."""
    actor.require(Permission.ENGINEER, project_id)
    upload = quarantine.receive(stream, file_name, project_id, actor.person_id)
    try:
        return upload, quarantine.look(upload)
    except BaseException:
        quarantine.remove(upload)
        raise


def get_upload(session: Session, actor: Actor, project_id: int, quarantine: Quarantine, upload_id: str) -> Upload:
    """An upload that the actor sent to the project."""
    actor.require(Permission.ENGINEER, project_id)
    upload = quarantine.get(upload_id, actor.person_id)
    if upload.project_id != project_id:
        raise NoSuchUpload("There is no such upload; uploads are kept for a day.", remedy="Send the file again.")
    return upload


def import_version(
    session: Session, actor: Actor, dataset_id: int, quarantine: Quarantine, upload: Upload, mapping: Mapping | None
) -> DatasetVersion:
    """A version from an uploaded file under *mapping* (``None``: the likeliest one).

    A broken file leaves quarantine at once. One whose rows only do not fit the mapping stays, for another try.
    """
    dataset = get_dataset(session, actor, dataset_id)
    actor.require(Permission.ENGINEER, dataset.project_id)
    if upload.project_id != dataset.project_id:
        raise NoSuchUpload("The upload belongs to another project.", remedy="Send the file again.")
    try:
        written, used, about = quarantine.write_rows(upload, mapping)
    except (BadFile, FileTooLarge, NeedsMemory):
        quarantine.remove(upload)
        raise
    origin = {
        "kind": "import",
        "file_name": upload.file_name,
        "bytes": upload.size,
        "mapping": used.model_dump(mode="json", exclude_defaults=True),
        **about,
    }
    version = record_version(session, dataset_id, written, used.row_type, origin=origin, created_by=actor.person_id)
    after_commit(session, lambda: quarantine.remove(upload))
    return version


def import_dataset(
    session: Session,
    actor: Actor,
    project_id: int,
    quarantine: Quarantine,
    upload: Upload,
    mapping: Mapping | None,
    name: str,
) -> DatasetVersion:
    """The same into the project's dataset *name*, which is made if it does not exist; both or neither."""
    actor.require(Permission.ENGINEER, project_id)
    known = session.scalar(
        select(Dataset).where(Dataset.project_id == project_id, Dataset.name == " ".join(name.split()))
    )
    dataset = known or create_dataset(session, actor, project_id, name)
    return import_version(session, actor, dataset.id, quarantine, upload, mapping)


def _record_origins(session: Session, version_id: int, judgment_ids: Iterable[Sequence[int]]) -> None:
    batch: list[dict[str, int]] = []
    for position, judgments in enumerate(judgment_ids):
        batch += [
            {"version_id": version_id, "position": position, "judgment_id": judgment}
            for judgment in dict.fromkeys(judgments)
        ]
        if len(batch) >= BATCH:
            session.execute(insert(RowOrigin), batch)
            batch = []
    if batch:
        session.execute(insert(RowOrigin), batch)


def judgments_of_rows(session: Session, version_id: int, start: int, stop: int) -> dict[int, list[int]]:
    """Position → judgment ids, for the rows from *start* up to but without *stop*."""
    found: dict[int, list[int]] = {}
    origins = session.execute(
        select(RowOrigin.position, RowOrigin.judgment_id)
        .where(RowOrigin.version_id == version_id, RowOrigin.position >= start, RowOrigin.position < stop)
        .order_by(RowOrigin.position, RowOrigin.judgment_id)
    )
    for position, judgment_id in origins:
        found.setdefault(position, []).append(judgment_id)
    return found


def rows_from_judgments(session: Session, judgment_ids: Iterable[int]) -> list[tuple[int, int]]:
    """``(version id, position)`` of every row that one of the judgments stands behind."""
    query = select(RowOrigin.version_id, RowOrigin.position).where(RowOrigin.judgment_id.in_(list(judgment_ids)))
    return [(version_id, position) for version_id, position in session.execute(query.distinct())]


class Listed(NamedTuple):
    """A dataset with its newest version, if it has one."""

    dataset: Dataset
    newest: DatasetVersion | None


def list_datasets(
    session: Session, actor: Actor, project_id: int, *, after: int | None = None, limit: int = 50
) -> list[Listed]:
    """The project's datasets, newest first; *after* is the id of the last one seen."""
    actor.require(Permission.VIEW, project_id)
    query = select(Dataset).where(Dataset.project_id == project_id).order_by(Dataset.id.desc()).limit(limit)
    if after is not None:
        query = query.where(Dataset.id < after)
    datasets = session.scalars(query).all()
    newest = select(DatasetVersion).where(DatasetVersion.dataset_id.in_([d.id for d in datasets]))
    newest = newest.ext(distinct_on(DatasetVersion.dataset_id)).order_by(
        DatasetVersion.dataset_id, DatasetVersion.number.desc()
    )
    by_dataset = {version.dataset_id: version for version in session.scalars(newest)}
    return [Listed(dataset, by_dataset.get(dataset.id)) for dataset in datasets]


def list_versions(session: Session, actor: Actor, dataset_id: int) -> Sequence[DatasetVersion]:
    """The dataset's versions, newest first."""
    dataset = get_dataset(session, actor, dataset_id)
    query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset.id).order_by(DatasetVersion.number.desc())
    return session.scalars(query).all()


def list_project_versions(
    session: Session, actor: Actor, project_id: int, *, row_types: Iterable[RowType] | None = None
) -> Sequence[DatasetVersion]:
    """Every version of the project, newest first, of the given types: what a run can learn from."""
    actor.require(Permission.VIEW, project_id)
    query = (
        select(DatasetVersion).join(Dataset).where(Dataset.project_id == project_id).order_by(DatasetVersion.id.desc())
    )
    if row_types is not None:
        query = query.where(DatasetVersion.row_type.in_(list(row_types)))
    return session.scalars(query.limit(500)).all()


def rail_counts(session: Session, actor: Actor, project_id: int) -> dict[str, int]:
    """The project's number of datasets, for the rail."""
    if not actor.may(Permission.VIEW, project_id):
        return {}
    query = select(func.count()).select_from(Dataset).where(Dataset.project_id == project_id)
    return {"datasets": session.scalar(query) or 0}


def author(session: Session, version: DatasetVersion) -> str | None:
    """Name of who made the version."""
    return (
        accounts.names(session, [version.created_by_id]).get(version.created_by_id) if version.created_by_id else None
    )


class Use(NamedTuple):
    """Something that used a version: named, and where it is seen. The parts above datasets tell them (see ``pages``)."""

    name: str
    href: str
    detail: str = ""


class Page(NamedTuple):
    """Some rows in their order, and where the next page begins (``None`` at the end)."""

    rows: list[tuple[int, Row]]
    next: int | None
    searched: int
    """How many rows were looked at; with a search this may be many more than were found."""


SCAN_ROWS = 20_000


def read_rows(
    session: Session, version: DatasetVersion, *, after: int = 0, limit: int = 50, search: str = "", only: str = ""
) -> Page:
    """Up to *limit* rows from position *after* on that hold *search* and pass the filter *only*.

    A search looks at no more than 20,000 rows at a time, so that it answers soon; ``next`` says where to go on.
    """
    with RowReader(rows_path(session, version)) as reader:
        if not search and not only:
            rows = list(reader.rows(after, after + limit))
            end = after + len(rows)
            return Page(rows, end if end < len(reader) else None, len(rows))
        wanted, found = search.casefold(), list[tuple[int, Row]]()
        position, passes = after - 1, FILTERS[only]
        for position, row in reader.rows(after, after + SCAN_ROWS):
            if passes(row) and (not wanted or _holds(row, wanted)):
                found.append((position, row))
                if len(found) == limit:
                    break
        end = position + 1
        return Page(found, end if end < len(reader) else None, end - after)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _holds(row: Row, wanted: str) -> bool:
    return any(wanted in text.casefold() for value in row.values() for text in _texts(value))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else sum(len(m["content"]) for m in value)


FILTERS: dict[str, Any] = {
    "": lambda row: True,
    "empty": lambda row: any(
        not t.strip() for c in ("text", "prompt", "completion", "chosen", "rejected") for t in _texts(row.get(c))
    ),
    "same": lambda row: "chosen" in row and row["chosen"] == row.get("rejected"),
    "shorter-wins": lambda row: "chosen" in row and _length(row["chosen"]) < _length(row["rejected"]),
    "longer-wins": lambda row: "chosen" in row and _length(row["chosen"]) > _length(row["rejected"]),
    "label-true": lambda row: row.get("label") is True,
    "label-false": lambda row: row.get("label") is False,
}
"""What rows can be filtered by."""


def check_may_import(actor: Actor, project_id: int) -> None:
    """Raise unless the actor may import into the project: asked before a file is taken in."""
    actor.require(Permission.ENGINEER, project_id)
