"""Recipes as the worker starts them: a child process, a folder, events."""

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend.datasets.rows import RowType
from backend.demo import corpus
from backend.runs.events import EVENT
from backend.runs.specs import Adapter, DPOSpec, Evaluation, FullWeights, LoRA, Optimization, QLoRA
from tests.worker.recipes.conftest import SPECS, STEPS, Case, World
from tests.worker.running import BASE, Attempt, launch, run, write_rows

Finished = Callable[[str], Attempt]


def changed(name: str, **more: Any) -> Case:
    """One of ``SPECS`` with another spec."""
    case = SPECS[name]
    return case._replace(spec=case.spec.model_copy(update=more))


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
class TestEveryMethod:
    def test_it_says_what_it_does(self, finished: Finished, name: str) -> None:
        attempt = finished(name)
        for line in (attempt.folder / "events.jsonl").read_bytes().splitlines():
            EVENT.validate_json(line)
        started = attempt.events("started")[0]
        assert started["total_steps"] == STEPS
        assert started["train_rows"] + started["held_out_rows"] <= 150
        assert 0 < started["trainable_parameters"] <= started["total_parameters"]
        adapter = isinstance(SPECS[name].spec.weights, Adapter)
        assert adapter == (started["trainable_parameters"] < started["total_parameters"] / 2)
        assert attempt.events()[-1] | {"at": None} == {
            "at": None,
            "kind": "finished",
            "outcome": "completed",
            "step": STEPS,
            "model": "model",
        }
        assert (attempt.folder / "model" / "tokenizer.json").exists()
        weights = "adapter_model" if adapter else "model"
        assert load_file(attempt.folder / "model" / f"{weights}.safetensors")

    def test_every_step_is_logged_and_held_out_rows_are_looked_at(self, finished: Finished, name: str) -> None:
        metrics = finished(name).metrics()
        assert sorted(metrics) == list(range(STEPS + 1))
        for step in range(1, STEPS + 1):
            assert {"loss", "grad_norm", "learning_rate", "num_tokens"} <= set(metrics[step])
        evaluated = [step for step in metrics if "eval_loss" in metrics[step]]
        assert sorted(evaluated) == [0, 5, 10, STEPS]
        for step in evaluated:
            assert SPECS[name].held_out <= set(metrics[step])
        lines = [e for e in finished(name).events("metrics") if "eval_loss" in e["values"]]
        assert len(lines) == len(evaluated)  # none twice

    def test_it_learns_what_is_held_out(self, finished: Finished, name: str) -> None:
        """A dozen steps; three seeds of the demo's own specs are in ``tests/benchmarks/learning.py``."""
        before, after = (finished(name).metrics()[step] for step in (0, STEPS))
        for key in SPECS[name].up:
            assert after[key] > before[key], key
        for key in SPECS[name].down:
            assert after[key] < before[key], key
        if "eval_rewards/accuracies" in before:  # the policy is its reference: every pair is a tie
            assert before["eval_rewards/accuracies"] == 0.5

    def test_the_same_texts_are_shown_at_every_evaluation(self, finished: Finished, name: str) -> None:
        shown = finished(name).events("completions")
        assert [event["step"] for event in shown] == [0, 5, 10, STEPS]
        assert len(shown[0]["samples"]) == 2
        for event in shown:
            assert [s["prompt"] for s in event["samples"]] == [s["prompt"] for s in shown[0]["samples"]]
            for sample in event["samples"]:
                assert set(sample["rewards"]) == SPECS[name].scores

    def test_only_the_newest_checkpoints_are_kept_and_verify(self, finished: Finished, name: str) -> None:
        attempt = finished(name)
        said = [event["step"] for event in attempt.events("checkpoint")]
        assert said == [4, 8, STEPS]
        kept = sorted(path.name for path in (attempt.folder / "checkpoints").glob("step-*"))
        assert kept == [f"step-{STEPS}", "step-8"]
        for entry in json.loads((attempt.folder / "checkpoints" / "step-8" / "manifest.json").read_text()):
            content = (attempt.folder / "checkpoints" / "step-8" / entry["name"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size"], entry["sha256"])

    def test_killed_and_resumed_it_equals_the_run_without_a_break(
        self, finished: Finished, world: World, tmp_path: Path, name: str
    ) -> None:
        """kill -9 after step 6; a second attempt goes on from step 4. Numbers agree to 1e-6, weights exactly."""
        whole = finished(name)
        first = Attempt(world.launch(tmp_path / "1", name))
        first.wait_for("metrics", 6)
        os.kill(first.process.pid, signal.SIGKILL)
        first.finish()
        checkpoint = first.folder / first.events("checkpoint")[-1]["folder"]
        again = world.launch(tmp_path / "2", name, resume_from=checkpoint, attempt=2)
        second = run(again, fresh=name in ("sft_lora", "dpo"))
        step = int(checkpoint.name.removeprefix("step-"))
        assert second.events("started")[0]["first_step"] == step
        told = first.metrics() | second.metrics()
        expected = whole.metrics()
        assert sorted(second.metrics()) == list(range(step + 1, STEPS + 1))
        for number in range(STEPS + 1):
            assert told[number].keys() == expected[number].keys()
            assert told[number] == pytest.approx(expected[number], rel=1e-6, abs=1e-12), number
        texts = {e["step"]: e["samples"] for e in whole.events("completions")}
        for event in second.events("completions"):
            assert event["samples"] == texts[event["step"]]
        for path in (whole.folder / "model").glob("*.safetensors"):
            ours = load_file(second.folder / "model" / path.name)
            for key, tensor in load_file(path).items():
                assert tensor.equal(ours[key]), key


# --- stopping ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_run_saves_and_goes_on_as_if_nothing_had_happened(
    finished: Finished, world: World, tmp_path: Path
) -> None:
    first = Attempt(world.launch(tmp_path / "1", "sft"))
    first.wait_for("metrics", 3)
    first.process.send_signal(signal.SIGUSR1)
    assert first.finish(timeout=20) == 0
    end = first.events()[-1]
    assert (end["kind"], end["outcome"]) == ("finished", "stopped")
    checkpoint = first.folder / first.events("checkpoint")[-1]["folder"]
    assert checkpoint.name == f"step-{end['step']}"
    second = run(world.launch(tmp_path / "2", "sft", resume_from=checkpoint))
    told, expected = first.metrics(), finished("sft").metrics()
    for number, values in second.metrics().items():
        told[number] = told.get(number, {}) | values
    for number in range(STEPS + 1):
        assert told[number] == pytest.approx(expected[number], rel=1e-6), number


@pytest.mark.slow
def test_a_request_during_a_long_generation_is_answered_quickly(world: World, tmp_path: Path) -> None:
    """A thousand forced tokens per text take a minute; the request arrives while the first are being written."""
    slow = Evaluation(every_steps=1, max_rows=16, completions=64, max_new_tokens=1500)
    forgets_to_end = Optimization(steps=5, batch_size=8, learning_rate=1.0)
    case = changed("sft", evaluation=slow, max_length=2048, optimization=forgets_to_end)
    attempt = Attempt(world.launch(tmp_path / "run", case))
    attempt.wait_for("metrics", 1)
    while "eval_loss" not in attempt.metrics()[1]:  # said just before the texts are written
        assert attempt.process.poll() is None, attempt.log()
        time.sleep(0.01)
    assert not [event for event in attempt.events("completions") if event["step"] == 1]
    asked = time.monotonic()
    attempt.process.send_signal(signal.SIGTERM)
    assert attempt.finish(timeout=30) == 0
    assert time.monotonic() - asked < 15
    end = attempt.events()[-1]
    assert (end["outcome"], end["step"]) == ("stopped", 1)
    assert (attempt.folder / "checkpoints" / "step-1" / "manifest.json").exists()


@pytest.mark.slow
def test_a_request_before_the_first_step_leaves_at_once(world: World, tmp_path: Path) -> None:
    attempt = Attempt(world.launch(tmp_path / "run", "dpo"))
    deadline = time.monotonic() + 20
    while not (attempt.folder / "events.jsonl").exists():  # from then on the signal is handled
        assert time.monotonic() < deadline
        time.sleep(0.005)
    attempt.process.send_signal(signal.SIGTERM)
    assert attempt.finish(timeout=20) == 0
    assert [(e["kind"], e["outcome"], e["step"]) for e in attempt.events()] == [("finished", "stopped", 0)]


# --- adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("weights", [FullWeights(), LoRA(rank=4)], ids=["full", "lora"])
def test_continuing_an_adapter_starts_exactly_there(
    finished: Finished, world: World, tmp_path: Path, weights: Any
) -> None:
    """The reference is the merged model: before the first step policy and reference agree to the last bit."""
    adapter = finished("sft_lora").folder / "model"
    case = changed("dpo", weights=weights, optimization=Optimization(steps=1, batch_size=8, learning_rate=1e-3))
    attempt = run(world.launch(tmp_path / "run", case, base_model=adapter, adapter_base=BASE))
    before = attempt.metrics()[0]
    assert before["eval_rewards/chosen"] == before["eval_rewards/rejected"] == 0
    assert before["eval_loss"] == pytest.approx(0.693147, abs=1e-6)
    untouched = finished("dpo").metrics()[0]
    assert before["eval_logps/chosen"] != pytest.approx(untouched["eval_logps/chosen"], rel=1e-3)
    assert (attempt.folder / "model" / "model.safetensors").exists()  # full weights: two adapters are merged


# --- what cannot work --------------------------------------------------------------------------------------------


def failed(world: World, folder: Path, case: str | Case, **more: Any) -> dict[str, Any]:
    attempt = run(world.launch(folder, case, **more), expect=78)
    event = attempt.events()[-1]
    assert event["kind"] == "failed"
    assert event["remedy"]
    return event


@pytest.mark.slow
def test_a_damaged_checkpoint_is_never_resumed_silently(finished: Finished, world: World, tmp_path: Path) -> None:
    from worker.recipes.training import check_checkpoint
    from worker.report import SpecCannotWork

    good = finished("sft").folder / "checkpoints" / "step-8"
    spec = SPECS["sft"].spec
    assert check_checkpoint(good, spec)["step"] == 8
    for name, damage in {
        "optimizer.pt": lambda path: path.unlink(),
        "model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "scheduler.pt": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
        "manifest.json": lambda path: path.unlink(),
    }.items():
        bad = tmp_path / name / "step-8"
        shutil.copytree(good, bad)
        damage(bad / name)
        with pytest.raises(SpecCannotWork, match="damaged"):
            check_checkpoint(bad, spec)
    with pytest.raises(SpecCannotWork, match="another spec"):
        check_checkpoint(good, SPECS["sft_lora"].spec)
    incomplete = tmp_path / "incomplete" / "step-8"
    shutil.copytree(good, incomplete)
    manifest = json.loads((incomplete / "manifest.json").read_text())
    (incomplete / "manifest.json").write_text(json.dumps([e for e in manifest if e["name"] != "optimizer.pt"]))
    assert "optimizer.pt" in failed(world, tmp_path / "run", "sft", resume_from=incomplete)["reason"]


@pytest.mark.slow
def test_code_and_pickles_are_refused(world: World, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    assert "auto_map" in failed(world, tmp_path / "1", "sft", base_model=base)["reason"]
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert "safetensors" in failed(world, tmp_path / "2", "sft", base_model=base)["reason"]


@pytest.mark.slow
def test_what_does_not_fit_is_named(world: World, finished: Finished, tmp_path: Path) -> None:
    assert failed(world, tmp_path / "1", changed("dpo", max_length=4096))["reason"].startswith("max_length: ")
    scores = finished("reward").folder / "model"
    assert "cannot write text" in failed(world, tmp_path / "2", "sft", base_model=scores)["reason"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_four_bits_need_a_gpu(world: World, tmp_path: Path) -> None:
    refused = failed(world, tmp_path, changed("sft", weights=QLoRA()))
    assert refused["reason"].startswith("weights: ")
    assert refused["remedy"] == "Use LoRA, or a worker with a GPU."


@pytest.mark.slow
def test_rows_of_another_type_are_refused(world: World, tmp_path: Path) -> None:
    refused = failed(world, tmp_path, SPECS["dpo"]._replace(rows="demonstrations"))
    assert refused["reason"] == "dataset: the rows are prompt_completion, and dpo learns from preference"


@pytest.mark.slow
def test_rows_with_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", corpus.preference_pairs(1, 0) * 5)
    attempt = run(launch(tmp_path / "run", DPOSpec(base_model=1, dataset=1), path, RowType.PREFERENCE), expect=78)
    assert attempt.events()[-1]["reason"].startswith("dataset: the dataset has 1 different prompts")


def test_a_spec_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "spec.json").write_text('{"spec": {"method": "magic"}}')
    command = [sys.executable, "-m", "worker.recipes", str(tmp_path / "spec.json")]
    assert subprocess.run(command, check=False).returncode == 78
    assert "magic" in json.loads((tmp_path / "events.jsonl").read_text())["reason"]
