"""An exported script has the run's losses, step by step, and needs nothing of the studio.

For methods that sample this says more: the script is a second, plain implementation (no shared prompts, no batches of
several prompts, no TRL), and it writes the same completions and learns the same from them.
"""

import ast
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.datasets.rows import Row, RowType
from backend.demo import corpus
from backend.errors import Conflict
from backend.runs import export
from backend.runs.specs import (
    METHODS,
    AdaptiveBeta,
    AnySpec,
    AttributeRewardSpec,
    Checkpoints,
    DPOSpec,
    Evaluation,
    FixedBeta,
    GRPOSpec,
    KLPenalty,
    KTOSpec,
    LeaveOneOut,
    LoRA,
    Optimization,
    ORPOSpec,
    PPOSpec,
    ProcessRewardSpec,
    QLoRA,
    Resample,
    RewardSpec,
    Robust,
    Sampling,
    ScoreCare,
    SFTSpec,
    Sigmoid,
    SimPOSpec,
    ValueModel,
)
from tests.worker.running import BASE, Forked, launch, run, write_rows

NEEDED = {"datasets", "peft", "torch", "transformers", "trl"}
ADAPTER = {"weights": LoRA(rank=4)}


def _small(**how: Any) -> dict[str, Any]:
    return {
        "base_model": 1,
        "dataset": 1,
        "max_length": 96,
        "seed": 3,
        "optimization": Optimization(**{"steps": 4, "batch_size": 8, "learning_rate": 3e-4, "warmup_steps": 1, **how}),
        "evaluation": Evaluation(every_steps=50, max_rows=8, completions=0),
        "checkpoints": Checkpoints(every_steps=50),
    }


def _soft_pairs() -> list[Row]:
    rng = random.Random(1)
    return [{**row, "probability": rng.choice((1.0, 0.75, 0.5, 0.25))} for row in corpus.preference_pairs(120, 0)]


def _sums() -> list[Row]:
    return corpus.sums(400, 1)  # with their answers, which the reward needs


_REWARDS = {
    "components": [
        {"kind": "number", "name": "right"},
        {"kind": "length", "target": 30, "weight": 0.2, "normalize": "batch", "only_if": "right"},
    ]
}
_ONLINE: dict[str, Any] = {"rewards": _REWARDS, "sampling": Sampling(max_new_tokens=40)}
_ADAPTIVE = AdaptiveBeta(initial=0.05, target=0.5, horizon=100)

Made = tuple[AnySpec, Callable[[], list[Row]], RowType]
PAIRS = (lambda: corpus.preference_pairs(120, 0), RowType.PREFERENCE)
SOFT = (_soft_pairs, RowType.PREFERENCE)
SHOWN = (lambda: corpus.demonstrations(120, 0), RowType.PROMPT_COMPLETION)
ASKED = (_sums, RowType.PROMPT_ONLY)
RUNS: dict[str, Made] = {
    "sft": (SFTSpec(**_small(weight_decay=0.1)), *SHOWN),
    "sft packed": (SFTSpec(**_small(batch_size=4), packing=True), *SHOWN),
    "sft lora": (SFTSpec(**_small(accumulation=2), weights=LoRA(rank=4, dropout=0.2), completion_only=False), *SHOWN),
    "dpo": (DPOSpec(**_small(), loss=Sigmoid(sft_weight=0.5, label_smoothing=0.1)), *PAIRS),
    "dpo robust": (DPOSpec(**_small(), **ADAPTER, loss=Robust()), *SOFT),
    "dpo soft": (DPOSpec(**_small(), loss=Sigmoid(sft_weight=0.5), use_probability=True), *SOFT),
    "reward": (RewardSpec(**_small(), **ADAPTER, use_margin=True), *PAIRS),
    "reward soft": (RewardSpec(**_small(), use_margin=True, use_probability=True), *SOFT),
    "kto": (KTOSpec(**_small(), undesirable_weight=1.2), *PAIRS),
    "orpo": (ORPOSpec(**_small(batch_size=15, accumulation=2)), *SOFT),  # of 83 pairs: passes of 15 and 8 in step 3
    "simpo": (SimPOSpec(**_small(), **ADAPTER, sft_weight=0.3), *PAIRS),
    "attributes": (
        AttributeRewardSpec(**_small(accumulation=2), attributes={"politeness": 1.0, "correctness": 0.5}),
        lambda: corpus.scored(120, 0),
        RowType.SCORED,
    ),
    "steps": (ProcessRewardSpec(**_small(), **ADAPTER), lambda: corpus.stepwise(120, 0), RowType.STEPWISE),
    "grpo": (GRPOSpec(**_small(), **_ONLINE, group_size=4), *ASKED),
    "rloo lora": (
        GRPOSpec(
            **_small(accumulation=2),
            **ADAPTER,
            **_ONLINE,
            group_size=4,
            epochs=2,
            advantage=LeaveOneOut(),
            average="completion",
            ratio="sequence",
            kl=KLPenalty(beta=FixedBeta(beta=0.1), place="loss", estimator="k3"),
        ),
        *ASKED,
    ),
    "dapo": (
        GRPOSpec(
            **_small(),
            **_ONLINE,
            group_size=4,
            groups=Resample(max_rounds=3),
            drop_unfinished=True,
            batches_per_rollout=2,
            kl=KLPenalty(beta=_ADAPTIVE),
        ),
        *ASKED,
    ),
    "ppo": (PPOSpec(**_small(), **_ONLINE, epochs=2, scores=ScoreCare(missing_end_penalty=0.5)), *ASKED),
    "ppo lora": (
        PPOSpec(
            **_small(), **ADAPTER, **_ONLINE, batches_per_rollout=2, whiten_rewards=True, kl=KLPenalty(beta=_ADAPTIVE)
        ),
        *ASKED,
    ),
}


