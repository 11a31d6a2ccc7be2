"""The longest batch is tried before the first step: it leaves no trace, and a full memory becomes advice."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend.datasets.rows import RowType
from backend.runs.specs import (
    Checkpoints,
    Evaluation,
    GRPOSpec,
    LoRA,
    Optimization,
    PPOSpec,
    Sampling,
    SFTSpec,
    ValueHead,
    ValueModel,
)
from backend.runs.specs.rewards import PatternFormat, Rewards
from tests.worker.recipes.conftest import SPECS, Case, World
from tests.worker.running import ROOT, launch, write_rows
from worker import memory
from worker.memory import Fits
from worker.recipes import dpo, grpo, ppo, sft
from worker.recipes.probe import Probe
from worker.report import Report, SpecCannotWork, Stop

ONLINE: dict[str, Any] = {
    "base_model": 1,
    "dataset": 1,
    "max_length": 96,
    "rewards": Rewards(components=[PatternFormat(pattern="(I am sorry|Thank you).*")]),
    "sampling": Sampling(max_new_tokens=24),
    "optimization": Optimization(batch_size=8, learning_rate=1e-3, schedule="constant"),
}
LORA = LoRA(rank=4, dropout=0.2)
CASES = SPECS | {
    "grpo": Case("preferences", GRPOSpec(**ONLINE, group_size=4, epochs=2, weights=LORA), frozenset()),
    "ppo_head": Case("preferences", PPOSpec(**ONLINE, epochs=2, value=ValueHead()), frozenset()),
    "ppo_one_backbone": Case("preferences", PPOSpec(**ONLINE, weights=LORA, value=ValueModel()), frozenset()),
}


def carry_out(world: World, folder: Path, name: str, **more: Any) -> list[dict[str, Any]]:
    """Three steps in this process; what was said."""
    case = CASES[name]
    how = {
        "optimization": case.spec.optimization.model_copy(update={"steps": 3}),
        "evaluation": Evaluation(every_steps=10, max_rows=8, completions=0),
        "checkpoints": Checkpoints(every_steps=10),
    }
    case = case._replace(spec=case.spec.model_copy(update=how | more))
    (folder / "checkpoints").mkdir(parents=True)
    at = world.launch(folder, case)
    with Report(folder / "events.jsonl") as report:
        recipe: Any = {"sft": sft, "dpo": dpo, "grpo": grpo, "ppo": ppo}[at.spec.method]
        recipe.run(at, at.spec, report, Stop())
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft_lora", "dpo", "grpo", "ppo_head", "ppo_one_backbone"])
def test_it_leaves_no_trace(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With dropout in the adapter: one random number more or less would change every loss after it."""
    asked: list[int] = []
    fits = Probe._fits
    monkeypatch.setattr(Probe, "_fits", lambda self, rows: asked.append(rows) or fits(self, rows))
    probed = carry_out(world, tmp_path / "probed", name)
    assert asked == [8]
    monkeypatch.setattr(Probe, "on_train_begin", lambda *_, **__: None)
    plain = carry_out(world, tmp_path / "plain", name)
    for event in [*probed, *plain]:
        event["at"] = ""
        event.get("values", {}).pop("step_time", None)
    assert probed == plain
    (weights,) = (tmp_path / "plain" / "model").glob("*.safetensors")
    ours = load_file(tmp_path / "probed" / "model" / weights.name)
    for key, tensor in load_file(weights).items():
        assert tensor.equal(ours[key]), key


