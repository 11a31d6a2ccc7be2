"""The whole studio as processes that can be killed: Postgres, Valkey, web, worker of runs, beat. Each is started again at once.

Times are shortened by the settings' environment variables, so that a kill costs seconds; the code is the product's.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil
import psycopg

from backend import embedded, migrate
from backend.accounts import credentials
from backend.accounts import service as accounts
from backend.accounts.actors import Actor, Permission, Role
from backend.accounts.tables import Person
from backend.artifacts import Artifacts
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.db import connect, make_sessions, unit_of_work
from backend.demo import corpus, seed
from backend.projects import service as projects
from backend.registry import service as registry
from backend.runs import metrics, service
from backend.runs.specs import Checkpoints, DPOSpec, Evaluation, Optimization
from backend.runs.tables import Run, RunAttempt

ROOT = Path(__file__).parents[2]
KINDS = ("child", "worker", "web", "redis", "postgres")
TIMES = {"LEASE_SECONDS": "6", "HEARTBEAT_SECONDS": "1", "REAP_SECONDS": "1", "CANCEL_GRACE_SECONDS": "5"}


class Stack:
    """A studio in *home* with one project, the tiny model and the demo's pairs."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home, password = home, uuid.uuid4().hex
        ports = {name: embedded.free_port() for name in ("postgres", "redis", "web")}
        self._data = home / "postgres"
        embedded.init_postgres(self._data, password)
        maintenance = f"postgresql://studio:{password}@127.0.0.1:{ports['postgres']}/postgres"
        self.database = f"{maintenance.rsplit('/', 1)[0]}/studio"
        self.redis = f"redis://:{password}@127.0.0.1:{ports['redis']}/0"
        self.url = f"http://127.0.0.1:{ports['web']}"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("STUDIO_")},
            "DATABASE_URL": self.database,
            "REDIS_URL": self.redis,
            "ARTIFACTS_URL": str(home / "artifacts"),
            "STUDIO_HOME": str(home),
            "PUBLIC_URL": self.url,
            "OMP_NUM_THREADS": "1",
            **TIMES,
            **environment,
        }
        celery = ["celery", "-A", "worker.app", "worker", "-l", "info", "--without-gossip", "--without-mingle"]
        self._commands: dict[str, tuple[list[str], int]] = {
            "postgres": (embedded.postgres_command(self._data, ports["postgres"]), signal.SIGINT),
            "redis": (embedded.valkey_command(home / "valkey", ports["redis"], password), signal.SIGTERM),
            "web": (
                [sys.executable, "-m", "uvicorn", "--factory", "backend.app:create", "--port", str(ports["web"]), "--no-access-log"],
                signal.SIGTERM,
            ),
            "worker": ([sys.executable, "-m", *celery, "-Q", "runs", "-c", "1", "-n", "runs@%h"], signal.SIGTERM),
            "beat": (
                [sys.executable, "-m", *celery, "-B", "-s", str(home / "beat"), "-Q", "housekeeping", "-c", "1", "-n", "housekeeping@%h"],
                signal.SIGTERM,
            ),
        }  # fmt: skip
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._maintenance = maintenance
        self.sessions = make_sessions(
            connect(self.database), artifacts=Artifacts(str(home / "artifacts"), home / "cache")
        )

    def __enter__(self) -> Self:
        try:
            for name in ("postgres", "redis"):
                self.start(name)
            with psycopg.connect(self._maintenance, autocommit=True) as admin:
                admin.execute("create database studio")
            migrate.upgrade(self.database)
            self._fill()
            for name in ("web", "worker", "beat"):
                self.start(name)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in ("beat", "worker", "web", "redis", "postgres"):
            self.stop(name)
        self.sessions.kw["bind"].dispose()

    def start(self, name: str) -> None:
        """Start a process; servers are waited for, and tried again (a killed Postgres leaves backends that must go first)."""
        command, sig = self._commands[name]
        deadline = time.monotonic() + 60
        while True:
            with (self.home / f"{name}.log").open("ab") as log:
                process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    cwd="/" if name in ("postgres", "redis") else ROOT,
                    env=self._environment,
                    preexec_fn=embedded.dies_with_parent(signal.Signals(sig)),
                )
            self.processes[name] = process
            ready: dict[str, Callable[[], bool]] = {
                "postgres": lambda: embedded.postgres_answers(self._maintenance),
                "redis": lambda: embedded.redis_answers(self.redis),
                "web": self._web_answers,
            }
            if name not in ready:
                return
            while process.poll() is None and time.monotonic() < deadline:
                if ready[name]():
                    return
                time.sleep(0.05)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not start")
            time.sleep(0.2)

    def _web_answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self, name: str, seconds: float = 60) -> float:
        """End a process as the supervisor does; answers how long it took."""
        process = self.processes.get(name)
        if process is None or process.poll() is not None:
            return 0.0
        began = time.monotonic()
        process.send_signal(self._commands[name][1])
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return time.monotonic() - began

    def kill(self, kind: str) -> bool:
        """kill -9 a process of *kind* and start it again; whether there was one."""
        if kind == "child":
            for process in psutil.Process(self.processes["worker"].pid).children(recursive=True):
                try:
                    if any("spec.json" in part for part in process.cmdline()):
                        process.kill()
                        return True
                except psutil.Error:
                    continue
            return False
        self.processes[kind].kill()
        self.processes[kind].wait()
        self.start(kind)
        return True

    # --- content

    def _fill(self) -> None:
        with unit_of_work(self.sessions) as session:
            person = Person(name="Robin", email="robin@example.org", is_admin=True)
            session.add(person)
            session.flush()
            admin = accounts.actor_of(session, person.id)
            project = projects.create_project(session, admin, "Kills", "It ends whatever happens.")
            accounts.set_role(session, project.id, person.id, Role.ENGINEER)
            self.actor: Actor = accounts.actor_of(session, person.id)
            self.project_id = project.id
            self.token = credentials.create_token(
                session, self.actor, "kills", [Permission.VIEW, Permission.ENGINEER], 1
            )[1]
            base = Path(seed.__file__).parent / "base"
            self.model_id = registry.register_folder(session, project.id, base, "tiny").id
            made = datasets.create_dataset(session, self.actor, project.id, "pairs")
            rows = corpus.preference_pairs(200, seed=1)
            self.version_id = datasets.create_version(
                session, made.id, rows, RowType.PREFERENCE, origin={"kind": "test"}, created_by=person.id
            ).id

    def spec(self, steps: int, every: int) -> DPOSpec:
        """A small DPO run."""
        return DPOSpec(
            base_model=self.model_id,
            dataset=self.version_id,
            max_length=96,
            seed=3,
            optimization=Optimization(steps=steps, batch_size=8, learning_rate=2e-4, warmup_steps=2),
            evaluation=Evaluation(every_steps=steps, max_rows=16, completions=2, max_new_tokens=16),
            checkpoints=Checkpoints(every_steps=every),
        )

    def submit(self, steps: int, every: int) -> int:
        """Ask for a run by REST, as anybody would; answers its id."""
        body = {"spec": self.spec(steps, every).model_dump(mode="json"), "idempotency_key": uuid.uuid4().hex}
        for _ in range(100):
            try:
                answer = httpx.post(
                    f"{self.url}/api/v1/projects/{self.project_id}/runs",
                    json=body,
                    headers={"Authorization": f"Bearer {self.token}"},
                    timeout=10,
                )
            except httpx.HTTPError:
                time.sleep(0.2)
                continue
            assert answer.status_code == 201, answer.text
            return int(answer.json()["id"])
        raise TimeoutError("the web does not answer")

    def row(self, run_id: int) -> Run:
        """The run as it is now, waiting for the database if that is away."""
        for _ in range(200):
            try:
                with self.sessions() as session:
                    return session.get_one(Run, run_id)
            except Exception:
                time.sleep(0.1)
        raise TimeoutError("the database does not answer")

    def wait(self, run_id: int, ready: Callable[[Run], bool], what: str, seconds: float = 240) -> Run:
        """Until *ready* says so of the run."""
        deadline = time.monotonic() + seconds
        while not ready(run := self.row(run_id)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: the run is {run.state} at step {run.progress_step}: {run.exit_reason}")
            time.sleep(0.05)
        return run

    def points(self, run_id: int) -> dict[str, list[tuple[int, Any]]]:
        """Every stored point by metric."""
        with self.sessions() as session:
            return {key: metrics.points_of(session, run_id, key) for key in metrics.keys_of(session, run_id)}

    def attempts(self, run_id: int) -> list[tuple[int, int]]:
        """Attempt and the step that it went on from."""
        with self.sessions() as session:
            rows = session.query(RunAttempt).filter_by(run_id=run_id).order_by(RunAttempt.attempt)
            return [(row.attempt, row.resume_step) for row in rows]

    def log(self, run_id: int) -> str:
        """The run's log as text."""
        with self.sessions() as session:
            return "\n".join(str(line.data["text"]) for line in service.log_lines(session, self.actor, run_id))


class Page(threading.Thread):
    """What a run's page does: follow the stream, reconnect after the last id, keep the newest value of each step."""

    def __init__(self, stack: Stack, run_id: int) -> None:
        super().__init__(daemon=True)
        self._stack, self._run_id = stack, run_id
        self.ids: list[int] = []
        self.values: dict[tuple[str, int], Any] = {}
        self.state = ""
        self.connections = 0

    def run(self) -> None:
        """Until the run has ended."""
        while self.state not in ("succeeded", "failed", "cancelled"):
            try:
                self._listen()
            except httpx.HTTPError:
                time.sleep(0.3)

    def _listen(self) -> None:
        last = self.ids[-1] if self.ids else 0
        headers = {"Authorization": f"Bearer {self._stack.token}", "Last-Event-ID": str(last)}
        address = f"{self._stack.url}/api/v1/runs/{self._run_id}/events"
        with httpx.stream("GET", address, headers=headers, timeout=20) as answer:
            self.connections += 1
            event, number = "", None
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "id":
                    number = int(value)
                elif field == "event":
                    event = value
                elif field == "data":
                    data = json.loads(value)
                    if event == "run":
                        self.state = data["state"]
                        if data["attempt"] > 1:
                            resumed = data["resumed_step"]
                            newest = max((step for _, step in self.values), default=0)
                            if newest > data["step"]:
                                self.values = {
                                    k: v for k, v in self.values.items() if k[1] <= max(resumed, data["step"])
                                }
                    elif number is not None:
                        self.ids.append(number)
                        if event == "metrics":
                            for key, point in data["values"].items():
                                self.values[key, data["step"]] = point
