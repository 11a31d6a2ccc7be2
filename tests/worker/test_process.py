"""One run, one child process: real processes, real Postgres, killed and stopped wherever it hurts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import text

from backend.accounts.actors import Actor
from backend.db import Sessions, unit_of_work
from backend.embedded import wait_until
from backend.projects.service import ProjectName
from backend.registry import service as registry
from backend.runs import attempts, leases, metrics, service
from backend.runs.specs import DataParallel, GRPOSpec
from backend.runs.specs.rewards import RewardModelScore, Rewards
from backend.runs.tables import Run
from tests.backend.runs.material import Material, hello, make_material, state_of, submit, write_model
from worker.places import MARK, is_gone, mark_of, place
from worker.process import bury_dead, execute_next
from worker.supervision import Supervision

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "tests/worker/fake_recipe.py")]
QUICK: dict[str, Any] = {
    "lease_seconds": 2.0, "heartbeat_seconds": 0.2, "cancel_grace_seconds": 1.0, "drain_grace_seconds": 1.0,
    "pause_seconds": 0.0, "ship_seconds": 0.05,
}  # fmt: skip


@pytest.fixture
def material(sessions: Sessions, engineer: Actor, project: ProjectName, tmp_path: Path) -> Material:
    with unit_of_work(sessions) as session:
        found = make_material(session, engineer, project.id, tmp_path)
    hello(sessions)
    return found


@pytest.fixture
def how(tmp_path: Path) -> Supervision:
    return Supervision(home=tmp_path, command=COMMAND, drain=tmp_path / "drain", **QUICK)


@pytest.fixture
def behave(tmp_path: Path) -> Callable[..., None]:
    def write(**behavior: Any) -> None:
        (tmp_path / "behavior.json").write_text(json.dumps(behavior))

    return write


class Apart:
    """A supervisor in its own process, and what can be done to it."""

    def __init__(self, sessions: Sessions, url: str, home: Path) -> None:
        given = {"url": url, "home": str(home), "artifacts": str(home / "artifacts"), "command": COMMAND, "how": QUICK}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker.supervisor", json.dumps(given)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def child(self) -> psutil.Process:
        """The recipe's process."""
        found = psutil.Process(self.process.pid).children()
        return found[0]

    def said(self) -> str:
        """How it says the attempt ended."""
        return self.process.communicate(timeout=60)[0].strip()


@pytest.fixture
def apart(sessions: Sessions, database_url: str, tmp_path: Path) -> Iterator[Callable[[], Apart]]:
    made: list[Apart] = []

    def make() -> Apart:
        made.append(Apart(sessions, database_url, tmp_path))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        if one.process.stdout is not None:
            one.process.stdout.close()


def progress(sessions: Sessions, run_id: int) -> int:
    with sessions() as session:
        return session.get_one(Run, run_id).progress_step


def wait_for_step(sessions: Sessions, run_id: int, step: int) -> None:
    wait_until(lambda: progress(sessions, run_id) >= step, f"step {step}")


def curve(sessions: Sessions, run_id: int) -> list[tuple[int, Any]]:
    with sessions() as session:
        return metrics.points_of(session, run_id, "loss")


def expected(steps: int) -> list[tuple[int, float]]:
    state, points = 1.0, []
    for step in range(1, steps + 1):
        state = (state * 1.618033 + step) % 1.0
        points.append((step, state))
    return points


def attempts_of(sessions: Sessions, run_id: int) -> int:
    with sessions() as session:
        return session.get_one(Run, run_id).attempt


def marked(sessions: Sessions, run_id: int) -> list[int]:
    """Processes of the run that live."""
    start = mark_of(sessions, run_id, 0).removesuffix("0")
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(start) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_run_from_end_to_end(sessions: Sessions, engineer: Actor, material: Material, how: Supervision) -> None:
    run_id = submit(sessions, engineer, material)
    assert execute_next(sessions, "gpu-1", how) == "succeeded"
    assert execute_next(sessions, "gpu-1", how) is None
    assert curve(sessions, run_id) == expected(40)
    with sessions() as session:
        run = session.get_one(Run, run_id)
        assert (run.state, run.progress_step, run.lease_owner) == ("succeeded", 40, None)
        (model,) = service.models_of(session, run)
        assert (model.run_id, model.step, model.adapter_of_id) == (run_id, 40, None)
        assert [c.step for c in service.checkpoints(session, engineer, run_id)] == [40, 35]
        assert "the stand-in begins" in [line.data["text"] for line in service.log_lines(session, engineer, run_id)]
        assert dict(metrics.points_of(session, run_id, "grad_norm"))[3] == "nan"


