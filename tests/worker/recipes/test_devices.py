"""Several processes carry out one run: the same curve as one, one voice, one end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from backend.runs.specs import (
    FSDP,
    Checkpoints,
    DataParallel,
    DeepSpeed,
    Evaluation,
    GRPOSpec,
    KTOSpec,
    LoRA,
    OneDevice,
    Sampling,
    SFTSpec,
)
from backend.runs.specs.rewards import ExactAnswer, Rewards, SoftOverlong
from tests.worker.recipes.conftest import SPECS, Case, World
from tests.worker.running import ROOT, Attempt, run
from worker import devices
from worker.report import SpecCannotWork

SHARED = {"base_model", "dataset", "max_length", "seed", "optimization"}
TWO = DataParallel(processes=2)


def small(name: str, *, processes: int, steps: int = 6, **more: Any) -> Case:
    """One of ``SPECS`` with 8 rows a step, however many processes share them."""
    case = SPECS.get(name, UNEVEN)
    how: dict[str, Any] = {
        "optimization": case.spec.optimization.model_copy(update={"steps": steps, "batch_size": 8 // processes}),
        "evaluation": Evaluation(every_steps=3, max_rows=16, completions=2, max_new_tokens=8),
        "checkpoints": Checkpoints(every_steps=3),
    }
    if processes > 1:
        how["devices"] = DataParallel(processes=processes)
    return case._replace(spec=case.spec.model_copy(update=how | more))


UNEVEN = SPECS["dpo"]._replace(spec=KTOSpec(**SPECS["dpo"].spec.model_dump(include=SHARED), beta=1))
"""KTO on pairs: 15 of them are 30 thumbs, in batches of 8, 8, 8, 6 in one process and of 4 in two."""


PER_TOKEN = ("logits/", "entropy", "mean_token_accuracy", "min_reward", "max_reward")
"""Of pairs TRL averages these over the tokens of a batch (extremes: takes them of a batch) and then over batches, and two
batches have other averages."""


def curve(attempt: Attempt) -> dict[int, dict[str, float]]:
    left_out = () if attempt.launch.spec.method == "sft" else PER_TOKEN
    return {
        step: {key: value for key, value in values.items() if not any(name in key for name in left_out)}
        for step, values in attempt.metrics().items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "reward", pytest.param("kto", marks=pytest.mark.long)])
def test_two_processes_have_the_curve_of_one(world: World, tmp_path: Path, name: str) -> None:
    rows: dict[str, Any] = {}
    if name == "kto":
        rows = {"evaluation": Evaluation(every_steps=3, max_rows=15, completions=2, max_new_tokens=8)}
    one = run(world.launch(tmp_path / "one", small(name, processes=1, **rows)))
    two = run(world.launch(tmp_path / "two", small(name, processes=2, **rows)))
    assert two.events("started")[0]["device"] == "2 × cpu"
    expected, told = curve(one), curve(two)
    assert told.keys() == expected.keys() == set(range(7))
    for step in expected:
        assert told[step].keys() == expected[step].keys()
        assert told[step] == pytest.approx(expected[step], rel=1e-4, abs=1e-4), step
    assert [event["kind"] for event in two.events()] == [event["kind"] for event in one.events()]  # nothing twice
    for mine, theirs in zip(*(attempt.events("completions")[-1]["samples"] for attempt in (one, two)), strict=True):
        assert theirs.pop("rewards") == pytest.approx(mine.pop("rewards"), abs=1e-4)
        assert theirs == mine


@pytest.mark.slow
def test_both_stop_and_go_on_together(world: World, tmp_path: Path) -> None:
    """Only the second process is asked; the resumed run equals the one without a break, to the last bit."""
    case = small("sft_lora", processes=2, steps=9)
    whole = run(world.launch(tmp_path / "whole", case))
    first = Attempt(world.launch(tmp_path / "1", case))
    first.wait_for("metrics", 2)
    processes = {p.environ().get("RANK"): p for p in psutil.Process(first.process.pid).children(recursive=True)}
    processes["1"].send_signal(signal.SIGUSR1)
    assert first.finish(timeout=60) == 0
    end = first.events()[-1]
    assert (end["kind"], end["outcome"]) == ("finished", "stopped")
    checkpoint = first.folder / first.events("checkpoint")[-1]["folder"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    second = run(world.launch(tmp_path / "2", case, resume_from=checkpoint, attempt=2))
    told, expected = first.metrics(), whole.metrics()
    for step, values in second.metrics().items():
        told[step] = told.get(step, {}) | values
    for step in expected:
        assert told[step] == pytest.approx(expected[step], rel=1e-6), step


@pytest.mark.slow
def test_nobody_is_left_when_the_launcher_is_killed(world: World, tmp_path: Path) -> None:
    attempt = Attempt(world.launch(tmp_path, small("sft", processes=2, steps=500)))
    attempt.wait_for("metrics", 1)
    children = psutil.Process(attempt.process.pid).children(recursive=True)
    assert len([child for child in children if "worker.recipes" in child.cmdline()]) == 2
    os.kill(attempt.process.pid, signal.SIGKILL)
    attempt.finish()
    deadline = time.monotonic() + 5
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_process_too_few_is_refused(world: World, tmp_path: Path) -> None:
    """``accelerate launch --cpu`` once trained one process and called it two."""
    launch = world.launch(tmp_path, small("sft", processes=2))
    (tmp_path / "spec.json").write_text(launch.model_dump_json())
    command = [sys.executable, "-m", "worker.recipes", str(tmp_path / "spec.json")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 78
    said = json.loads((tmp_path / "events.jsonl").read_text())
    assert said["reason"] == "devices: the spec asks for 2 processes, and there are 1"


# --- what a machine cannot do, and what the trainer is told ------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "gpus", "says"),
    [
        ({"devices": FSDP()}, 0, "as many GPUs, and the run has 0"),
        ({"devices": DeepSpeed()}, 1, "as many GPUs, and the run has 1"),
        ({"devices": TWO}, 1, "as many GPUs, and the run has 1"),
        ({"devices": DataParallel(processes=1000)}, 0, "1000 processes on"),
        ({}, 2, "one process sees 2 GPUs and would take a batch for each"),
    ],
)
def test_what_the_machine_lacks_is_said(spec: dict[str, Any], gpus: int, says: str) -> None:
    asked = SFTSpec(base_model=1, dataset=1, **spec)
    with pytest.raises(SpecCannotWork, match=says) as refused:
        devices.check(asked, world=devices.processes(asked.devices), gpus=gpus)
    assert refused.value.reason.startswith("devices: ")
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("asked", "before", "after"),
    [
        (OneDevice(), None, "0"),
        (OneDevice(), "2,3", "2"),
        (OneDevice(), "GPU-8f2a", "GPU-8f2a"),
        (OneDevice(), "", ""),
        (TWO, "2,3", "2,3"),
        (TWO, None, None),
    ],
)
def test_one_process_sees_one_gpu(
    monkeypatch: pytest.MonkeyPatch, asked: Any, before: str | None, after: str | None
) -> None:
    """Transformers shares batches among all GPUs that it sees, each with a whole batch of its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before or "")
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    devices.keep_to_one(asked)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == after


