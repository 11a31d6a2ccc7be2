"""Tables of labeling. *At most k judgments per item* and *never two by one person* are constraints here, not promises in code."""

import datetime as dt
import uuid as uuids
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import Mapped, mapped_column

from backend.db import Base

# clock_timestamp(), not now(): two records of one transaction keep their order
_NOW = func.clock_timestamp()


class LabelingSession(Base):
    """One campaign of questions to annotators, with guidelines and a queue."""

    __tablename__ = "labeling_session"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        CheckConstraint("overlap between 1 and 20", name="overlap"),
        CheckConstraint("state in ('open','paused','closed')", name="state"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str] = mapped_column(Text)
    overlap: Mapped[int] = mapped_column(SmallInteger)
    form: Mapped[dict[str, Any]] = mapped_column(JSONB)
    state: Mapped[str] = mapped_column(Text, server_default="open")
    guideline_number: Mapped[int] = mapped_column(Integer, server_default="1")
    """The version of the guidelines in force."""
    conversational: Mapped[bool | None] = mapped_column()
    """Whether prompts are conversations; the first item decides, the rest must match. NULL: no item yet."""
    item_count: Mapped[int] = mapped_column(Integer, server_default="0")
    origin: Mapped[dict[str, Any]] = mapped_column(JSONB)
    """Where the items came from: ``{"dataset_version_id": 7}`` or ``{"rows": true}``."""
    created_by_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)


