"""Tables of datasets: a name, its immutable versions, and which judgments stand behind a row."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Integer, Text, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column, relationship

from backend.datasets.rows import RowType
from backend.db import Base

ROW_TYPES = ", ".join(f"'{kind}'" for kind in RowType)


class Dataset(Base):
    """A name under which versions of the same rows follow each other."""

    __tablename__ = "dataset"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text, server_default="")
    created_by_id: Mapped[int | None] = mapped_column(ForeignKey("person.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())


class DatasetVersion(Base):
    """Rows that never change again: a trigger refuses every update and delete."""

    __tablename__ = "dataset_version"
    __table_args__ = (
        UniqueConstraint("dataset_id", "number"),
        UniqueConstraint("dataset_id", "content_sha256"),
        CheckConstraint(f"row_type in ({ROW_TYPES})", name="row_type"),
        CheckConstraint("row_count > 0 and number > 0", name="counts"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("dataset.id"))
    number: Mapped[int] = mapped_column(Integer)
    row_type: Mapped[str] = mapped_column(Text)
    conversational: Mapped[bool]
    """Whether the type's columns hold conversations instead of text."""
    row_count: Mapped[int] = mapped_column(BigInteger)
    content_sha256: Mapped[str] = mapped_column(Text)
    """SHA-256 over the canonical JSON of the rows in order, whatever file they came in."""
    rows_sha256: Mapped[str] = mapped_column(Text)
    """Key of the Parquet file in the artifact store."""
    rows_bytes: Mapped[int] = mapped_column(BigInteger)
    columns: Mapped[dict[str, str]] = mapped_column(JSONB)
    """Column → ``text``, ``conversation``, ``boolean``, ``integer``, ``number`` or ``json``."""
    statistics: Mapped[dict[str, Any]] = mapped_column(JSONB)
    origin: Mapped[dict[str, Any]] = mapped_column(JSONB)
    """Where the rows came from: ``{"kind": "import", …}``, ``{"kind": "labeling", …}``, ``{"kind": "demo", …}``."""
    created_by_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())

    dataset: Mapped[Dataset] = relationship(lazy="joined", innerjoin=True)


class RowOrigin(Base):
    """One judgment that stands behind one row of a version."""

    __tablename__ = "dataset_row_origin"

    version_id: Mapped[int] = mapped_column(ForeignKey("dataset_version.id"), primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """The row, counted from 0."""
    judgment_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, index=True)
