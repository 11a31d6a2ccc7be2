"""Tables of runs. Ownership and state cannot disagree, states move only along ``lifecycle.MOVES``: constraints and a trigger say so.

Every moment that anything is decided by comes from the database clock.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

from backend.db import Base
from backend.registry.tables import Model

MOMENT = TIMESTAMP(timezone=True)
NOW = func.clock_timestamp()

# The registry comes before the runs, so the key from a model to the run that made it is added here, with its target.
Model.__table__.append_constraint(  # type: ignore[attr-defined]
    ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_model_run_id", use_alter=True)
)


class Run(Base):
    """One execution of a spec. The row is the truth and the outbox: a Celery message only names it."""

    __tablename__ = "run"
    __table_args__ = (
        UniqueConstraint("project_id", "idempotency_key"),
        CheckConstraint(
            "state in ('queued','starting','running','cancelling','succeeded','failed','cancelled')", name="state"
        ),
        CheckConstraint(
            "(state in ('starting','running','cancelling')) = (lease_owner is not null)", name="leased_or_not"
        ),
        CheckConstraint("(lease_owner is null) = (lease_until is null)", name="lease_is_whole"),
        CheckConstraint(
            "(state in ('succeeded','failed','cancelled')) = (finished_at is not null)", name="finished_or_not"
        ),
        Index("ix_run_project_id_id", "project_id", "id"),
        Index("ix_run_queue", text("priority desc"), "id", postgresql_where=text("state = 'queued'")),
        Index("ix_run_leases", "lease_until", postgresql_where=text("lease_owner is not null")),
        Index("ix_run_dataset_version_id", "dataset_version_id"),
        Index("ix_run_base_model_id", "base_model_id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str] = mapped_column(Text)
    method: Mapped[str] = mapped_column(Text)
    spec: Mapped[dict[str, Any]] = mapped_column(JSONB)
    base_model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    dataset_version_id: Mapped[int] = mapped_column(ForeignKey("dataset_version.id"))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    """The run that this one was cloned from."""
    submitted_by_id: Mapped[int | None] = mapped_column(ForeignKey("person.id", ondelete="SET NULL"))
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    request_sha256: Mapped[str] = mapped_column(Text)
    """Of what was asked; the same key with another request is refused."""

    state: Mapped[str] = mapped_column(Text, server_default="queued")
    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    fruitless_attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    """Attempts in a row that ended without a new checkpoint."""
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Grows at every claim and at every loss; a write that carries an older one is refused."""
    lease_owner: Mapped[str | None] = mapped_column(Text)
    """Name of the worker that holds the run."""
    lease_until: Mapped[datetime | None] = mapped_column(MOMENT)
    lease_place: Mapped[str | None] = mapped_column(Text)
    """Boot, process id and start of the supervising process, so that its own machine can see that it is dead."""
    lease_slot: Mapped[int | None] = mapped_column(SmallInteger)
    heard_at: Mapped[datetime | None] = mapped_column(MOMENT)
    not_before: Mapped[datetime] = mapped_column(MOMENT, server_default=NOW)
    priority: Mapped[int] = mapped_column(Integer, server_default="0")
    sent_at: Mapped[datetime] = mapped_column(MOMENT, server_default=NOW)
    """When a message last named the queued run; the reaper sends forgotten ones again."""

    progress_step: Mapped[int] = mapped_column(BigInteger, server_default="0")
    progress_at: Mapped[datetime | None] = mapped_column(MOMENT)
    total_steps: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Number of the run's last event."""

    cancel_requested_at: Mapped[datetime | None] = mapped_column(MOMENT)
    exit_reason: Mapped[str | None] = mapped_column(Text)
    """Why it failed, was cancelled or goes round again, in one sentence."""
    remedy: Mapped[str | None] = mapped_column(Text)
    queued_at: Mapped[datetime] = mapped_column(MOMENT, server_default=NOW)
    started_at: Mapped[datetime | None] = mapped_column(MOMENT)
    """When it was first claimed."""
    finished_at: Mapped[datetime | None] = mapped_column(MOMENT)


class RunEvent(Base):
    """What happened, in order; append-only by trigger. One writer at a time per run, so commit order is ``seq`` order."""

    __tablename__ = "run_event"
    __table_args__ = (
        CheckConstraint("kind in ('state','started','metrics','completions','checkpoint','log')", name="kind"),
        Index("ix_run_event_words", "run_id", "seq", postgresql_where=text("kind <> 'metrics'")),
    )

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    attempt: Mapped[int] = mapped_column(Integer)
    at: Mapped[datetime] = mapped_column(MOMENT, server_default=NOW)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)


