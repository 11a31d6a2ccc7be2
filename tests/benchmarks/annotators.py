"""How fast 200 concurrent annotators get assignments and store judgments, through the real HTTP server.

    python -m tests.benchmarks.annotators [--annotators 200] [--seconds 15] [--processes 2] [--think 0]

Everything runs on this machine's loopback and shares its cores: embedded Postgres (with fsync, as in production), Valkey,
uvicorn processes and the load itself, which speaks HTTP/1.1 over plain sockets so as to cost little. ``--think 0`` is a
saturated server, far beyond people; ``--think 2`` lets every annotator think two seconds. The record is checked afterwards.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from backend import embedded, migrate
from backend.accounts import credentials
from backend.accounts import service as accounts
from backend.accounts.actors import Permission, Role
from backend.accounts.tables import Person
from backend.db import connect, make_sessions, unit_of_work
from backend.labeling import service
from backend.labeling.judgments import ItemDraft
from backend.projects import service as projects


class Load(NamedTuple):
    """What the annotators work on."""

    labeling_id: int
    tokens: list[str]


@contextmanager
def running(command: list[str], log: Path, stop: signal.Signals, env: dict[str, str] | None = None) -> Iterator[None]:
    """A child process with its output in *log*, stopped at the end."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, env=env, preexec_fn=embedded.dies_with_parent(signal.SIGTERM)
        )
    try:
        yield
    finally:
        child.send_signal(stop)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def prepare(url: str, annotators: int, items: int, overlap: int) -> Load:
    """A project, a session with *items* of ordinary length, people, and a token for each."""
    migrate.upgrade(url)
    engine = connect(url)
    sessions = make_sessions(engine)
    words = "The answer takes the sum first and the tax afterwards, which is what the invoice asks for. " * 6
    with unit_of_work(sessions) as session:
        token = accounts.make_setup_link(session).removeprefix("/setup/")
        person = accounts.use_link(session, token, uuid.uuid4().hex, "Ada", "ada@example.org")
        admin = accounts.actor_of(session, person.id)
        project = projects.create_project(session, admin, "Benchmark")
        labeling = service.create_session(
            session, admin, project.id, name="Benchmark", guidelines="Prefer the right one.", overlap=overlap,
            items=(ItemDraft(prompt=f"Question {i}: {words[:200]}", completions=[f"{words} {i}", f"{words[:300]} {i}"], models=["a", "b"])
                   for i in range(items)),
        )  # fmt: skip
        tokens = []
        for number in range(annotators):
            one = Person(name=f"annotator {number}", email=f"a{number}@example.org")
            session.add(one)
            session.flush()
            accounts.set_role(session, project.id, one.id, Role.ANNOTATOR)
            actor = accounts.actor_of(session, one.id)
            tokens.append(credentials.create_token(session, actor, "benchmark", [Permission.JUDGE], 1)[1])
        load = Load(labeling.id, tokens)
    engine.dispose()
    with psycopg.connect(url, autocommit=True) as admin_connection:
        admin_connection.execute("vacuum analyze")
    return load


class Client:
    """One annotator's keep-alive connection."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token

    async def __aenter__(self) -> "Client":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """One request; status and JSON."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)
        header = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = int(header.split(" ", 2)[1])
        length = int(header.split("content-length:", 1)[1].split("\r\n", 1)[0])
        return status, json.loads(await self._reader.readexactly(length))


