"""The whole studio as processes, one of each kind killed in mid-run; drain, cancel, and a start without Redis.

The recipe is the stand-in, so that the processes around it are what is tested; ``python -m tests.benchmarks.kills`` does
the same with real DPO runs and five moments per kind.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from backend.embedded import wait_until
from tests.journeys.stack import ROOT, Page, Stack
from tests.worker.test_process import expected

FAKE = f"{sys.executable} {ROOT / 'tests/worker/fake_recipe.py'}"
STEPS = 200


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("stack")
    (home / "behavior.json").write_text(json.dumps({"seconds": 0.06}))
    with Stack(home, STUDIO_RECIPE_COMMAND=FAKE) as running:
        yield running


def test_one_kill_of_each_kind(stack: Stack) -> None:
    run_id = stack.submit(STEPS, 10)
    page = Page(stack, run_id)
    page.start()
    for number, kind in enumerate(("child", "worker", "redis", "postgres", "web")):
        stack.wait(run_id, lambda run, at=20 * number + 5: run.state == "running" and run.progress_step >= at, kind, 60)  # type: ignore[misc]
        assert stack.kill(kind), kind
    run = stack.wait(run_id, lambda run: run.state in ("succeeded", "failed"), "its end")
    assert run.state == "succeeded", run.exit_reason
    points = stack.points(run_id)
    assert points["loss"] == expected(STEPS)
    assert [step for step, _ in points["grad_norm"]] == list(range(1, STEPS + 1))
    assert len(stack.attempts(run_id)) == 3  # child and worker; web, Redis and Postgres cost none
    page.join(30)
    assert page.ids == sorted(set(page.ids))
    assert {place: value for place, value in page.values.items() if place[0] == "loss"} == {
        ("loss", step): value for step, value in points["loss"]
    }


def test_drain_and_go_on(stack: Stack) -> None:
    run_id = stack.submit(STEPS, 1000)
    stack.wait(run_id, lambda run: run.progress_step >= 15, "step 15")
    children = psutil.Process(stack.processes["worker"].pid).children(recursive=True)
    seconds = stack.stop("worker")
    assert seconds < 40
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    drained = stack.row(run_id)
    assert (drained.state, drained.fruitless_attempts) == ("queued", 0)
    stack.start("worker")
    assert stack.wait(run_id, lambda run: run.state in ("succeeded", "failed"), "its end").state == "succeeded"
    assert stack.points(run_id)["loss"] == expected(STEPS)
    assert stack.attempts(run_id)[1][1] >= 15


def test_cancel_by_rest_frees_the_child(stack: Stack) -> None:
    run_id = stack.submit(10_000, 1000)
    stack.wait(run_id, lambda run: run.progress_step >= 5, "step 5")
    headers = {"Authorization": f"Bearer {stack.token}"}
    assert httpx.post(f"{stack.url}/api/v1/runs/{run_id}/cancel", headers=headers).json()["state"] == "cancelling"
    began = time.monotonic()
    stack.wait(run_id, lambda run: run.state == "cancelled", "cancelled", 30)
    assert time.monotonic() - began < 30
    assert not any("spec.json" in part for p in psutil.Process(stack.processes["worker"].pid).children(recursive=True) for part in p.cmdline())  # fmt: skip


def test_without_redis_from_start_to_end(stack: Stack) -> None:
    stack.stop("redis")
    try:
        began = time.monotonic()
        run_id = stack.submit(30, 10)
        assert time.monotonic() - began < 5, "the web waited for Redis"
        stack.wait(run_id, lambda run: run.state != "queued", "the start", 20)
        assert stack.wait(run_id, lambda run: run.state in ("succeeded", "failed"), "its end", 60).state == "succeeded"
        assert stack.points(run_id)["loss"] == expected(30)
    finally:
        stack.start("redis")


def test_frozen_worker_loses_its_run(stack: Stack) -> None:
    """SIGSTOP to every process of the worker for longer than the lease: the run goes round, the zombie says nothing."""
    run_id = stack.submit(STEPS, 10)
    stack.wait(run_id, lambda run: run.progress_step >= 12, "step 12")
    worker = psutil.Process(stack.processes["worker"].pid)
    frozen = [worker, *worker.children(recursive=True)]
    for process in frozen:
        os.kill(process.pid, signal.SIGSTOP)
    stack.wait(run_id, lambda run: run.state == "queued", "the reaper", 60)
    for process in frozen:
        os.kill(process.pid, signal.SIGCONT)
    assert stack.wait(run_id, lambda run: run.state in ("succeeded", "failed"), "its end").state == "succeeded"
    assert stack.points(run_id)["loss"] == expected(STEPS)
    assert len(stack.attempts(run_id)) == 2


def test_the_stack_ends_without_leftovers(stack: Stack) -> None:
    pids = [
        p.pid for name in ("beat", "worker", "web") for p in psutil.Process(stack.processes[name].pid).children(True)
    ]
    for name in ("beat", "worker", "web"):
        assert stack.stop(name) < 40
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "no process left", 10)