class RunAttempt(Base):
    """One claim of a run: where it went on from, and how far its event file and its output were read."""

    __tablename__ = "run_attempt"

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger)
    worker: Mapped[str] = mapped_column(Text)
    folder: Mapped[str] = mapped_column(Text)
    resume_step: Mapped[int] = mapped_column(BigInteger)
    lines_read: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Lines of ``events.jsonl`` recorded; moves in the same transaction as what they say."""
    output_read: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Bytes of ``output.log`` recorded."""
    working_at: Mapped[datetime | None] = mapped_column(MOMENT)
    """When the first step was about to be taken."""
    started_at: Mapped[datetime] = mapped_column(MOMENT, server_default=NOW)
    ended_at: Mapped[datetime | None] = mapped_column(MOMENT)
    ending: Mapped[str | None] = mapped_column(Text)


class RunCheckpoint(Base):
    """A saved state in the artifact store, written only by the holder of the run."""

    __tablename__ = "checkpoint"
    __table_args__ = (UniqueConstraint("run_id", "step", "attempt"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    step: Mapped[int] = mapped_column(BigInteger)
    attempt: Mapped[int] = mapped_column(Integer)
    fence: Mapped[int] = mapped_column(BigInteger)
    manifest: Mapped[list[Any]] = mapped_column(JSONB)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    damaged_at: Mapped[datetime | None] = mapped_column(MOMENT)
    """When its files were found not to be what the manifest says."""
    created_at: Mapped[datetime] = mapped_column(MOMENT, server_default=NOW)


class MetricKey(Base):
    """A metric's name, once: a point carries only its number."""

    __tablename__ = "metric_key"

    id: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)


class MetricPoint(Base):
    """One value at one step. What is not finite has no value and a flag: 1 nan, 2 inf, 3 −inf."""

    __tablename__ = "metric_point"
    __table_args__ = (CheckConstraint("(value is null) = (flag is not null)", name="value_or_flag"),)

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    key_id: Mapped[int] = mapped_column(ForeignKey("metric_key.id"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer)
    at: Mapped[datetime] = mapped_column(MOMENT)
    value: Mapped[float | None] = mapped_column(Double)
    flag: Mapped[int | None] = mapped_column(SmallInteger)


class MetricRollup(Base):
    """Points of ``width`` steps in one row; recomputed from the points whenever one of its bucket is written."""

    __tablename__ = "metric_rollup"
    __table_args__ = (CheckConstraint("width in (64, 4096)", name="width"),)

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    key_id: Mapped[int] = mapped_column(ForeignKey("metric_key.id"), primary_key=True)
    width: Mapped[int] = mapped_column(Integer, primary_key=True)
    bucket: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    n: Mapped[int] = mapped_column(Integer)
    """Points, those without a finite value included."""
    finite: Mapped[int] = mapped_column(Integer)
    low: Mapped[float | None] = mapped_column(Double)
    high: Mapped[float | None] = mapped_column(Double)
    total: Mapped[float | None] = mapped_column(Double)
    """Sum of the finite values."""
    last_step: Mapped[int] = mapped_column(BigInteger)
    last_at: Mapped[datetime] = mapped_column(MOMENT)
    last: Mapped[float | None] = mapped_column(Double)
    flag: Mapped[int | None] = mapped_column(SmallInteger)
    """The greatest flag inside."""


class RunCompletion(Base):
    """One held-out prompt completed at one step."""

    __tablename__ = "run_completion"

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    index: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer)
    prompt: Mapped[str] = mapped_column(Text)
    completion: Mapped[str] = mapped_column(Text)
    tokens: Mapped[int] = mapped_column(Integer)
    ended: Mapped[bool]
    rewards: Mapped[dict[str, float | None]] = mapped_column(JSONB)


class Worker(Base):
    """A machine's worker, as it last spoke."""

    __tablename__ = "worker"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    host: Mapped[str] = mapped_column(Text)
    slots: Mapped[int] = mapped_column(Integer)
    devices: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    """``{"name", "memory_bytes", "used_bytes"}`` of each accelerator; empty: CPU only."""
    cores: Mapped[int] = mapped_column(Integer)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_used_bytes: Mapped[int] = mapped_column(BigInteger)
    disk_free_bytes: Mapped[int] = mapped_column(BigInteger)
    sandbox: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """What its last self-test said: ``tier`` and how it was tried, or no tier with ``reason`` and ``remedy``; null: not yet tried."""
    version: Mapped[str] = mapped_column(Text)
    draining: Mapped[bool] = mapped_column(server_default=text("false"))
    started_at: Mapped[datetime] = mapped_column(MOMENT, server_default=NOW)
    heard_at: Mapped[datetime] = mapped_column(MOMENT, server_default=NOW)
