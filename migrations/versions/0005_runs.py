"""Runs, what they say, and the trigger that lets their states move only as they may."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0005"
down_revision = "0004"

MOMENT = TIMESTAMP(timezone=True)
NOW = sa.func.clock_timestamp()

MOVES = (
    "queued>starting", "queued>cancelled",
    "starting>running", "starting>queued", "starting>cancelling", "starting>failed", "starting>cancelled",
    "running>queued", "running>cancelling", "running>succeeded", "running>failed", "running>cancelled",
    "cancelling>cancelled", "cancelling>succeeded", "cancelling>failed",
)  # fmt: skip

GUARD = f"""
create function run_guard() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    if new.state <> 'queued' then raise exception 'a run begins queued, not %', new.state using errcode = 'check_violation'; end if;
    return new;
  end if;
  if new.fence < old.fence then raise exception 'the fence of run % fell', old.id using errcode = 'check_violation'; end if;
  if new.attempt < old.attempt then raise exception 'the attempt of run % fell', old.id using errcode = 'check_violation'; end if;
  if new.seq < old.seq then raise exception 'the events of run % went back', old.id using errcode = 'check_violation'; end if;
  if new.spec is distinct from old.spec then raise exception 'the spec of run % is frozen', old.id using errcode = 'check_violation'; end if;
  if new.state <> old.state and not (old.state || '>' || new.state = any (array[{", ".join(f"'{move}'" for move in MOVES)}])) then
    raise exception 'run % cannot go from % to %', old.id, old.state, new.state using errcode = 'check_violation';
  end if;
  return new;
end $$;
create trigger run_guard before insert or update on run for each row execute function run_guard();

create function run_event_is_append_only() returns trigger language plpgsql as $$
begin
  raise exception 'the events of a run are append-only' using errcode = 'check_violation';
end $$;
create trigger run_event_is_append_only before update or delete on run_event for each row execute function run_event_is_append_only();
"""


def upgrade() -> None:
    op.create_table(
        "run",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.BigInteger, sa.ForeignKey("project.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("base_model_id", sa.BigInteger, sa.ForeignKey("model.id"), nullable=False),
        sa.Column("dataset_version_id", sa.BigInteger, sa.ForeignKey("dataset_version.id"), nullable=False),
        sa.Column("parent_id", sa.BigInteger, sa.ForeignKey("run.id")),
        sa.Column("submitted_by_id", sa.BigInteger, sa.ForeignKey("person.id", ondelete="SET NULL")),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("request_sha256", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="queued"),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("fruitless_attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("lease_owner", sa.Text),
        sa.Column("lease_until", MOMENT),
        sa.Column("lease_place", sa.Text),
        sa.Column("lease_slot", sa.SmallInteger),
        sa.Column("heard_at", MOMENT),
        sa.Column("not_before", MOMENT, nullable=False, server_default=NOW),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("sent_at", MOMENT, nullable=False, server_default=NOW),
        sa.Column("progress_step", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("progress_at", MOMENT),
        sa.Column("total_steps", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("cancel_requested_at", MOMENT),
        sa.Column("exit_reason", sa.Text),
        sa.Column("remedy", sa.Text),
        sa.Column("queued_at", MOMENT, nullable=False, server_default=NOW),
        sa.Column("started_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        sa.UniqueConstraint("project_id", "idempotency_key"),
        sa.CheckConstraint(
            "state in ('queued','starting','running','cancelling','succeeded','failed','cancelled')", name="state"
        ),
        sa.CheckConstraint(
            "(state in ('starting','running','cancelling')) = (lease_owner is not null)", name="leased_or_not"
        ),
        sa.CheckConstraint("(lease_owner is null) = (lease_until is null)", name="lease_is_whole"),
        sa.CheckConstraint(
            "(state in ('succeeded','failed','cancelled')) = (finished_at is not null)", name="finished_or_not"
        ),
    )
    op.create_index("ix_run_project_id_id", "run", ["project_id", "id"])
    op.create_index(
        "ix_run_queue", "run", [sa.text("priority desc"), "id"], postgresql_where=sa.text("state = 'queued'")
    )
    op.create_index("ix_run_leases", "run", ["lease_until"], postgresql_where=sa.text("lease_owner is not null"))
    op.create_index("ix_run_dataset_version_id", "run", ["dataset_version_id"])
    op.create_index("ix_run_base_model_id", "run", ["base_model_id"])
    op.create_table(
        "run_event",
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("run.id"), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", MOMENT, nullable=False, server_default=NOW),
        sa.Column("data", JSONB, nullable=False),
        sa.CheckConstraint("kind in ('state','started','metrics','completions','checkpoint','log')", name="kind"),
    )
    op.create_index("ix_run_event_words", "run_event", ["run_id", "seq"], postgresql_where=sa.text("kind <> 'metrics'"))
    op.create_table(
        "run_attempt",
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("run.id"), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("resume_step", sa.BigInteger, nullable=False),
        sa.Column("lines_read", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("output_read", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("working_at", MOMENT),
        sa.Column("started_at", MOMENT, nullable=False, server_default=NOW),
        sa.Column("ended_at", MOMENT),
        sa.Column("ending", sa.Text),
    )
    op.create_table(
        "checkpoint",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("run.id"), nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("manifest", JSONB, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("damaged_at", MOMENT),
        sa.Column("created_at", MOMENT, nullable=False, server_default=NOW),
        sa.UniqueConstraint("run_id", "step", "attempt"),
    )
    op.create_table(
        "metric_key",
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
    )
    op.create_table(
        "metric_point",
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("run.id"), primary_key=True),
        sa.Column("key_id", sa.Integer, sa.ForeignKey("metric_key.id"), primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("flag", sa.SmallInteger),
        sa.CheckConstraint("(value is null) = (flag is not null)", name="value_or_flag"),
    )
    op.create_table(
        "metric_rollup",
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("run.id"), primary_key=True),
        sa.Column("key_id", sa.Integer, sa.ForeignKey("metric_key.id"), primary_key=True),
        sa.Column("width", sa.Integer, primary_key=True),
        sa.Column("bucket", sa.BigInteger, primary_key=True),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("finite", sa.Integer, nullable=False),
        sa.Column("low", sa.Double),
        sa.Column("high", sa.Double),
        sa.Column("total", sa.Double),
        sa.Column("last_step", sa.BigInteger, nullable=False),
        sa.Column("last_at", MOMENT, nullable=False),
        sa.Column("last", sa.Double),
        sa.Column("flag", sa.SmallInteger),
        sa.CheckConstraint("width in (64, 4096)", name="width"),
    )
    op.create_table(
        "run_completion",
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("run.id"), primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("index", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("completion", sa.Text, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
        sa.Column("rewards", JSONB, nullable=False),
    )
    op.create_table(
        "worker",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("devices", JSONB, nullable=False),
        sa.Column("cores", sa.Integer, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("memory_used_bytes", sa.BigInteger, nullable=False),
        sa.Column("disk_free_bytes", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("started_at", MOMENT, nullable=False, server_default=NOW),
        sa.Column("heard_at", MOMENT, nullable=False, server_default=NOW),
    )
    op.create_foreign_key("fk_model_run_id", "model", "run", ["run_id"], ["id"])
    op.execute(GUARD)


def downgrade() -> None:
    op.drop_constraint("fk_model_run_id", "model", type_="foreignkey")
    for table in (
        "worker", "run_completion", "metric_rollup", "metric_point", "metric_key", "checkpoint", "run_attempt", "run_event", "run",
    ):  # fmt: skip
        op.drop_table(table)
    op.execute("drop function run_guard; drop function run_event_is_append_only")
