"""Labeling: sessions, items with their slots, assignments, and the append-only record of judgments."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"

APPEND_ONLY = """
create function refuse_to_change_history() returns trigger language plpgsql as $$
begin
    raise exception 'judgments are append-only: an undo is another record' using errcode = 'restrict_violation';
end $$;
create trigger append_only before update or delete or truncate on judgment
    for each statement execute function refuse_to_change_history();
"""


def upgrade() -> None:
    op.create_table(
        "labeling_session",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("overlap", sa.SmallInteger(), nullable=False),
        sa.Column("form", JSONB(), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("guideline_number", sa.Integer(), server_default="1", nullable=False),
        sa.Column("conversational", sa.Boolean(), nullable=True),
        sa.Column("item_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("origin", JSONB(), nullable=False),
        sa.Column("created_by_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("state in ('open','paused','closed')", name=op.f("ck_labeling_session_state")),
        sa.CheckConstraint("overlap between 1 and 20", name=op.f("ck_labeling_session_overlap")),
        sa.ForeignKeyConstraint(["created_by_id"], ["person.id"], name=op.f("fk_labeling_session_created_by_id")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_labeling_session_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labeling_session")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_labeling_session_project_id_name")),
    )
    op.create_table(
        "labeling_annotator",
        sa.Column("labeling_session_id", sa.BigInteger(), nullable=False),
        sa.Column("person_id", sa.BigInteger(), nullable=False),
        sa.Column("guideline_number", sa.Integer(), server_default="0", nullable=False),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["labeling_session_id"], ["labeling_session.id"], name=op.f("fk_labeling_annotator_labeling_session_id")
        ),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_labeling_annotator_person_id")),
        sa.PrimaryKeyConstraint("labeling_session_id", "person_id", name=op.f("pk_labeling_annotator")),
    )
    op.create_table(
        "labeling_freeze",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("labeling_session_id", sa.BigInteger(), nullable=False),
        sa.Column("dataset_version_id", sa.BigInteger(), nullable=False),
        sa.Column("policy", JSONB(), nullable=False),
        sa.Column("counts", JSONB(), nullable=False),
        sa.Column("last_judgment_id", sa.BigInteger(), nullable=False),
        sa.Column("created_by_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["created_by_id"], ["person.id"], name=op.f("fk_labeling_freeze_created_by_id")),
        sa.ForeignKeyConstraint(
            ["dataset_version_id"], ["dataset_version.id"], name=op.f("fk_labeling_freeze_dataset_version_id")
        ),
        sa.ForeignKeyConstraint(
            ["labeling_session_id"], ["labeling_session.id"], name=op.f("fk_labeling_freeze_labeling_session_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labeling_freeze")),
    )
    op.create_index(
        op.f("ix_labeling_freeze_dataset_version_id"), "labeling_freeze", ["dataset_version_id"], unique=False
    )
    op.create_index(
        op.f("ix_labeling_freeze_labeling_session_id"), "labeling_freeze", ["labeling_session_id"], unique=False
    )
    op.create_table(
        "labeling_guidelines",
        sa.Column("labeling_session_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_by_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["created_by_id"], ["person.id"], name=op.f("fk_labeling_guidelines_created_by_id")),
        sa.ForeignKeyConstraint(
            ["labeling_session_id"], ["labeling_session.id"], name=op.f("fk_labeling_guidelines_labeling_session_id")
        ),
        sa.PrimaryKeyConstraint("labeling_session_id", "number", name=op.f("pk_labeling_guidelines")),
    )
    op.create_table(
        "labeling_item",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("uuid", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("labeling_session_id", sa.BigInteger(), nullable=False),
        sa.Column("prompt", JSONB(), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["labeling_session_id"], ["labeling_session.id"], name=op.f("fk_labeling_item_labeling_session_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labeling_item")),
        sa.UniqueConstraint("uuid", name=op.f("uq_labeling_item_uuid")),
    )
    op.create_index(
        op.f("ix_labeling_item_labeling_session_id"), "labeling_item", ["labeling_session_id"], unique=False
    )
    op.create_table(
        "labeling_completion",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("uuid", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("item_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("content", JSONB(), nullable=False),
        sa.Column("characters", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["item_id"], ["labeling_item.id"], name=op.f("fk_labeling_completion_item_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labeling_completion")),
        sa.UniqueConstraint("item_id", "position", name=op.f("uq_labeling_completion_item_id_position")),
        sa.UniqueConstraint("uuid", name=op.f("uq_labeling_completion_uuid")),
    )
    op.create_table(
        "labeling_slot",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("item_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=False),
        sa.Column("labeling_session_id", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("state", sa.Text(), server_default="free", nullable=False),
        sa.Column("annotator_id", sa.BigInteger(), nullable=True),
        sa.Column("assignment_id", sa.BigInteger(), nullable=True),
        sa.Column("reserved_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("judgment_id", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(state = 'free') = (annotator_id is null)", name=op.f("ck_labeling_slot_held_by_somebody")),
        sa.CheckConstraint(
            "(state = 'free') = (assignment_id is null)", name=op.f("ck_labeling_slot_held_by_assignment")
        ),
        sa.CheckConstraint("(state = 'judged') = (judgment_id is not null)", name=op.f("ck_labeling_slot_judged")),
        sa.CheckConstraint(
            "(state = 'reserved') = (reserved_until is not null)", name=op.f("ck_labeling_slot_reserved_until")
        ),
        sa.CheckConstraint("state in ('free','reserved','judged')", name=op.f("ck_labeling_slot_state")),
        sa.ForeignKeyConstraint(["annotator_id"], ["person.id"], name=op.f("fk_labeling_slot_annotator_id")),
        sa.ForeignKeyConstraint(["item_id"], ["labeling_item.id"], name=op.f("fk_labeling_slot_item_id")),
        sa.ForeignKeyConstraint(
            ["labeling_session_id"], ["labeling_session.id"], name=op.f("fk_labeling_slot_labeling_session_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labeling_slot")),
        sa.UniqueConstraint("item_id", "number", name=op.f("uq_labeling_slot_item_id_number")),
    )
    op.create_index(
        "ix_labeling_slot_mine",
        "labeling_slot",
        ["labeling_session_id", "annotator_id"],
        unique=False,
        postgresql_where=sa.text("annotator_id is not null"),
    )
    op.create_index(
        "ix_labeling_slot_queue",
        "labeling_slot",
        ["labeling_session_id", sa.text("priority desc"), "item_id", "number"],
        unique=False,
        postgresql_where=sa.text("state <> 'judged'"),
    )
    op.create_index(
        "uq_labeling_slot_item_id_annotator_id",
        "labeling_slot",
        ["item_id", "annotator_id"],
        unique=True,
        postgresql_where=sa.text("annotator_id is not null"),
    )
    op.create_table(
        "assignment",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("uuid", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("labeling_session_id", sa.BigInteger(), nullable=False),
        sa.Column("item_id", sa.BigInteger(), nullable=False),
        sa.Column("slot_id", sa.BigInteger(), nullable=False),
        sa.Column("annotator_id", sa.BigInteger(), nullable=False),
        sa.Column("shown_order", sa.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("idempotency_key", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column(
            "assigned_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["annotator_id"], ["person.id"], name=op.f("fk_assignment_annotator_id")),
        sa.ForeignKeyConstraint(["item_id"], ["labeling_item.id"], name=op.f("fk_assignment_item_id")),
        sa.ForeignKeyConstraint(
            ["labeling_session_id"], ["labeling_session.id"], name=op.f("fk_assignment_labeling_session_id")
        ),
        sa.ForeignKeyConstraint(["slot_id"], ["labeling_slot.id"], name=op.f("fk_assignment_slot_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignment")),
        sa.UniqueConstraint("uuid", name=op.f("uq_assignment_uuid")),
    )
    op.create_index(op.f("ix_assignment_slot_id"), "assignment", ["slot_id"], unique=False)
    op.create_table(
        "judgment",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("uuid", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("labeling_session_id", sa.BigInteger(), nullable=False),
        sa.Column("item_id", sa.BigInteger(), nullable=False),
        sa.Column("slot_id", sa.BigInteger(), nullable=False),
        sa.Column("assignment_id", sa.BigInteger(), nullable=False),
        sa.Column("annotator_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", JSONB(), nullable=False),
        sa.Column("strength", sa.SmallInteger(), nullable=True),
        sa.Column("point", sa.SmallInteger(), nullable=True),
        sa.Column("tie_kind", sa.Text(), nullable=True),
        sa.Column("skip_reason", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("flags", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("shown_order", sa.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("guideline_number", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("first_input_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "submitted_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("active_ms", sa.Integer(), nullable=True),
        sa.Column("source", sa.Text(), server_default="human", nullable=False),
        sa.Column("idempotency_key", sa.UUID(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("supersedes_id", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(kind = 'comparison') = (strength is not null)", name=op.f("ck_judgment_strength_of_comparison")
        ),
        sa.CheckConstraint("(kind = 'skip') = (skip_reason is not null)", name=op.f("ck_judgment_skip_reason")),
        sa.CheckConstraint("(kind = 'undo') = (supersedes_id is not null)", name=op.f("ck_judgment_undo_of")),
        sa.CheckConstraint("kind in ('comparison','skip','undo')", name=op.f("ck_judgment_kind")),
        sa.CheckConstraint(
            "coalesce(strength = 0, false) = (tie_kind is not null)", name=op.f("ck_judgment_tie_is_explained")
        ),
        sa.CheckConstraint("strength between -3 and 3 and point between 1 and 7", name=op.f("ck_judgment_scale")),
        sa.CheckConstraint(
            "strength is null or strength = (point - 4) * (case when shown_order[1] = 0 then 1 else -1 end)",
            name=op.f("ck_judgment_sides"),
        ),
        sa.ForeignKeyConstraint(["annotator_id"], ["person.id"], name=op.f("fk_judgment_annotator_id")),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignment.id"], name=op.f("fk_judgment_assignment_id")),
        sa.ForeignKeyConstraint(["item_id"], ["labeling_item.id"], name=op.f("fk_judgment_item_id")),
        sa.ForeignKeyConstraint(
            ["labeling_session_id"], ["labeling_session.id"], name=op.f("fk_judgment_labeling_session_id")
        ),
        sa.ForeignKeyConstraint(["slot_id"], ["labeling_slot.id"], name=op.f("fk_judgment_slot_id")),
        sa.ForeignKeyConstraint(["supersedes_id"], ["judgment.id"], name=op.f("fk_judgment_supersedes_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judgment")),
        sa.UniqueConstraint("annotator_id", "idempotency_key", name=op.f("uq_judgment_annotator_id_idempotency_key")),
        sa.UniqueConstraint("assignment_id", "kind", name=op.f("uq_judgment_assignment_id_kind")),
        sa.UniqueConstraint("supersedes_id", name=op.f("uq_judgment_supersedes_id")),
        sa.UniqueConstraint("uuid", name=op.f("uq_judgment_uuid")),
    )
    op.create_index("ix_judgment_item_id_annotator_id", "judgment", ["item_id", "annotator_id"], unique=False)
    op.create_index(
        "ix_judgment_labeling_session_id_annotator_id_id",
        "judgment",
        ["labeling_session_id", "annotator_id", "id"],
        unique=False,
    )
    # slot and assignment, slot and judgment point at each other
    op.create_foreign_key(
        "fk_labeling_slot_assignment_id_assignment", "labeling_slot", "assignment", ["assignment_id"], ["id"]
    )
    op.create_foreign_key("fk_labeling_slot_judgment_id_judgment", "labeling_slot", "judgment", ["judgment_id"], ["id"])
    op.execute(APPEND_ONLY)
    op.create_table(
        "late_judgment",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("assignment_id", sa.BigInteger(), nullable=False),
        sa.Column("submission", JSONB(), nullable=False),
        sa.Column(
            "received_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignment.id"], name=op.f("fk_late_judgment_assignment_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_late_judgment")),
        sa.UniqueConstraint("assignment_id", name=op.f("uq_late_judgment_assignment_id")),
    )


def downgrade() -> None:
    op.drop_table("late_judgment")
    op.drop_constraint("fk_labeling_slot_judgment_id_judgment", "labeling_slot", type_="foreignkey")
    op.drop_constraint("fk_labeling_slot_assignment_id_assignment", "labeling_slot", type_="foreignkey")
    op.drop_table("judgment")
    op.execute("drop function refuse_to_change_history()")
    for table in ("assignment", "labeling_slot", "labeling_completion", "labeling_item"):
        op.drop_table(table)
    for table in ("labeling_annotator", "labeling_guidelines", "labeling_freeze", "labeling_session"):
        op.drop_table(table)