_LONG = ("sft", "sft lora", "dpo", "dpo robust", "reward", "rloo lora", "ppo lora")
_ALONE = ("dpo soft", "grpo")
"""One script of each sort: they run in a Python of their own, which finds no module of the studio."""


def test_every_method_has_a_script() -> None:
    assert {spec.method for spec, _, _ in RUNS.values()} == set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in _LONG)) for name in RUNS])
def test_it_reproduces_the_losses(tmp_path: Path, name: str) -> None:
    spec, make, row_type = RUNS[name]
    rows = write_rows(tmp_path / "rows.parquet", make())
    text = export.script(spec, title=f'Run 7: "{name}" \\ a title', packages={"trl": "1.16.0+local"})
    assert "trl==1.16.0 " in text
    imported = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {module.partition(".")[0] for module in imported} - set(sys.stdlib_module_names) <= NEEDED
    (tmp_path / "run.py").write_text(text)
    arguments = ("run.py", "--model", str(BASE), "--rows", str(rows))
    printed = tmp_path / "script.log"
    if name in _ALONE:
        with printed.open("wb") as output:
            script: Any = subprocess.Popen(
                [sys.executable, "-I", *arguments], cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT
            )
    else:
        script = Forked(*arguments, where=tmp_path, output=printed)
    try:
        code = script.wait(200)
    finally:
        script.kill()
    assert code == 0, printed.read_text()[-3000:]
    told = [line for line in printed.read_text().splitlines() if line.startswith('{"step"')]
    theirs = {said["step"]: said["loss"] for said in map(json.loads, told)}
    attempt = run(launch(tmp_path / "run", spec, rows, row_type))
    ours = {step: values["loss"] for step, values in attempt.metrics().items() if "loss" in values}
    assert sorted(ours) == [1, 2, 3, 4]
    assert theirs == pytest.approx(ours, rel=1e-4, abs=2e-6)
    assert list((tmp_path / "model").glob("*.safetensors"))


def test_every_component_that_a_script_carries_is_in_it() -> None:
    parts = [
        {"kind": "exact", "answer": "boxed"},
        {"kind": "number"},
        {"kind": "tags", "tags": ["think", "answer"]},
        {"kind": "length"},
        {"kind": "overlong", "buffer": 8},
        {"kind": "repetition"},
        {"kind": "reward_model", "models": [7, 5], "agreement": {"kind": "cautious"}, "normalize": "group"},
    ]
    assert len(parts) == len(export._SCORED_HERE)
    text = export.script(GRPOSpec(base_model=1, dataset=1, rewards={"components": parts}), title="Run 7")
    names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    assert {"locate", "equal", "tagged", "beyond", "overlong", "repetition", "judged"} <= names


def test_what_people_and_workers_wrote_stays_text() -> None:
    """Names and versions are data: in whatever quotes, they never become a statement of the script."""
    evil = '"""\nraise SystemExit("x")\n\'\'\'\\'
    rewards = {"components": [{"kind": "exact", "column": evil}]}
    for spec in (
        GRPOSpec(base_model=1, dataset=1, rewards=rewards),
        AttributeRewardSpec(base_model=1, dataset=1, attributes={evil: 1.0}),
        ProcessRewardSpec(base_model=1, dataset=1, separator=evil[:19]),
    ):
        plain = ast.parse(export.script(spec, title="Run 7"))
        tree = ast.parse(export.script(spec, title=evil, packages={"torch": f"1{evil}", "trl": evil}))
        assert [type(node) for node in tree.body] == [type(node) for node in plain.body]


def test_what_a_script_cannot_carry_is_said() -> None:
    code = {"components": [{"kind": "code"}]}
    asked: dict[str, Any] = {"base_model": 1, "dataset": 1}
    for spec, says in (
        (GRPOSpec(**asked, rewards=code), "code"),
        (PPOSpec(**asked, rewards=_REWARDS, value=ValueModel()), "value model"),
        (SFTSpec(**asked, weights=QLoRA()), "4 bits"),
    ):
        assert says in str(export.obstacle(spec))
        with pytest.raises(Conflict):
            export.script(spec, title="Run 7")