@pytest.mark.parametrize("spread", [FSDP(), DeepSpeed()])
def test_what_stays_whole_is_not_spread(spread: Any) -> None:
    with pytest.raises(ValidationError, match="adapters are small"):
        SFTSpec(base_model=1, dataset=1, devices=spread, weights=LoRA())
    with pytest.raises(ValidationError, match="samples is whole on each device"):
        GRPOSpec(base_model=1, dataset=1, devices=spread, rewards=Rewards(components=[ExactAnswer()]))


def test_a_punishment_does_not_begin_at_the_first_token() -> None:
    rewards = Rewards(components=[SoftOverlong(buffer=64)])
    with pytest.raises(ValidationError, match="must be shorter than the 64 tokens"):
        GRPOSpec(base_model=1, dataset=1, rewards=rewards, sampling=Sampling(max_new_tokens=64))
    assert GRPOSpec(base_model=1, dataset=1, rewards=rewards, sampling=Sampling(max_new_tokens=65))


def test_plans_are_what_the_trainer_understands(tmp_path: Path) -> None:
    """FSDP's plan is read by the trainer's own arguments; ours needs no GPU to be understood."""
    from transformers import TrainingArguments

    def plan(**how: Any) -> TrainingArguments:
        return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **how)

    told = plan(**devices.arguments(FSDP(offload=True))).fsdp_plugin_args
    assert told["fsdp_version"] == 2
    assert told["cpu_offload"] is True
    assert told["state_dict_type"] == "FULL_STATE_DICT"
    assert "cpu_offload" not in plan(**devices.arguments(FSDP())).fsdp_plugin_args
    zero = devices.arguments(DeepSpeed(stage=3, offload=True))["deepspeed"]["zero_optimization"]
    assert (zero["stage"], zero["offload_optimizer"]["device"]) == (3, "cpu")
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
