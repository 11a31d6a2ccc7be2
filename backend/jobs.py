"""Names of the Celery tasks, the shared Celery settings, and ``enqueue``, the only way to send one.

A message carries one id and may be lost, doubled or late without harm: the row it names is the truth, and beat sends
forgotten ones again. So a broker that does not answer is logged, never raised.
"""

import logging
from typing import Any

from celery import Celery
from sqlalchemy.orm import Session

from backend.db import after_commit

log = logging.getLogger(__name__)

EXECUTE_RUN = "run.execute"
REAP_RUNS = "run.reap"
SWEEP_ARTIFACTS = "artifact.sweep"

RUNS_QUEUE = "runs"
HOUSEKEEPING_QUEUE = "housekeeping"


def make_celery(redis_url: str) -> Celery:
    """The Celery application that web and workers share (`notes` on each setting are in the README's decisions).

    ``acks_late`` stays off: with Redis an unacknowledged message is delivered again after the visibility timeout, and a
    long run would start twice. Lost workers are found by their lease in Postgres.
    """
    app = Celery("studio", broker=redis_url)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": 7 * 24 * 3600,
            "health_check_interval": 5,
            "socket_keepalive": True,
            "socket_connect_timeout": 3,
            "socket_timeout": 10,
        },
        task_routes={EXECUTE_RUN: {"queue": RUNS_QUEUE}, REAP_RUNS: {"queue": HOUSEKEEPING_QUEUE}},
        task_default_queue=HOUSEKEEPING_QUEUE,
        worker_hijack_root_logger=False,
        timezone="UTC",
    )
    return app


def enqueue(session: Session, task: str, *args: Any) -> None:
    """Send *task* with *args* (ids) once *session* has committed."""
    producer: Celery | None = session.info.get("producer")
    if producer is None:
        return

    def send() -> None:
        try:
            producer.send_task(task, args=args, retry=False, ignore_result=True)
        except Exception:  # any transport error: the row is the outbox, the reaper will send it again
            log.warning("broker does not answer; %s%r will be sent by the reaper", task, args)

    after_commit(session, send)
