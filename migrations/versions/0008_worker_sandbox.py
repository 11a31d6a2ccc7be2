"""What a worker's sandbox said of itself when it was last tried."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("worker", sa.Column("sandbox", postgresql.JSONB(astext_type=sa.Text(), none_as_null=True)))


def downgrade() -> None:
    op.drop_column("worker", "sandbox")
