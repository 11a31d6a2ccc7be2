"""``studio up``: starts, watches and stops everything that the studio is made of.

Order: Postgres and Valkey (unless ``DATABASE_URL`` and ``REDIS_URL`` name others) → migrations → demo project → web →
worker and housekeeping. Stopping goes the other way, and the worker may first bring its runs to a checkpoint. A process
that ends by itself is started again. Should the supervisor itself be killed, the kernel tells every child (Linux); where
it cannot, the next ``up`` ends what was left over.
"""

import asyncio
import contextlib
import fcntl
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from backend import embedded, migrate
from backend.accounts import service as accounts
from backend.artifacts import Artifacts
from backend.db import connect, make_sessions, unit_of_work
from backend.demo import seed
from backend.jobs import HOUSEKEEPING_QUEUE, RUNS_QUEUE, make_celery
from backend.settings import Settings
from backend.supervisor.child import CannotStart, Child, rotate
from backend.supervisor.memory import Memory, choose_web_port, command_line, end_leftovers

DRAIN_SECONDS = 40.0
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


# --- the commands of production, too: docker-compose.yml runs exactly these (tests/contracts/test_compose.py)


def web_command(host: str, port: int) -> list[str]:
    """The web server; open event streams get three seconds to end."""
    return ["uvicorn", "--factory", "backend.app:create", "--host", host, "--port", str(port),
            "--timeout-graceful-shutdown", "3", "--no-access-log"]  # fmt: skip


def worker_command(slots: int) -> list[str]:
    """Executes runs, *slots* at a time; a slot is busy as long as its run."""
    return ["celery", "-A", "worker.app", "worker", "-Q", RUNS_QUEUE, "-c", str(slots), "-n", "runs@%h",
            "-l", "info", "--without-gossip", "--without-mingle"]  # fmt: skip


def beat_command(schedule: str) -> list[str]:
    """The clock that sends the reaper off, and the one process that carries it out. Exactly one per studio is enough."""
    return ["celery", "-A", "worker.app", "worker", "-B", "-s", schedule, "-Q", HOUSEKEEPING_QUEUE, "-c", "1",
            "-n", "housekeeping@%h", "-l", "info", "--without-gossip", "--without-mingle"]  # fmt: skip


def _by_python(command: Sequence[str]) -> list[str]:
    """The same command through this interpreter, so that no PATH and no script header is in the way."""
    return [sys.executable, "-m", *command]


# --- readiness


def _http_answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False
    except OSError:
        return False


def _celery_answers(redis_url: str, node: str) -> bool:
    name = f"{node}@{socket.gethostname()}"
    with make_celery(redis_url) as celery:
        try:
            return bool(celery.control.ping(destination=[name], timeout=0.5))
        except Exception:  # any transport error means: not yet
            return False


# --- the studio


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[bool]:
    """Whether this is the only ``up`` of *home*; the lock goes with the process, however it ends."""
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def up(settings: Settings, *, host: str = "127.0.0.1", port: int | None = None, demo: bool = True) -> int:
    """Run the studio of ``settings.studio_home`` until Ctrl-C; the result is the exit code of the command.

    *port* is taken or refused; without it 8400 is preferred and taken ports are stepped around.
    """
    home = settings.studio_home.resolve()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_one(home) as alone:
        memory = Memory.of(home)
        if not alone:
            print(f"The studio is already running: {memory.content.get('address', 'it is just starting')}")
            return 0
        supervisor = Supervisor(settings, home, memory, host, port, demo)
        try:
            asyncio.run(supervisor.run())
        except (CannotStart, RuntimeError, PermissionError, FileNotFoundError) as error:
            print(f"The studio cannot start: {error}", file=sys.stderr)
            return 1
    return 0