@pytest.mark.slow
def test_the_longest_rows_are_tried(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 3 rows are too many: 8 fail, 4 fail, 2 and 1 fit, and the advice keeps the effective batch of 8."""
    shapes: list[tuple[int, int]] = []
    honest = sft.SFT.compute_loss

    def small_device(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        if len(inputs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return honest(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft.SFT, "compute_loss", small_device)
    with pytest.raises(SpecCannotWork) as refused:
        carry_out(world, tmp_path, "sft")
    tried = [shape for index, shape in enumerate(shapes) if shape not in shapes[:index]]
    assert [rows for rows, _ in tried[-4:]] == [8, 4, 2, 1]
    assert len({width for _, width in tried[-4:]}) == 1  # the longest row is in all of them
    assert refused.value.reason.startswith("optimization.batch_size: 8 of the longest rows")
    assert "lower the batch size to 2 and raise accumulation to 4" in str(refused.value.remedy).lower()
    assert "train an adapter" in str(refused.value.remedy)


@pytest.mark.slow
def test_completions_are_as_long_as_they_may_become(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest prompts, four completions each; 8 do not fit, nor do 4, and groups of 4 stay whole at 2 × 4."""
    seen: list[dict[str, torch.Tensor]] = []
    honest = grpo.GRPO._compute_loss

    def small_device(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        seen.append(inputs)
        if len(inputs["counts"]) > 3:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return honest(self, model, inputs)

    monkeypatch.setattr(grpo.GRPO, "_compute_loss", small_device)
    with pytest.raises(SpecCannotWork) as refused:
        carry_out(world, tmp_path, "grpo")
    assert [len(inputs["counts"]) for inputs in seen] == [8, 4, 2, 2, 1, 1]
    full = seen[0]
    assert full["completion_mask"].tolist() == [[1] * 24] * 8
    rows = [row[mask.bool()].tolist() for row, mask in zip(full["prompt_ids"], full["prompt_mask"], strict=True)]
    assert rows[:4] == [rows[0]] * 4
    assert rows[4:] == [rows[4]] * 4
    assert rows[0] != rows[4]
    assert len(rows[0]) >= len(rows[4])
    longest = len(rows[0]) + 24
    assert refused.value.reason.startswith(f"optimization.batch_size: 8 completions of the longest prompts ({longest} ")
    assert "lower the batch size to 2 and raise accumulation to 4" in str(refused.value.remedy).lower()
    assert f"lower sampling.max_new_tokens (24 of the {longest} tokens" in str(refused.value.remedy)


def test_the_advised_batches_make_whole_groups() -> None:
    """12 completions a step in groups of 6: 5 would fit, but 5 is no part of 12; 4 × 3 is."""
    spec = GRPOSpec(**{**ONLINE, "optimization": Optimization(batch_size=12)}, group_size=6)
    said = memory.advice(spec, longest=40, fits=[Fits(5, None)], trainable=1)
    assert "batch size to 4 and raise accumulation to 3" in str(said.remedy)
    alone = memory.advice(spec, longest=40, fits=[], trainable=1)
    assert alone.reason.startswith("sampling.max_new_tokens: 12 completions")


def test_what_it_would_take_is_estimated() -> None:
    """By hand: 4 rows 10 GiB, 2 rows 8 GiB; a row takes 1 GiB, so 16 rows take 10 + 12 = 22 GiB."""
    gib = 2**30
    spec = SFTSpec(base_model=1, dataset=1, optimization=Optimization(batch_size=16, accumulation=2))
    said = memory.advice(spec, longest=900, fits=[Fits(4, 10 * gib), Fits(2, 8 * gib)], trainable=gib)
    assert "4 took 10.0 GiB" in said.reason
    assert said.reason.endswith("so 16 need about 22.0 GiB")
    assert said.remedy is not None
    assert said.remedy.startswith(
        "Lower the batch size to 4 and raise accumulation to 8 (the same effective batch), or"
    )
    assert "take 12.0 GiB" in said.remedy  # a gradient and two moments of 4 bytes for each of 2³⁰ parameters
    alone = memory.advice(spec.model_copy(update={"weights": LoRA()}), longest=900, fits=[], trainable=5)
    assert (
        alone.reason == "max_length: 16 of the longest rows (900 tokens) do not fit into memory, nor does a single one"
    )
    assert alone.remedy is not None
    assert "adapter" not in alone.remedy


@pytest.mark.slow
def test_a_real_limit_becomes_advice(tmp_path: Path) -> None:
    """The child may take 900 MiB more than it has after its imports: 64 rows of 512 tokens do not fit, a few do."""
    data = [{"text": f"{n}: " + "Have a nice day. " * 200} for n in range(80)]
    spec = SFTSpec(
        base_model=1,
        dataset=1,
        max_length=512,
        optimization=Optimization(steps=2, batch_size=64),
        evaluation=Evaluation(max_rows=1, completions=0),
    )
    at = launch(tmp_path, spec, write_rows(tmp_path / "rows.parquet", data), RowType.LANGUAGE_MODELING)
    (tmp_path / "spec.json").write_text(at.model_dump_json())
    script = """
import resource, sys
from pathlib import Path
import worker.recipes.sft
from worker.recipes.__main__ import main
size = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + (900 << 20),) * 2)
sys.exit(main(Path(sys.argv[1])))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "spec.json")],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 78, done.stderr[-3000:]
    failed = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert failed["reason"].startswith("optimization.batch_size: 64 of the longest rows (512 tokens) do not fit")
    measured = re.search(r"; (\d+) took ([\d.]+ .iB) of ([\d.]+ .iB), so 64 need about ([\d.]+ .iB)$", failed["reason"])
    assert measured, failed["reason"]
    took, limit, needed = (
        float(n) * (1024 if unit == "GiB" else 1) for n, unit in map(str.split, measured.groups()[1:])
    )
    assert took < limit
    # 900 MiB on top of the imports were too little; said in tenths of a GiB, and of that the part that is resident
    assert needed > max(2 * took, 1200), failed["reason"]
    assert failed["remedy"].startswith("Lower the batch size to ")
