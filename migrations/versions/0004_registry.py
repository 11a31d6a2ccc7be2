"""The registry of models; the key from ``model.run_id`` to ``run`` comes with that table."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "model",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("project.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("adapter_of_id", sa.BigInteger, sa.ForeignKey("model.id")),
        sa.Column("run_id", sa.BigInteger),
        sa.Column("step", sa.BigInteger),
        sa.Column("manifest", postgresql.JSONB, nullable=False),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("dtype", sa.Text, nullable=False),
        sa.Column("architecture", sa.Text, nullable=False, server_default=""),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False, server_default=""),
        sa.Column("created_by_id", sa.BigInteger, sa.ForeignKey("person.id", ondelete="SET NULL")),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("kind in ('language', 'reward')", name="kind"),
    )
    op.create_index("ix_model_project_id_id", "model", ["project_id", "id"])
    op.create_index("ix_model_adapter_of_id", "model", ["adapter_of_id"])
    op.create_index("ix_model_run_id", "model", ["run_id"])


def downgrade() -> None:
    op.drop_table("model")
