"""Datasets, their immutable versions, and the judgments behind a row."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

MOMENT = postgresql.TIMESTAMP(timezone=True)
ROW_TYPES = "'language_modeling', 'prompt_completion', 'preference', 'unpaired', 'prompt_only'"

IMMUTABLE = """
create function refuse_to_change_version() returns trigger language plpgsql as $$
begin
  raise exception '% is immutable: make a new version instead', tg_table_name using errcode = 'restrict_violation';
end $$;
create trigger immutable before update or delete on dataset_version
  for each row execute function refuse_to_change_version();
create trigger immutable before update or delete on dataset_row_origin
  for each row execute function refuse_to_change_version();
"""


def upgrade() -> None:
    op.create_table(
        "dataset",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("project.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False, server_default=""),
        sa.Column("created_by_id", sa.BigInteger, sa.ForeignKey("person.id", ondelete="SET NULL")),
        sa.Column("created_at", MOMENT, nullable=False, server_default=sa.func.now()),
        sa.UniqueConstraint("project_id", "name"),
    )
    op.create_table(
        "dataset_version",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("dataset_id", sa.BigInteger, sa.ForeignKey("dataset.id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("row_type", sa.Text, nullable=False),
        sa.Column("conversational", sa.Boolean, nullable=False),
        sa.Column("row_count", sa.BigInteger, nullable=False),
        sa.Column("content_sha256", sa.Text, nullable=False),
        sa.Column("rows_sha256", sa.Text, nullable=False),
        sa.Column("rows_bytes", sa.BigInteger, nullable=False),
        sa.Column("columns", postgresql.JSONB, nullable=False),
        sa.Column("statistics", postgresql.JSONB, nullable=False),
        sa.Column("origin", postgresql.JSONB, nullable=False),
        sa.Column("created_by_id", sa.BigInteger, sa.ForeignKey("person.id")),
        sa.Column("created_at", MOMENT, nullable=False, server_default=sa.func.now()),
        sa.UniqueConstraint("dataset_id", "number"),
        sa.UniqueConstraint("dataset_id", "content_sha256"),
        sa.CheckConstraint(f"row_type in ({ROW_TYPES})", name="row_type"),
        sa.CheckConstraint("row_count > 0 and number > 0", name="counts"),
    )
    op.create_table(
        "dataset_row_origin",
        sa.Column("version_id", sa.BigInteger, sa.ForeignKey("dataset_version.id"), primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True),
        sa.Column("judgment_id", sa.BigInteger, primary_key=True),
    )
    op.create_index("ix_dataset_row_origin_judgment_id", "dataset_row_origin", ["judgment_id"])
    op.execute(IMMUTABLE)


def downgrade() -> None:
    op.drop_table("dataset_row_origin")
    op.drop_table("dataset_version")
    op.drop_table("dataset")
    op.execute("drop function refuse_to_change_version()")
