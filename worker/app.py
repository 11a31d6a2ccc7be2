"""The Celery application of the workers, and what each of their processes needs: settings, sessions, rules of supervision.

Two kinds of worker run from here:

``celery -A worker.app worker -Q runs -c <slots>`` executes runs, one per slot; the pool's child is busy as long as its run.
It starts a *keeper* (``worker/keeper.py``), one more process, which says that the worker lives, reaps, and starts runs
whose message was lost. So the reaper works with every slot busy and with Redis gone; an advisory lock lets one reap at a time.

``celery -A worker.app worker -B -Q housekeeping -c 1`` runs beat, which sends the same reaper off every
``settings.reap_seconds``, and carries it out. Exactly one per studio is enough, and the studio survives without.

SIGTERM to the main process *drains*: it leaves a file that the pool's children watch for (they are other processes, and
Celery would wait for them for ever); they bring their runs to a checkpoint, give them back and end, within 40 s.
Kill -9 of the main process kills keeper, children and recipes (parent-death signals); the worker that starts next on this
machine sees that their processes are gone and gives the runs back at once, other machines wait for the lease to end.

No process here imports torch: recipes are executed, never forked.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from celery.signals import (
    celeryd_after_setup,
    worker_process_init,
    worker_shutdown,
    worker_shutting_down,
)

from backend.artifacts import Artifacts
from backend.db import Sessions, connect, make_sessions
from backend.embedded import dies_with_parent
from backend.jobs import REAP_RUNS, RUNS_QUEUE, SWEEP_ARTIFACTS, make_celery
from backend.live import Bell
from backend.settings import Settings
from worker.supervision import RECIPES, Supervision

DRAIN_SECONDS = 40.0
"""A draining worker has ended after this long."""

settings = Settings()
app = make_celery(settings.redis_url)
app.conf.update(
    include=["worker.tasks"],
    beat_schedule={
        "reap": {
            "task": REAP_RUNS,
            "schedule": settings.reap_seconds,
            "options": {"expires": 3 * settings.reap_seconds},
        },
        "sweep": {"task": SWEEP_ARTIFACTS, "schedule": 3600.0, "options": {"expires": 3600.0}},
    },
    worker_cancel_long_running_tasks_on_connection_loss=False,
)

_name = os.environ.get("WORKER_NAME") or socket.gethostname()
_drain: Path | None = None
_keeper: "subprocess.Popen[bytes] | None" = None


def worker_name() -> str:
    """Under which name this worker holds its runs."""
    return _name


def adopt(name: str, drain: Path) -> None:
    """Speak for the worker *name*, which drains once *drain* exists (keeper and its children)."""
    global _name, _drain
    _name, _drain = name, drain


@cache
def sessions() -> Sessions:
    """Sessions of this process; opened after the fork, never before."""
    return make_sessions(
        connect(settings.database_url, pool_size=4),
        artifacts=Artifacts(settings.artifacts_url, settings.studio_home / "artifact-cache"),
        producer=make_celery(settings.redis_url),
        bell=Bell(settings.redis_url),
    )


@cache
def supervision() -> Supervision:
    """How runs are looked after here."""
    command = os.environ.get("STUDIO_RECIPE_COMMAND")
    return Supervision(
        home=settings.studio_home,
        lease_seconds=settings.lease_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        cancel_grace_seconds=settings.cancel_grace_seconds,
        pause_seconds=settings.reap_seconds,
        drain=_drain,
        devices=_devices(),
        command=command.split() if command else RECIPES,
    )


def _devices() -> dict[int, str]:
    """Slot → accelerator, if there are several slots and every one can have its own."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if settings.worker_slots < 2:
        return {}
    from worker.machine import accelerators

    names = given.split(",") if given else [str(index) for index in range(len(accelerators()))]
    return dict(enumerate(names[: settings.worker_slots])) if len(names) >= settings.worker_slots else {}


@celeryd_after_setup.connect
def _start_keeper(sender: str, instance: Any, **_: Any) -> None:
    """In the main process of a worker of runs, before its pool is there."""
    global _name, _drain, _keeper
    if RUNS_QUEUE not in instance.app.amqp.queues.consume_from:
        return
    folder = settings.studio_home.resolve() / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    _drain = folder / f"{os.getpid()}.drain"
    _drain.unlink(missing_ok=True)
    _keeper = subprocess.Popen(
        [sys.executable, "-m", "worker.keeper", _name, str(_drain)],
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parents[1],
        preexec_fn=dies_with_parent(signal.SIGKILL),
    )


@worker_process_init.connect
def _die_with_the_worker(**_: Any) -> None:
    """In each child of the pool: no child outlives its main process, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1:  # it went between the fork and this line
            os._exit(1)


@worker_shutting_down.connect
def _drain_runs(**_: Any) -> None:
    if _drain is not None:
        _drain.touch()


@worker_shutdown.connect
def _stop_keeper(**_: Any) -> None:
    if _keeper is None:
        return
    _keeper.send_signal(signal.SIGTERM)
    try:
        _keeper.wait(DRAIN_SECONDS)
    except subprocess.TimeoutExpired:
        _keeper.kill()
        _keeper.wait()
    if _drain is not None:
        _drain.unlink(missing_ok=True)