def test_no_secret_reaches_the_recipe(
    sessions: Sessions,
    engineer: Actor,
    material: Material,
    how: Supervision,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary")
    script = "import os, sys, pathlib; pathlib.Path(sys.argv[1]).with_name('env').write_text(repr(dict(os.environ)))"
    run_id = submit(sessions, engineer, material)
    execute_next(sessions, "gpu-1", Supervision(home=tmp_path, command=[sys.executable, "-c", script], **QUICK))
    environment = (tmp_path / "runs" / str(run_id) / "a1" / "env").read_text()
    assert "canary" not in environment
    assert "HF_HUB_OFFLINE" in environment


def test_every_model_of_the_spec_is_laid_out(
    sessions: Sessions, engineer: Actor, material: Material, tmp_path: Path
) -> None:
    """An ensemble of a whole reward model and an adapter on another: each under its id, the base beside the adapter."""
    with unit_of_work(sessions) as session:
        whole, base = (
            registry.register_folder(session, material.project_id, write_model(tmp_path / name), name, kind="reward")
            for name in ("whole", "base")
        )
        folder = write_model(tmp_path / "adapter")
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        (folder / "config.json").unlink()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "SEQ_CLS"}')
        adapter = registry.register_model(
            session,
            project_id=material.project_id,
            name="adapter",
            kind="reward",
            manifest=registry.artifacts_of(session).put_folder(folder),
            adapter_of_id=base.id,
        )
        ids = [whole.id, adapter.id]
        spec = GRPOSpec(
            base_model=material.model_id,
            dataset=material.version_id,
            rewards=Rewards(components=[RewardModelScore(models=ids)]),
        )
        run_id = service.submit_run(session, engineer, material.project_id, spec).id
    script = """
import json, pathlib, sys
launch = json.loads(pathlib.Path(sys.argv[1]).read_text())
there = {
    number: [sorted(p.name for p in pathlib.Path(model[key]).iterdir()) if model[key] else None for key in ("folder", "adapter_base")]
    for number, model in launch["models"].items()
}
there["on the policy's own weights"] = [
    number for number, model in launch["models"].items() if model["adapter_base"] == launch["base_model"]
]
pathlib.Path(sys.argv[1]).with_name("there.json").write_text(json.dumps(there))
"""
    execute_next(sessions, "gpu-1", Supervision(home=tmp_path, command=[sys.executable, "-c", script], **QUICK))
    attempt = tmp_path / "runs" / str(run_id) / "a1"
    assert json.loads((attempt / "there.json").read_text()) == {
        str(whole.id): [["config.json", "model.safetensors"], None],
        str(adapter.id): [["adapter_config.json", "adapter_model.safetensors"], ["config.json", "model.safetensors"]],
        # the adapter's base has the same files as the policy's: one folder, so that one backbone can play both
        "on the policy's own weights": [str(adapter.id)],
    }
    assert not (attempt / "models").exists()  # nothing of it stays behind


