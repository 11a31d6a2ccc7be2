"""Tables of accounts: people, browser sessions, API tokens, one-time links."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def _moment(name: str, *, nullable: bool = False, now: bool = False) -> sa.Column[object]:
    default = sa.func.now() if now else None
    return sa.Column(name, postgresql.TIMESTAMP(timezone=True), nullable=nullable, server_default=default)


def _person(*, nullable: bool = False) -> sa.Column[int]:
    return sa.Column("person_id", sa.BigInteger, sa.ForeignKey("person.id", ondelete="CASCADE"), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "person",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("password_hash", sa.Text),
        sa.Column("is_admin", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
        _moment("created_at", now=True),
        _moment("seen_at", nullable=True),
    )
    op.create_index("uq_person_email_lower", "person", [sa.text("lower(email)")], unique=True)
    op.create_table(
        "browser_session",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("key_sha256", sa.Text, nullable=False, unique=True),
        _person(),
        sa.Column("csrf", sa.Text, nullable=False),
        sa.Column("browser", sa.Text, nullable=False, server_default=""),
        _moment("created_at", now=True),
        _moment("seen_at", now=True),
        _moment("expires_at"),
    )
    op.create_index("ix_browser_session_person_id", "browser_session", ["person_id"])
    op.create_table(
        "api_token",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        _person(),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("token_sha256", sa.Text, nullable=False, unique=True),
        sa.Column("scopes", postgresql.ARRAY(sa.Text), nullable=False),
        _moment("created_at", now=True),
        _moment("expires_at"),
        _moment("used_at", nullable=True),
    )
    op.create_index("ix_api_token_person_id", "api_token", ["person_id"])
    op.create_table(
        "one_time_link",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("token_sha256", sa.Text, nullable=False, unique=True),
        _person(nullable=True),
        _moment("created_at", now=True),
        _moment("expires_at"),
        _moment("used_at", nullable=True),
    )


def downgrade() -> None:
    for table in ("one_time_link", "api_token", "browser_session", "person"):
        op.drop_table(table)