class Counted:
    """Latencies in seconds of the requests of one kind."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def line(self, name: str, elapsed: float) -> str:
        """Rate, p50, p99 in words."""
        ordered = sorted(self.seconds)
        p50, p99 = statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return f"{name:<44}{len(ordered):>8} in {elapsed:5.1f} s {len(ordered) / elapsed:>9.1f}/s   p50 {1000 * p50:7.1f} ms   p99 {1000 * p99:7.1f} ms"


async def annotate(
    client: Client, load: Load, think: float, until: float, claims: Counted, submits: Counted, chance: random.Random
) -> int:
    """One annotator: acknowledge (which claims the first assignment), then judge until *until*; judgments acknowledged."""
    begun = time.perf_counter()
    status, desk = await client.post(f"/api/v1/labeling-sessions/{load.labeling_id}/acknowledge", {"version": 1})
    assert status == 200, desk
    claims.seconds.append(time.perf_counter() - begun)
    stored = 0
    await asyncio.sleep(think * chance.random())
    while desk["assignment"] and time.perf_counter() < until:
        a = desk["assignment"]
        point = chance.randint(1, 7)
        sent = {"kind": "comparison", "idempotency_key": a["idempotency_key"], "point": point, "active_ms": 2000}
        if point == 4:
            sent["tie_kind"] = "both_good"
        begun = time.perf_counter()
        status, answer = await client.post(f"/api/v1/assignments/{a['uuid']}/judgment", sent)
        submits.seconds.append(time.perf_counter() - begun)
        assert status == 201, answer
        stored += 1
        desk = answer["desk"]
        if think:
            await asyncio.sleep(think * (0.5 + chance.random()))
    return stored


async def drive(port: int, load: Load, seconds: float, think: float) -> int:
    """All annotators at once; prints the figures."""
    claims, submits = Counted(), Counted()
    async with asyncio.TaskGroup() as group:
        clients = [Client(port, token) for token in load.tokens]
        for client in clients:
            await client.__aenter__()
        begun = time.perf_counter()
        tasks = [
            group.create_task(annotate(client, load, think, begun + seconds, claims, submits, random.Random(seed)))
            for seed, client in enumerate(clients)
        ]
    elapsed = time.perf_counter() - begun
    for client in clients:
        await client.__aexit__()
    print(claims.line("first assignments, all at once", max(claims.seconds)))
    print(submits.line("judgment stored + next assignment handed out", elapsed), flush=True)
    return sum(task.result() for task in tasks)


def check(url: str, acknowledged: int, overlap: int) -> None:
    """The record after the storm."""
    with psycopg.connect(url) as connection:

        def number(sql: str) -> int:
            row = connection.execute(sql.encode()).fetchone()
            assert row is not None
            return int(row[0])

        judged = number("select count(*) from judgment")
        over = number(
            f"select count(*) from (select 1 from labeling_slot where state = 'judged' group by item_id having count(*) > {overlap}) x"
        )
        twice = number(
            "select count(*) from (select 1 from judgment group by item_id, annotator_id having count(*) > 1) x"
        )
        left = number("select count(*) from judgment where shown_order[1] = 0")
    print(
        f"record: {judged} judgments for {acknowledged} acknowledged, {over} items over k, {twice} double, first completion left {left / max(1, judged):.1%}"
    )
    assert (judged, over, twice) == (acknowledged, 0, 0)


def main() -> None:
    """Start everything, measure, check, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotators", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--think", type=float, default=0, help="mean seconds an annotator thinks")
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--overlap", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home, password = Path(folder), uuid.uuid4().hex
        embedded.init_postgres(home / "postgres", password)
        pg, redis, port = embedded.free_port(), embedded.free_port(), embedded.free_port()
        url, redis_url = (
            f"postgresql://studio:{password}@127.0.0.1:{pg}/postgres",
            f"redis://:{password}@127.0.0.1:{redis}/0",
        )
        stack.enter_context(
            running(
                embedded.postgres_command(home / "postgres", pg, "max_connections=200"), home / "pg.log", signal.SIGINT
            )
        )
        stack.enter_context(
            running(embedded.valkey_command(home / "valkey", redis, password), home / "valkey.log", signal.SIGTERM)
        )
        embedded.wait_until(lambda: embedded.postgres_answers(url), "Postgres")
        embedded.wait_until(lambda: embedded.redis_answers(redis_url), "Valkey")
        load = prepare(url, given.annotators, given.items, given.overlap)
        env = {
            **os.environ,
            "DATABASE_URL": url,
            "REDIS_URL": redis_url,
            "ARTIFACTS_URL": str(home / "artifacts"),
            "STUDIO_HOME": str(home),
            "PUBLIC_URL": f"http://127.0.0.1:{port}",
        }
        command = [sys.executable, "-m", "uvicorn", "--factory", "backend.app:create", "--host", "127.0.0.1", "--port", str(port),
                   "--workers", str(given.processes), "--timeout-keep-alive", "75", "--log-level", "warning", "--no-access-log"]  # fmt: skip
        stack.enter_context(running(command, home / "web.log", signal.SIGTERM, env))

        def answers() -> bool:
            with embedded.socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        embedded.wait_until(answers, "the web")
        print(
            f"{given.annotators} annotators, {given.items} items × {given.overlap}, {given.processes} web processes, {os.cpu_count()} cores, think {given.think} s"
        )
        try:
            check(url, asyncio.run(drive(port, load, given.seconds, given.think)), given.overlap)
        except BaseException:
            print((home / "web.log").read_text()[-4000:], file=sys.stderr)
            raise


if __name__ == "__main__":
    main()