class Supervisor:
    """All children of one home."""

    def __init__(self, settings: Settings, home: Path, memory: Memory, host: str, port: int | None, demo: bool) -> None:
        self._settings, self._home, self._memory, self._demo = settings, home, memory, demo
        self._host, self._wanted_port = host, port
        self._began = time.monotonic()
        self._children: list[Child] = []
        self._logs = home / "logs"
        self._stop = asyncio.Event()
        self._hurried = False

    def _say(self, sentence: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone; stopping must go on
            print(f"{time.monotonic() - self._began:6.1f} s  {sentence}", flush=True)

    async def run(self) -> None:
        """Start, wait for Ctrl-C (or SIGTERM, or a closed terminal), stop."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(sig, self._on_signal)
        self._logs.mkdir(exist_ok=True)
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stop.wait())
        watching: list[asyncio.Task[None]] = []
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                watching = starting.result()
                await stopping
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await self._stop_all()
            await asyncio.gather(*watching)

    def _on_signal(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._say("stopping; runs go to a checkpoint first (Ctrl-C again hurries)")
        elif not self._hurried:
            self._hurried = True
            self._say("hurrying")
            for child in self._children:
                if child.stop_signal != signal.SIGINT:  # Postgres ends in a moment, and ends well
                    child.hurry()

    async def _start(self) -> list[asyncio.Task[None]]:
        settings = await self._servers()
        await asyncio.to_thread(migrate.upgrade, settings.database_url)
        link = await asyncio.to_thread(self._prepare, settings)
        await self._processes(settings)
        address = settings.public_url
        self._memory.content["address"] = address
        self._remember()
        self._say(f"The studio runs at {address}")
        if link:
            print(f"\n  Become its admin (this link works once):\n\n    {address}{link}\n", flush=True)
        if self._host not in LOCAL_HOSTS:
            print(f"  It listens on {self._host}: other machines can reach it, without encryption.\n", flush=True)
        print("  Ctrl-C stops it.", flush=True)
        return [asyncio.create_task(child.watch()) for child in self._children]

    async def _servers(self) -> Settings:
        """Start what no URL was given for; the settings that every process of this studio gets."""
        given = self._settings.model_fields_set
        data = self._home / "postgres"
        end_leftovers(self._memory, data, self._say)
        password = self._memory.content["password"]
        changes: dict[str, Any] = {"studio_home": self._home}
        if "artifacts_url" not in given:
            changes["artifacts_url"] = str(self._home / "artifacts")
        servers: list[Child] = []
        if "database_url" not in given:
            if not (data / "PG_VERSION").exists():
                await asyncio.to_thread(embedded.init_postgres, data, password)
            port = self._memory.port("postgres")
            root = f"postgresql://studio:{password}@127.0.0.1:{port}/postgres"
            changes["database_url"] = f"postgresql+psycopg://studio:{password}@127.0.0.1:{port}/studio"
            command = embedded.postgres_command(data, port, "max_connections=200", "timezone=UTC", "log_timezone=UTC")
            servers.append(
                self._child("Postgres", command, lambda: embedded.postgres_answers(root), stop_signal=signal.SIGINT)
            )
        if "redis_url" not in given:
            redis_port = self._memory.port("redis")
            redis_url = f"redis://:{password}@127.0.0.1:{redis_port}/0"
            changes["redis_url"] = redis_url
            command = embedded.valkey_command(self._home / "valkey", redis_port, password)
            servers.append(self._child("Valkey", command, lambda: embedded.redis_answers(redis_url)))
        web_port = choose_web_port(self._host, self._wanted_port, self._memory.content.get("web"))
        self._memory.content["web"] = web_port
        self._memory.content.pop("address", None)
        if "public_url" not in given:
            shown = self._host if self._host not in ("0.0.0.0", "::") else socket.gethostname()
            changes["public_url"] = f"http://{f'[{shown}]' if ':' in shown else shown}:{web_port}"
        self._remember()
        await self._start_together(servers)
        if "database_url" not in given:
            await asyncio.to_thread(_ensure_database, root, "studio")
        return self._settings.model_copy(update=changes)

    def _prepare(self, settings: Settings) -> str | None:
        """Fill the demo project; the path of the setup link if nobody is admin yet."""
        engine = connect(settings.database_url)
        try:
            artifacts = Artifacts(settings.artifacts_url, settings.studio_home / "artifact-cache")
            sessions = make_sessions(engine, artifacts=artifacts)
            if self._demo:
                try:
                    seed.ensure(sessions, settings)
                except Exception as error:  # the studio is useful without its demo, and must say that it is missing
                    self._say(f"the demo project could not be made: {type(error).__name__}: {error}")
            with unit_of_work(sessions) as session:
                return None if accounts.has_admin(session) else accounts.make_setup_link(session)
        finally:
            engine.dispose()

    async def _processes(self, settings: Settings) -> None:
        env = {
            "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "ARTIFACTS_URL": settings.artifacts_url,
            "STUDIO_HOME": str(settings.studio_home), "PUBLIC_URL": settings.public_url,
            "WORKER_SLOTS": str(settings.worker_slots), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        web_port = self._memory.content["web"]
        inside = "127.0.0.1" if self._host in ("0.0.0.0", "localhost") else self._host
        inside = f"[{inside}]" if ":" in inside else inside
        redis_url = settings.redis_url
        web = self._child(
            "web", _by_python(web_command(self._host, web_port)),
            lambda: _http_answers(f"http://{inside}:{web_port}/healthz"), env=env,
        )  # fmt: skip
        worker = self._child(
            "worker", _by_python(worker_command(settings.worker_slots)), lambda: _celery_answers(redis_url, "runs"),
            env=env, stop_seconds=DRAIN_SECONDS,
        )  # fmt: skip
        schedule = str(self._home / "beat-schedule")
        beat = self._child(
            "beat", _by_python(beat_command(schedule)), lambda: _celery_answers(redis_url, "housekeeping"), env=env
        )
        await self._start_together([web, worker, beat])

    def _child(self, name: str, command: list[str], is_ready: Callable[[], bool], **more: Any) -> Child:
        log = self._logs / f"{name.lower()}.log"
        rotate(log)
        child = Child(name, command, log, is_ready, say=self._say, cwd=migrate.MIGRATIONS.parent, **more)
        self._children.append(child)
        return child

    async def _start_together(self, children: Sequence[Child]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for child in children:
                    group.create_task(child.start())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._remember()

    def _remember(self) -> None:
        self._memory.content["processes"] = {
            child.name: [child.process.pid, command_line(child.process.pid)]
            for child in self._children
            if child.process is not None and child.process.returncode is None
        }
        self._memory.save()

    async def _stop_all(self) -> None:
        """Housekeeping and worker first (their runs go to a checkpoint), then the web, then the servers."""
        by_name = {child.name: child for child in self._children}
        for names in (("beat", "worker"), ("web",), ("Valkey",), ("Postgres",)):
            await asyncio.gather(*(by_name[name].stop() for name in names if name in by_name))
        self._memory.content.pop("address", None)
        self._remember()
        self._say("stopped")


def _ensure_database(root: str, name: str) -> None:
    with psycopg.connect(root, autocommit=True) as admin:
        if admin.execute("select 1 from pg_database where datname = %s", [name]).fetchone() is None:
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
