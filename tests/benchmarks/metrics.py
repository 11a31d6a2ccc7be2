"""Metric points stored per second through ``record``, and how long a chart of a million points takes.

``python -m tests.benchmarks.metrics [--points 1000000]`` on a Postgres of its own, with the product's own durability settings.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from backend import embedded, migrate
from backend.accounts import service as accounts
from backend.accounts.actors import Role
from backend.accounts.tables import Person
from backend.artifacts import Artifacts
from backend.db import Sessions, connect, make_sessions, unit_of_work
from backend.projects import service as projects
from backend.runs import attempts, service
from backend.runs import events as said
from tests.backend.runs.material import claim, hello, make_material, started, submit


def median_ms(work: Callable[[], object], times: int = 15) -> tuple[float, float]:
    """Median and slowest of *times* calls, in milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken), max(taken)


def measure(sessions: Sessions, home: Path, points: int) -> None:
    """Print the figures."""
    with unit_of_work(sessions) as session:
        person = Person(name="Robin", email="robin@example.org", is_admin=True)
        session.add(person)
        session.flush()
        project = projects.create_project(session, accounts.actor_of(session, person.id), "Metrics", "")
        accounts.set_role(session, project.id, person.id, Role.ENGINEER)
        actor = accounts.actor_of(session, person.id)
        material = make_material(session, actor, project.id, home)
    hello(sessions, slots=9)

    def fill(keys: int, batch: int, total: int) -> tuple[int, float]:
        run_id = submit(sessions, actor, material, steps=total // keys)
        held = claim(sessions)
        names = [f"rewards/part_{key}/mean" for key in range(keys)]
        line, step, began = 0, 0, time.perf_counter()
        with unit_of_work(sessions) as session:
            attempts.record(session, run_id, held.fence, 1, 0, [started(total // keys)])
        line = 1
        while step < total // keys:
            lines = [
                said.Metrics(step=n, values={name: float((n * 7919 + key) % 10007) for key, name in enumerate(names)})
                for n in range(step + 1, min(step + batch, total // keys) + 1)
            ]
            with unit_of_work(sessions) as session:
                attempts.record(session, run_id, held.fence, 1, line, lines)
            line += len(lines)
            step += len(lines)
        return run_id, time.perf_counter() - began

    for keys, batch in ((20, 1), (20, 50), (20, 500)):
        total = min(points // 5, 100_000) if batch > 1 else 10_000
        _, seconds = fill(keys, batch, total)
        print(f"{keys} metrics per step, {batch} steps per transaction: {total / seconds:,.0f} points/s", flush=True)
    run_id, seconds = fill(1, 2000, points)
    print(f"1 metric, {points:,} steps, 2,000 per transaction: {points / seconds:,.0f} points/s", flush=True)
    name = "rewards/part_0/mean"
    with sessions() as session:
        for label, asked in (("500 entries", 500), ("2,000 entries", 2000)):
            middle, worst = median_ms(lambda asked=asked: service.series(session, actor, run_id, [name], asked))  # type: ignore[misc]
            one = service.series(session, actor, run_id, [name], asked)[name]
            print(
                f"{one.n:,} points as {label} ({len(one.steps)}): {middle:.1f} ms, slowest {worst:.1f} ms", flush=True
            )
        low = points // 2
        middle, worst = median_ms(
            lambda: service.series(session, actor, run_id, [name], 500, from_step=low, to_step=low + 2000)
        )
        print(f"zoom into 2,000 of its steps: {middle:.1f} ms, slowest {worst:.1f} ms")
        middle, worst = median_ms(lambda: service.status(session, run_id))
        print(f"head of the run's page: {middle:.1f} ms, slowest {worst:.1f} ms")


def main() -> None:
    """Its own Postgres, with fsync as in production."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="studio-metrics-") as folder:
        home, port = Path(folder), embedded.free_port()
        embedded.init_postgres(home / "postgres", "bench")
        server = embedded.start(embedded.postgres_command(home / "postgres", port), home / "postgres.log")
        try:
            root = f"postgresql://studio:bench@127.0.0.1:{port}"
            embedded.wait_until(lambda: embedded.postgres_answers(f"{root}/postgres"), "Postgres")
            with psycopg.connect(f"{root}/postgres", autocommit=True) as admin:
                admin.execute("create database studio")
            migrate.upgrade(f"{root}/studio")
            sessions = make_sessions(
                connect(f"{root}/studio"), artifacts=Artifacts(str(home / "artifacts"), home / "cache")
            )
            print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
            measure(sessions, home, given.points)
            sessions.kw["bind"].dispose()
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()
