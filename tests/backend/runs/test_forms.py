"""What the form of a new run offers first."""

from datetime import timedelta
from pathlib import Path

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.db import Sessions, unit_of_work
from backend.registry import service as registry
from backend.runs import forms, leases, readout, service
from backend.runs.specs import SFTSpec
from backend.runs.tables import Run, RunAttempt
from tests.backend.runs.material import Material, claim, conclude, hello, record, started, steps, submit, write_model


def test_runs_to_be_compared_start_from_the_same_model(
    sessions: Sessions, engineer: Actor, material: Material, tmp_path: Path
) -> None:
    demonstrations = _demonstrations(sessions, engineer, material)
    with unit_of_work(sessions) as session:
        imitated = service.submit_run(
            session, engineer, material.project_id, SFTSpec(base_model=material.model_id, dataset=demonstrations)
        )
        preferred = service.submit_run(session, engineer, material.project_id, material.spec())
        for run, name in ((imitated, "imitates"), (preferred, "prefers")):
            model = registry.register_folder(session, material.project_id, write_model(tmp_path / name), name)
            model.run_id = run.id
    with sessions() as session:

        def offered(method: str) -> list[str]:
            models = forms.base_models(session, engineer, material.project_id, method)
            return [str(model["label"]).split(" ·")[0] for model in models]

        assert offered("sft") == ["tiny", "imitates", "prefers"]
        for method in ("dpo", "grpo", "reward"):
            assert offered(method) == ["imitates", "tiny", "prefers"]


def test_the_pace_is_that_of_the_steps_and_not_of_what_comes_before_them(
    sessions: Sessions, engineer: Actor, material: Material
) -> None:
    run_id = submit(sessions, engineer, material, steps=8)
    hello(sessions)
    claimed = claim(sessions, resume=4)
    record(sessions, claimed, 0, [started(8, 4), *steps(5, 8)])
    with sessions() as session:
        assert readout.pace(session, material.project_id, "dpo") is None, "it has not finished"
    conclude(sessions, claimed, leases.Ending("succeeded", step=8))
    with unit_of_work(sessions) as session:
        run = session.get_one(Run, run_id)
        attempt = session.get_one(RunAttempt, (run_id, run.attempt))
        assert run.started_at
        attempt.working_at = run.started_at + timedelta(seconds=9)
        run.progress_at = run.started_at + timedelta(seconds=11)
    with sessions() as session:
        assert readout.pace(session, material.project_id, "dpo") == {"run": run_id, "seconds": 0.5}


def _demonstrations(sessions: Sessions, engineer: Actor, material: Material) -> int:
    with unit_of_work(sessions) as session:
        dataset = datasets.create_dataset(session, engineer, material.project_id, "demonstrations")
        rows = [{"prompt": f"{n} + 1?", "completion": str(n + 1)} for n in range(10)]
        version = datasets.create_version(
            session, dataset.id, rows, RowType.PROMPT_COMPLETION, origin={"kind": "test"}, created_by=engineer.person_id
        )
        return version.id
