"""A spec that cannot work is refused before it queues, with the field and the remedy."""

import json
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.db import Sessions, unit_of_work
from backend.registry.tables import Model
from backend.runs import checks, service, specs
from backend.runs.leases import Machine, worker_heard
from backend.runs.tables import Run, Worker
from tests.backend.runs.material import WORKER, Material, submit

NUMBER = {"kind": "number", "column": "answer"}
SEVERAL: dict[RowType, dict[str, Any]] = {
    RowType.PROMPT_ONLY: {"prompt": "{n}?", "answer": "{n}"},
    RowType.SCORED: {"prompt": "{n}?", "completion": "{n}", "scores": {"helpful": 4.0}},
    RowType.STEPWISE: {"prompt": "{n}?", "completions": ["a", "{n}"], "labels": [True, False]},
}


class Stock:
    """A project with rows of several types and models of several kinds."""

    def __init__(self, sessions: Sessions, actor: Actor, material: Material) -> None:
        self.sessions, self.actor, self.material = sessions, actor, material
        with unit_of_work(sessions) as session:
            self.versions = {RowType.PREFERENCE: material.version_id}
            for row_type, row in SEVERAL.items():
                self.versions[row_type] = self._version(session, row_type, row)
            self.reward = self._model(session, "rm", run=self._run("reward"))
            self.attributes = self._model(session, "arm", run=self._run("attribute_reward"))
            self.process = self._model(session, "prm", run=self._run("process_reward"))
            self.registered = self._model(session, "prm from files", architecture="LlamaForTokenClassification")

    def _version(self, session: Session, row_type: RowType, row: dict[str, Any]) -> int:
        dataset = datasets.create_dataset(session, self.actor, self.material.project_id, row_type.value)
        rows = [json.loads(json.dumps(row).replace("{n}", str(n))) for n in range(5)]
        made = datasets.create_version(session, dataset.id, rows, row_type, origin={"kind": "test"}, created_by=None)
        return made.id

    def _run(self, method: str) -> int:
        run_id = submit(self.sessions, self.actor, self.material)
        with unit_of_work(self.sessions) as session:
            session.get_one(Run, run_id).method = method
        return run_id

    def _model(self, session: Session, name: str, run: int | None = None, architecture: str = "") -> int:
        model = Model(
            project_id=self.material.project_id, name=name, kind="reward", manifest=[], parameters=1, dtype="F32",
            architecture=architecture, size_bytes=1, run_id=run, step=1 if run else None,
        )  # fmt: skip
        session.add(model)
        session.flush()
        return model.id

    def grpo(self, *components: dict[str, Any], **more: Any) -> specs.AnySpec:
        """A spec over the prompts."""
        return specs.SPEC.validate_python(
            {
                "method": "grpo",
                "base_model": self.material.model_id,
                "dataset": self.versions[RowType.PROMPT_ONLY],
                "rewards": {"components": components or [NUMBER]},
                **more,
            }
        )

    def spec(self, method: str, row_type: RowType, **more: Any) -> specs.AnySpec:
        """A spec of any other method."""
        base = more.pop("base_model", self.material.model_id)
        return specs.SPEC.validate_python(
            {"method": method, "base_model": base, "dataset": self.versions[row_type], **more}
        )

    def refused(self, spec: specs.AnySpec) -> tuple[str, str]:
        """(field, what it says and the remedy)."""
        with self.sessions() as session, pytest.raises(checks.InvalidSpec) as error:
            service.submit_run(session, self.actor, self.material.project_id, spec)
        assert error.value.remedy
        return error.value.fields["field"], f"{error.value.detail} {error.value.remedy}"

    def taken(self, spec: specs.AnySpec) -> Run:
        """The queued run."""
        with unit_of_work(self.sessions) as session:
            return service.submit_run(session, self.actor, self.material.project_id, spec)


@pytest.fixture
def stock(sessions: Sessions, engineer: Actor, material: Material) -> Stock:
    return Stock(sessions, engineer, material)


def _worker(sessions: Sessions, gpus: int) -> None:
    cards = [{"name": "GPU", "memory_bytes": 1, "used_bytes": 0}] * gpus
    with unit_of_work(sessions) as session:
        worker_heard(session, Machine(**{**vars(WORKER), "name": f"has-{gpus}", "devices": cards}), fresh=True)


def test_rows_must_fit_the_method(stock: Stock) -> None:
    field, said = stock.refused(stock.spec("process_reward", RowType.SCORED))
    assert field == "dataset"
    assert "stepwise rows" in said
    assert stock.taken(stock.spec("kto", RowType.PREFERENCE)).name == "KTO on tiny, β 0.1"
    stock.taken(stock.spec("process_reward", RowType.STEPWISE))