class Guidelines(Base):
    """One version of a session's guidelines; never changed, only followed by the next."""

    __tablename__ = "labeling_guidelines"

    labeling_session_id: Mapped[int] = mapped_column(ForeignKey("labeling_session.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    created_by_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)


class Annotator(Base):
    """A person in a session: what they have read. Its row lock makes one person's tabs take turns."""

    __tablename__ = "labeling_annotator"

    labeling_session_id: Mapped[int] = mapped_column(ForeignKey("labeling_session.id"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    guideline_number: Mapped[int] = mapped_column(Integer, server_default="0")
    """The newest version acknowledged; 0: none."""
    acknowledged_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))


class Item(Base):
    """One question: a prompt whose completions are compared."""

    __tablename__ = "labeling_item"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    uuid: Mapped[uuids.UUID] = mapped_column(UUID, server_default=func.gen_random_uuid(), unique=True)
    labeling_session_id: Mapped[int] = mapped_column(ForeignKey("labeling_session.id"), index=True)
    prompt: Mapped[Any] = mapped_column(JSONB)
    """A JSON string, or a list of ``{"role", "content"}``."""
    priority: Mapped[int] = mapped_column(Integer, server_default="0")


class Completion(Base):
    """One of an item's completions. Its model is for analysis and never leaves towards an annotator."""

    __tablename__ = "labeling_completion"
    __table_args__ = (UniqueConstraint("item_id", "position"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    uuid: Mapped[uuids.UUID] = mapped_column(UUID, server_default=func.gen_random_uuid(), unique=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("labeling_item.id"))
    position: Mapped[int] = mapped_column(SmallInteger)
    """0 … K−1 in the record; what an annotator sees is ``assignment.shown_order``."""
    content: Mapped[Any] = mapped_column(JSONB)
    characters: Mapped[int] = mapped_column(Integer)
    """Length of the words, for the length preference."""
    model: Mapped[str | None] = mapped_column(Text)


class Slot(Base):
    """Room for one judgment of one item. k of them are made with the item, so an item can never hold more."""

    __tablename__ = "labeling_slot"
    __table_args__ = (
        UniqueConstraint("item_id", "number"),
        CheckConstraint("state in ('free','reserved','judged')", name="state"),
        CheckConstraint("(state = 'free') = (annotator_id is null)", name="held_by_somebody"),
        CheckConstraint("(state = 'free') = (assignment_id is null)", name="held_by_assignment"),
        CheckConstraint("(state = 'reserved') = (reserved_until is not null)", name="reserved_until"),
        CheckConstraint("(state = 'judged') = (judgment_id is not null)", name="judged"),
        Index(
            "uq_labeling_slot_item_id_annotator_id",
            "item_id",
            "annotator_id",
            unique=True,
            postgresql_where=text("annotator_id is not null"),
        ),
        # the queue, in the order it is handed out
        Index(
            "ix_labeling_slot_queue",
            "labeling_session_id",
            text("priority desc"),
            "item_id",
            "number",
            postgresql_where=text("state <> 'judged'"),
        ),
        Index(
            "ix_labeling_slot_mine",
            "labeling_session_id",
            "annotator_id",
            postgresql_where=text("annotator_id is not null"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("labeling_item.id"))
    number: Mapped[int] = mapped_column(SmallInteger)
    labeling_session_id: Mapped[int] = mapped_column(ForeignKey("labeling_session.id"))
    """Copied from the item with ``priority``, so that the queue is one index."""
    priority: Mapped[int] = mapped_column(Integer, server_default="0")
    state: Mapped[str] = mapped_column(Text, server_default="free")
    annotator_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))
    assignment_id: Mapped[int | None] = mapped_column(
        ForeignKey("assignment.id", use_alter=True, name="fk_labeling_slot_assignment_id_assignment")
    )
    reserved_until: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))
    judgment_id: Mapped[int | None] = mapped_column(
        ForeignKey("judgment.id", use_alter=True, name="fk_labeling_slot_judgment_id_judgment")
    )


class Assignment(Base):
    """A slot handed to a person, with the sides drawn for them. Kept when the slot moves on: late answers find their way."""

    __tablename__ = "assignment"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    uuid: Mapped[uuids.UUID] = mapped_column(UUID, server_default=func.gen_random_uuid(), unique=True)
    labeling_session_id: Mapped[int] = mapped_column(ForeignKey("labeling_session.id"))
    item_id: Mapped[int] = mapped_column(ForeignKey("labeling_item.id"))
    slot_id: Mapped[int] = mapped_column(ForeignKey("labeling_slot.id"), index=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    shown_order: Mapped[list[int]] = mapped_column(ARRAY(SmallInteger))
    """Completion positions, left to right."""
    idempotency_key: Mapped[uuids.UUID] = mapped_column(UUID, server_default=func.gen_random_uuid())
    assigned_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)


class Judgment(Base):
    """What one annotator said. Append-only by trigger: an undo is another record that supersedes this one."""

    __tablename__ = "judgment"
    __table_args__ = (
        UniqueConstraint("annotator_id", "idempotency_key"),
        UniqueConstraint("assignment_id", "kind"),
        UniqueConstraint("supersedes_id"),
        CheckConstraint("kind in ('comparison','skip','undo')", name="kind"),
        CheckConstraint("(kind = 'comparison') = (strength is not null)", name="strength_of_comparison"),
        CheckConstraint("strength between -3 and 3 and point between 1 and 7", name="scale"),
        CheckConstraint(
            "strength is null or strength = (point - 4) * (case when shown_order[1] = 0 then 1 else -1 end)",
            name="sides",
        ),
        CheckConstraint("coalesce(strength = 0, false) = (tie_kind is not null)", name="tie_is_explained"),
        CheckConstraint("(kind = 'skip') = (skip_reason is not null)", name="skip_reason"),
        CheckConstraint("(kind = 'undo') = (supersedes_id is not null)", name="undo_of"),
        Index("ix_judgment_item_id_annotator_id", "item_id", "annotator_id"),
        Index("ix_judgment_labeling_session_id_annotator_id_id", "labeling_session_id", "annotator_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    uuid: Mapped[uuids.UUID] = mapped_column(UUID, server_default=func.gen_random_uuid(), unique=True)
    labeling_session_id: Mapped[int] = mapped_column(ForeignKey("labeling_session.id"))
    item_id: Mapped[int] = mapped_column(ForeignKey("labeling_item.id"))
    slot_id: Mapped[int] = mapped_column(ForeignKey("labeling_slot.id"))
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    kind: Mapped[str] = mapped_column(Text)
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)
    """The answer by completion uuid, complete by itself: ``{"kind", "first", "second", "strength", "tie_kind"}``."""
    strength: Mapped[int | None] = mapped_column(SmallInteger)
    """−3 … 3, positive toward the completion at position 1; 0 is a tie."""
    point: Mapped[int | None] = mapped_column(SmallInteger)
    """1 … 7 as clicked, left to right."""
    tie_kind: Mapped[str | None] = mapped_column(Text)
    skip_reason: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text, server_default="")
    flags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    shown_order: Mapped[list[int]] = mapped_column(ARRAY(SmallInteger))
    guideline_number: Mapped[int] = mapped_column(Integer)
    opened_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))
    first_input_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))
    submitted_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)
    active_ms: Mapped[int | None] = mapped_column(Integer)
    source: Mapped[str] = mapped_column(Text, server_default="human")
    idempotency_key: Mapped[uuids.UUID] = mapped_column(UUID)
    request_hash: Mapped[bytes] = mapped_column(LargeBinary)
    supersedes_id: Mapped[int | None] = mapped_column(ForeignKey("judgment.id"))


class LateJudgment(Base):
    """An answer that came after somebody else had taken the slot: not counted, but not thrown away."""

    __tablename__ = "late_judgment"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"), unique=True)
    submission: Mapped[dict[str, Any]] = mapped_column(JSONB)
    received_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)


class Freeze(Base):
    """A dataset version made from a session's judgments; judgments up to ``last_judgment_id`` can no longer be undone."""

    __tablename__ = "labeling_freeze"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    labeling_session_id: Mapped[int] = mapped_column(ForeignKey("labeling_session.id"), index=True)
    dataset_version_id: Mapped[int] = mapped_column(ForeignKey("dataset_version.id"), index=True)
    policy: Mapped[dict[str, Any]] = mapped_column(JSONB)
    counts: Mapped[dict[str, Any]] = mapped_column(JSONB)
    last_judgment_id: Mapped[int] = mapped_column(BigInteger)
    created_by_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)
