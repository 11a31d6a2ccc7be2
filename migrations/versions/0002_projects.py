"""Projects and who works in them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "project",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("goal", sa.Text, nullable=False, server_default=""),
        sa.Column("created_by_id", sa.BigInteger, sa.ForeignKey("person.id", ondelete="SET NULL")),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_table(
        "membership",
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("project.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("person_id", sa.BigInteger, sa.ForeignKey("person.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("role in ('engineer', 'annotator', 'viewer')", name="role"),
    )
    op.create_index("ix_membership_person_id", "membership", ["person_id"])
    op.add_column("browser_session", sa.Column("project_id", sa.BigInteger))
    op.create_foreign_key(None, "browser_session", "project", ["project_id"], ["id"], ondelete="SET NULL")


def downgrade() -> None:
    op.drop_column("browser_session", "project_id")
    op.drop_table("membership")
    op.drop_table("project")