def test_columns_that_a_reward_reads_must_be_there(stock: Stock) -> None:
    field, said = stock.refused(stock.grpo({"kind": "length"}, {"kind": "code", "column": "tests"}))
    assert field == "rewards.components[1].column"
    assert "it has prompt, answer" in said
    stock.taken(stock.grpo())
    for flag, column in (("use_margin", "margin"), ("use_probability", "probability")):
        field, said = stock.refused(stock.spec("reward", RowType.PREFERENCE, **{flag: True}))
        assert (field, column in said) == (flag, True)


def test_programs_need_a_worker_whose_sandbox_holds(stock: Stock, sessions: Sessions) -> None:
    code = {"kind": "code", "column": "answer"}
    stock.taken(stock.grpo(code))  # nothing is known of any worker's sandbox
    broken = {"tier": None, "reason": "bwrap is not installed", "remedy": "Install bubblewrap."}

    def heard(name: str, sandbox: dict[str, str | None] | None) -> None:
        with unit_of_work(sessions) as session:
            worker_heard(session, Machine(**{**vars(WORKER), "name": name, "sandbox": sandbox}), fresh=True)

    with unit_of_work(sessions) as session:
        for name in session.scalars(select(Worker.name)).all():
            worker_heard(session, Machine(**{**vars(WORKER), "name": name, "sandbox": broken}))
    heard("a", broken)
    field, said = stock.refused(stock.grpo({"kind": "length"}, code))
    assert field == "rewards.components[1]"
    assert "bwrap is not installed" in said
    assert "Install bubblewrap." in said
    stock.taken(stock.grpo({"kind": "length"}))
    heard("b", None)
    stock.taken(stock.grpo(code))
    heard("b", {"tier": "landlock"})
    stock.taken(stock.grpo(code))


def test_attributes_must_be_in_the_rows(stock: Stock) -> None:
    field, said = stock.refused(stock.spec("attribute_reward", RowType.SCORED, attributes={"helpful": 1, "kind": 1}))
    assert field == "attributes.kind"
    assert "they have helpful" in said
    stock.taken(stock.spec("attribute_reward", RowType.SCORED, attributes={"helpful": -0.5}))


def test_models_that_score_must_be_of_the_right_kind(stock: Stock) -> None:
    def rewarded(*ids: int) -> specs.AnySpec:
        return stock.grpo({"kind": "reward_model", "models": list(ids)})

    def judged(model: int) -> specs.AnySpec:
        return stock.grpo(NUMBER, {"kind": "process_reward", "model": model})

    assert stock.refused(rewarded(999)) == (
        "rewards.components[0].models[0]", "The project has no model 999. Choose a model of the project.",
    )  # fmt: skip
    field, said = stock.refused(rewarded(stock.reward, stock.material.model_id))
    assert field == "rewards.components[0].models[1]"
    assert "writes text and gives no score" in said
    for steps in (stock.process, stock.registered):
        assert "scores steps" in stock.refused(rewarded(steps))[1]
        stock.taken(judged(steps))
    field, said = stock.refused(judged(stock.reward))
    assert field == "rewards.components[1].model"
    assert "scores whole texts" in said
    stock.taken(rewarded(stock.reward, stock.attributes))


def test_a_reward_model_starts_no_policy_and_only_its_own_kind(stock: Stock) -> None:
    field, said = stock.refused(stock.spec("sft", RowType.PREFERENCE, base_model=stock.reward))
    assert field == "base_model"
    assert "no words" in said
    field, said = stock.refused(stock.spec("process_reward", RowType.STEPWISE, base_model=stock.reward))
    assert field == "base_model"
    assert "another head" in said
    stock.taken(stock.spec("reward", RowType.PREFERENCE, base_model=stock.reward))


def test_completions_must_leave_room_for_a_prompt_and_warm_up_for_the_run(stock: Stock) -> None:
    field, said = stock.refused(stock.grpo(max_length=128, sampling={"max_new_tokens": 128}))
    assert field == "sampling.max_new_tokens"
    assert "no room for a prompt in 128" in said
    stock.taken(stock.grpo(max_length=129, sampling={"max_new_tokens": 128}))
    assert stock.refused(stock.grpo(optimization={"steps": 5, "warmup_steps": 6}))[0] == "optimization.warmup_steps"


