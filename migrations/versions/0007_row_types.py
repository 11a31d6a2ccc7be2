"""Rows with steps and rows with scores: two more types of dataset versions."""

from alembic import op

revision = "0007"
down_revision = "0006"

BEFORE = ("language_modeling", "prompt_completion", "preference", "unpaired", "prompt_only")
NOW = (*BEFORE, "stepwise", "scored")


def _only(kinds: tuple[str, ...]) -> None:
    op.drop_constraint(op.f("ck_dataset_version_row_type"), "dataset_version")
    said = ", ".join(f"'{kind}'" for kind in kinds)
    op.create_check_constraint(op.f("ck_dataset_version_row_type"), "dataset_version", f"row_type in ({said})")


def upgrade() -> None:
    _only(NOW)


def downgrade() -> None:
    _only(BEFORE)
