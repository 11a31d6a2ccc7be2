"""The keeper of a worker: says that it lives, reaps, buries its dead, and starts what no message announced.

One process beside the pool, started and ended by the worker's main process (``worker/app.py``), because none of this may
wait for a free slot or for Redis. ``python -m worker.keeper <worker> <drain file> [run]``; with ``run`` it carries out one
run and ends: how a run starts while Redis is away.
"""

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import redis
from sqlalchemy.exc import InterfaceError, OperationalError

from backend.db import unit_of_work
from backend.embedded import dies_with_parent
from backend.runs import leases
from worker import app as root
from worker.machine import look
from worker.process import bury_dead, execute_next
from worker.sandbox.trial import Trial

log = logging.getLogger("worker.keeper")


class Keeper:
    """Turns until it is told to end, and then until the runs it started have ended."""

    def __init__(self, name: str, drain: Path) -> None:
        self._name, self._drain = name, drain
        self._settings, self._sessions = root.settings, root.sessions()
        self._ending = False
        self._started: list[subprocess.Popen[bytes]] = []
        self._due = {"speak": 0.0, "bury": 0.0, "reap": 0.0}
        self._trial = Trial()
        self._fresh = True
        self._draining = False
        self._broker = redis.Redis.from_url(self._settings.redis_url, socket_timeout=2, socket_connect_timeout=2)

    def end(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self._ending = True

    def turn(self) -> None:
        """Everything that is due now; a database that does not answer makes it due again."""
        now = time.monotonic()
        draining = self._ending or self._drain.exists()
        if self._trial.turn(now) or now >= self._due["speak"] or draining != self._draining:
            home = self._settings.studio_home
            machine = look(self._name, self._settings.worker_slots, home, self._trial.report)
            with unit_of_work(self._sessions) as session:
                leases.worker_heard(session, machine, draining=draining, fresh=self._fresh)
                if self._fresh:
                    leases.offer(session, self._name)
            self._fresh, self._draining = False, draining
            self._due["speak"] = now + self._settings.heartbeat_seconds
        if now >= self._due["bury"]:
            bury_dead(self._sessions, self._name, pause_seconds=self._settings.reap_seconds)
            self._due["bury"] = now + min(2.0, self._settings.reap_seconds)
        if now >= self._due["reap"]:
            with unit_of_work(self._sessions) as session:
                leases.reap(
                    session, lease_seconds=self._settings.lease_seconds, pause_seconds=self._settings.reap_seconds
                )
                overdue = leases.waits(session, self._name, self._settings.reap_seconds)
                forgotten = overdue and leases.waits(session, self._name, 3 * self._settings.reap_seconds)
            self._due["reap"] = now + self._settings.reap_seconds
            self._started = [child for child in self._started if child.poll() is None]
            if not draining and (forgotten or (overdue and not self._broker_answers())):
                self._start_run()

    def _broker_answers(self) -> bool:
        try:
            return bool(self._broker.ping())
        except redis.RedisError:
            return False

    def _start_run(self) -> None:
        self._started.append(
            subprocess.Popen(
                [sys.executable, "-m", "worker.keeper", self._name, str(self._drain), "run"],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).resolve().parents[1],
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )
        )

    def run(self) -> None:
        """Until SIGTERM, and until the runs started here have drained."""
        while not self._ending or any(child.poll() is None for child in self._started):
            try:
                self.turn()
            except (OperationalError, InterfaceError) as error:
                log.warning("the database does not answer: %s", error.orig)
            time.sleep(0.2)
        self._trial.end()
        try:
            self._due["speak"] = 0.0
            self.turn()
        except (OperationalError, InterfaceError):
            pass


def main(arguments: list[str]) -> None:
    """The process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    name, drain = arguments[0], Path(arguments[1])
    root.adopt(name, drain)
    if arguments[2:] == ["run"]:
        execute_next(root.sessions(), name, root.supervision())
        return
    keeper = Keeper(name, drain)
    signal.signal(signal.SIGTERM, keeper.end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keeper.run()


if __name__ == "__main__":
    main(sys.argv[1:])