def test_machines_must_be_able_to(stock: Stock, sessions: Sessions) -> None:
    small = stock.grpo(weights={"kind": "qlora"})
    spread = stock.spec("dpo", RowType.PREFERENCE, devices={"kind": "fsdp", "processes": 4})
    copies = stock.grpo(devices={"kind": "data_parallel", "processes": 4})
    stock.taken(small)  # nobody is there yet: the run waits for who comes
    _worker(sessions, 0)
    field, said = stock.refused(small)
    assert field == "weights"
    assert "needs a GPU" in said
    assert "no worker has one" in stock.refused(spread)[1]
    stock.taken(copies)  # processes share the cores of a machine without GPU
    _worker(sessions, 2)
    stock.taken(small)
    for asked in (spread, copies):
        field, said = stock.refused(asked)
        assert field == "devices.processes"
        assert "the largest worker has 2" in said
    _worker(sessions, 4)
    stock.taken(spread)


def test_runs_are_called_what_people_call_them(stock: Stock) -> None:
    variants: dict[str, dict[str, Any]] = {
        "GRPO on tiny": {},
        "GRPO on tiny, β 0.04": {"kl": {"beta": {"kind": "fixed", "beta": 0.04}, "place": "loss", "estimator": "k3"}},
        "Dr. GRPO on tiny": {"advantage": {"kind": "group", "scale": "none"}, "average": "constant"},
        "DAPO on tiny": {"groups": {"kind": "resample"}},
        "GSPO on tiny": {"ratio": "sequence"},
        "RLOO on tiny": {"advantage": {"kind": "leave_one_out"}},
        "REINFORCE on tiny": {"advantage": {"kind": "batch"}},
    }
    for name, more in variants.items():
        assert stock.taken(stock.grpo(**more)).name == name
    for kind, name in (("ipo", "IPO on tiny, β 0.1"), ("hinge", "Hinge DPO on tiny, β 0.1"), ("robust", "Robust DPO on tiny, β 0.1")):  # fmt: skip
        assert stock.taken(stock.spec("dpo", RowType.PREFERENCE, loss={"kind": kind})).name == name
    assert stock.taken(stock.spec("simpo", RowType.PREFERENCE)).name == "SimPO on tiny, β 2"
    assert stock.taken(stock.spec("orpo", RowType.PREFERENCE)).name == "ORPO on tiny"


def test_old_specs_are_still_read() -> None:
    """As the first version of the studio stored them."""
    old = {
        "base_model": 1, "dataset": 2, "weights": {"kind": "lora", "rank": 8, "alpha": 16, "dropout": 0}, "max_length": 128, "seed": 0,
        "optimization": {"steps": 100, "batch_size": 32, "accumulation": 1, "learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 5,
                         "weight_decay": 0, "beta2": 0.999, "max_gradient_norm": 1},
        "evaluation": {"held_out": 0.1, "every_steps": 20, "max_rows": 128, "completions": 8, "max_new_tokens": 48},
        "checkpoints": {"every_steps": 20, "keep": 2},
    }  # fmt: skip
    sigmoid = {"kind": "sigmoid", "label_smoothing": 0, "sft_weight": 1}
    for more in (
        {"method": "sft", "completion_only": True},
        {"method": "reward", "use_margin": False, "centering": 0.01},
        {"method": "dpo", "loss": sigmoid, "beta": 0.5},
        {"method": "dpo", "loss": {"kind": "ipo"}, "beta": 5},
    ):
        spec = specs.SPEC.validate_python({**old, **more})
        assert (spec.optimization.steps, spec.weights.kind, spec.devices.kind) == (100, "lora", "one")


def test_several_seeds_are_all_or_none(stock: Stock, sessions: Sessions, engineer: Actor) -> None:
    spec = stock.spec("reward", RowType.PREFERENCE, seed=3)
    for _ in range(2):  # the same key twice makes the same runs
        with unit_of_work(sessions) as session:
            runs = service.submit_seeds(
                session, engineer, stock.material.project_id, spec, 3, name="rm", idempotency_key="k"
            )
            found = [(run.id, run.name, run.spec["seed"]) for run in runs]
    assert [(name, seed) for _, name, seed in found] == [("rm, seed 3", 3), ("rm, seed 4", 4), ("rm, seed 5", 5)]
    with sessions() as session:
        before = service.rail_counts(session, engineer, stock.material.project_id)["runs"]
        assert len({run_id for run_id, _, _ in found}) == 3
    assert before == 6, "three that made the models, three seeds"
    last = stock.spec("reward", RowType.PREFERENCE, seed=2**31 - 2)
    with pytest.raises(checks.InvalidSpec), unit_of_work(sessions) as session:
        service.submit_seeds(session, engineer, stock.material.project_id, last, 3)
    with sessions() as session:
        assert service.rail_counts(session, engineer, stock.material.project_id)["runs"] == before