@pytest.mark.slow
def test_several_processes_are_started_and_one_failure_ends_them(
    sessions: Sessions, engineer: Actor, material: Material, tmp_path: Path
) -> None:
    run_id = submit(sessions, engineer, material, devices=DataParallel(processes=2))
    script = """
import os, pathlib, sys, time
rank = os.environ["RANK"]
pathlib.Path(sys.argv[1]).with_name("rank" + rank).write_text(os.environ["WORLD_SIZE"])
time.sleep(0.5)
if rank == "1":
    sys.exit("out of luck")
time.sleep(600)
"""
    asked = time.monotonic()
    how = Supervision(home=tmp_path, command=[sys.executable, "-c", script], **QUICK)
    assert execute_next(sessions, "gpu-1", how) == "lost"
    assert time.monotonic() - asked < 90
    attempt = tmp_path / "runs" / str(run_id) / "a1"
    assert [(attempt / f"rank{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    assert marked(sessions, run_id) == []
    with sessions() as session:  # and not what torchrun says about it, at length
        assert (session.get_one(Run, run_id).exit_reason or "").endswith("Its last words: out of luck")


@pytest.mark.parametrize("moment", [0, 4, 17, 31])
def test_killed_child_goes_on_with_the_same_curve(
    sessions: Sessions, engineer: Actor, material: Material, how: Supervision, behave: Callable[..., None], moment: int
) -> None:
    behave(at=moment or 1, exit=3, only=1)
    run_id = submit(sessions, engineer, material)
    assert execute_next(sessions, "gpu-1", how) == "lost"
    assert state_of(sessions, run_id) == "queued"
    assert execute_next(sessions, "gpu-1", how) == "succeeded"
    assert curve(sessions, run_id) == expected(40)
    with sessions() as session:
        resumed = session.scalar(text(f"select resume_step from run_attempt where run_id = {run_id} and attempt = 2"))
        assert resumed == moment // 5 * 5


def test_poison_stops_after_three(
    sessions: Sessions, engineer: Actor, material: Material, how: Supervision, behave: Callable[..., None]
) -> None:
    behave(at=2, exit=1)
    run_id = submit(sessions, engineer, material)
    for _ in range(3):
        assert execute_next(sessions, "gpu-1", how) == "lost"
    with sessions() as session:
        run = session.get_one(Run, run_id)
        assert run.state == "failed"
        assert "out of luck" in (run.exit_reason or "")


def test_cannot_work_fails_at_once(
    sessions: Sessions, engineer: Actor, material: Material, how: Supervision, behave: Callable[..., None]
) -> None:
    behave(cannot_work=True)
    run_id = submit(sessions, engineer, material)
    assert execute_next(sessions, "gpu-1", how) == "failed"
    with sessions() as session:
        run = session.get_one(Run, run_id)
        assert (run.state, run.exit_reason, run.remedy) == ("failed", "The rows are empty.", "Choose others.")


@pytest.mark.parametrize("behavior", [{}, {"deaf": True}, {"at": 12, "hang": True}], ids=["willing", "deaf", "hanging"])
def test_cancel_frees_everything(
    sessions: Sessions,
    engineer: Actor,
    material: Material,
    apart: Callable[[], Apart],
    behave: Callable[..., None],
    behavior: dict[str, Any],
) -> None:
    behave(seconds=0.02, grandchild=True, **behavior)
    run_id = submit(sessions, engineer, material, steps=2000)
    supervisor = apart()
    wait_for_step(sessions, run_id, 11)
    assert len(marked(sessions, run_id)) == 2
    with unit_of_work(sessions) as session:
        service.cancel_run(session, engineer, run_id)
    asked = time.monotonic()
    wait_until(lambda: state_of(sessions, run_id) == "cancelled", "cancelled", 30)
    assert time.monotonic() - asked < 10
    assert supervisor.said() == "cancelled"
    assert marked(sessions, run_id) == []


def test_drain_saves_and_gives_back(
    sessions: Sessions,
    engineer: Actor,
    material: Material,
    apart: Callable[[], Apart],
    behave: Callable[..., None],
    tmp_path: Path,
    how: Supervision,
) -> None:
    behave(seconds=0.02)
    run_id = submit(sessions, engineer, material, steps=60, every=1000)
    supervisor = apart()
    wait_for_step(sessions, run_id, 11)
    (tmp_path / "drain").touch()
    assert supervisor.said() == "drained"
    assert state_of(sessions, run_id) == "queued"
    (tmp_path / "drain").unlink()
    with sessions() as session:
        (saved,) = attempts.saved_states(session, run_id)
        assert saved.step >= 11
        assert session.get_one(Run, run_id).fruitless_attempts == 0
    assert execute_next(sessions, "gpu-1", how) == "succeeded"
    assert curve(sessions, run_id) == expected(60)


def test_killed_supervisor_takes_its_child_along_and_is_buried(
    sessions: Sessions,
    engineer: Actor,
    material: Material,
    apart: Callable[[], Apart],
    behave: Callable[..., None],
    how: Supervision,
) -> None:
    behave(seconds=0.02, grandchild=True, only=1)
    run_id = submit(sessions, engineer, material)
    supervisor = apart()
    wait_for_step(sessions, run_id, 8)
    child = supervisor.child()
    assert bury_dead(sessions, "gpu-1", pause_seconds=0) == 0
    supervisor.process.kill()
    supervisor.process.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child's death", 5)
    assert bury_dead(sessions, "gpu-1", pause_seconds=0) == 1
    wait_until(lambda: marked(sessions, run_id) == [], "nothing of it is left", 5)
    assert execute_next(sessions, "gpu-1", how) == "succeeded"
    assert curve(sessions, run_id) == expected(40)


def test_zombie_publishes_nothing(
    sessions: Sessions,
    engineer: Actor,
    material: Material,
    apart: Callable[[], Apart],
    behave: Callable[..., None],
    how: Supervision,
) -> None:
    """Stopped for longer than its lease, it wakes when somebody else has the run: kills its child and is silent."""
    behave(seconds=0.02, only=1)
    run_id = submit(sessions, engineer, material, steps=300)
    supervisor = apart()
    wait_for_step(sessions, run_id, 8)
    child = supervisor.child()
    os.kill(supervisor.process.pid, signal.SIGSTOP)
    with unit_of_work(sessions) as session:
        session.execute(text("update run set lease_until = clock_timestamp() - interval '1000 s'"))
    with unit_of_work(sessions) as session:
        assert leases.reap(session, lease_seconds=2, pause_seconds=0) == [run_id]
    assert child.is_running()
    assert execute_next(sessions, "gpu-1", how) == "succeeded"
    before = curve(sessions, run_id)
    os.kill(supervisor.process.pid, signal.SIGCONT)
    assert supervisor.said() == "lost"
    assert not child.is_running()
    assert curve(sessions, run_id) == before == expected(300)
    assert state_of(sessions, run_id) == "succeeded"


def test_damaged_checkpoint_is_passed_over(
    sessions: Sessions, engineer: Actor, material: Material, how: Supervision, behave: Callable[..., None]
) -> None:
    behave(at=23, exit=3, only=1)
    run_id = submit(sessions, engineer, material)
    execute_next(sessions, "gpu-1", how)
    with sessions() as session:
        newest = attempts.saved_states(session, run_id)[0]
        entry = next(entry for entry in newest.manifest if entry.name == "state.json")
        path = session.info["artifacts"].local_path(entry.sha256)
    path.chmod(0o644)
    path.write_text('{"step": 20, "state": 0.0}')
    assert execute_next(sessions, "gpu-1", how) == "succeeded"
    assert curve(sessions, run_id) == expected(40)
    with sessions() as session:
        told = [line.data["text"] for line in service.log_lines(session, engineer, run_id)]
        assert any("step 20 is damaged" in line for line in told)


def test_a_hanging_child_is_given_up(
    sessions: Sessions,
    engineer: Actor,
    material: Material,
    how: Supervision,
    behave: Callable[..., None],
    tmp_path: Path,
) -> None:
    behave(at=7, hang=True, only=1)
    run_id = submit(sessions, engineer, material)
    impatient = Supervision(home=tmp_path, command=COMMAND, stall_seconds=1.0, **QUICK)
    assert execute_next(sessions, "gpu-1", impatient) == "lost"
    assert execute_next(sessions, "gpu-1", how) == "succeeded"
    assert curve(sessions, run_id) == expected(40)


def test_place_knows_the_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    where = place(process.pid)
    assert not is_gone(where)
    assert not is_gone("another boot|1|1")
    before, _, start = where.rpartition("|")
    assert is_gone(f"{before}|{int(start) - 1}")  # an earlier process had the same id
    seconds = f"{before}|{time.time() - 3600:.2f}"  # as places were written once
    assert not is_gone(seconds)
    process.communicate()
    assert is_gone(where)
    assert is_gone(seconds)


def test_a_clock_that_is_set_buries_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    where = place()
    created = psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created + 2)
    assert place() == where
    assert not is_gone(where)
