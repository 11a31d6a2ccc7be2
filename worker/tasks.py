"""The Celery tasks. Each is a reason to look at Postgres, never a fact: lost, doubled or late, it does no harm."""

from backend.datasets import service as datasets
from backend.db import unit_of_work
from backend.jobs import EXECUTE_RUN, REAP_RUNS, SWEEP_ARTIFACTS
from backend.registry import service as registry
from backend.runs import attempts, leases
from worker.app import app, sessions, settings, supervision, worker_name
from worker.process import execute_next


@app.task(name=EXECUTE_RUN)
def execute_run(run_id: int) -> None:
    """Carry out the run that is due next; *run_id* only says that there was one."""
    execute_next(sessions(), worker_name(), supervision())


@app.task(name=REAP_RUNS)
def reap_runs() -> None:
    """Give back the runs of workers that fell silent, and send forgotten ones again."""
    with unit_of_work(sessions()) as session:
        leases.reap(session, lease_seconds=settings.lease_seconds, pause_seconds=settings.reap_seconds)


@app.task(name=SWEEP_ARTIFACTS)
def sweep_artifacts() -> None:
    """Remove files that no version, model or checkpoint names any more."""
    with unit_of_work(sessions()) as session:
        parts = (datasets, registry, attempts)
        needed = {sha256 for part in parts for sha256 in part.artifacts_needed(session)}
        artifacts = datasets.artifacts_of(session)
    artifacts.sweep(needed, older_than_seconds=3600 * settings.sweep_after_hours)
