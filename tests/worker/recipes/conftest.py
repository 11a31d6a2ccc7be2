"""Small runs that several tests look at; each is started once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from backend.datasets.rows import RowType
from backend.demo import corpus
from backend.runs.specs import (
    IPO,
    Checkpoints,
    DPOSpec,
    Evaluation,
    Launch,
    LoRA,
    Optimization,
    RewardSpec,
    SFTSpec,
    TrainingSpec,
)
from tests.worker.running import Attempt, launch, run, write_rows

STEPS = 12


def _small(learning_rate: float) -> dict[str, Any]:
    return {
        "base_model": 1,
        "dataset": 1,
        "max_length": 96,
        "seed": 3,
        "optimization": Optimization(steps=STEPS, batch_size=8, learning_rate=learning_rate, warmup_steps=2),
        "evaluation": Evaluation(every_steps=5, max_rows=16, completions=2, max_new_tokens=24),
        "checkpoints": Checkpoints(every_steps=4, keep=2),
    }


_SMALL = _small(1e-3)


class Case(NamedTuple):
    """A small run of one method, and what can be said of every such run."""

    rows: Literal["demonstrations", "conversations", "preferences", "prompts"]
    """Which of the world's rows it learns from."""
    spec: TrainingSpec
    held_out: frozenset[str]
    """Metrics that every evaluation has."""
    up: tuple[str, ...] = ()
    """Metrics that are higher after a dozen steps than before."""
    down: tuple[str, ...] = ()
    """Metrics that are lower."""
    scores: frozenset[str] = frozenset()
    """Rewards shown beside each text."""


_LIKELIHOOD = frozenset({"eval_loss", "eval_mean_token_accuracy"})
_MARGINS = frozenset(
    {"eval_loss", "eval_rewards/accuracies", "eval_rewards/margins", "eval_logps/chosen", "eval_logps/rejected"}
)

SPECS: dict[str, Case] = {
    "sft": Case("demonstrations", SFTSpec(**_SMALL), _LIKELIHOOD, down=("eval_loss",)),
    "sft_lora": Case(
        "demonstrations",
        SFTSpec(**_SMALL, weights=LoRA(rank=4, dropout=0.2)),
        _LIKELIHOOD,
        down=("eval_loss",),
    ),
    "sft_packed_dora": Case(
        "conversations",
        SFTSpec(**_SMALL, packing=True, weights=LoRA(rank=4, dora=True)),
        _LIKELIHOOD,
        down=("eval_loss",),
    ),
    "reward": Case(
        "preferences",
        RewardSpec(**_SMALL, use_margin=True),
        frozenset({"eval_loss", "eval_accuracy", "eval_margin"}),
        up=("eval_accuracy",),
        down=("eval_loss",),
        scores=frozenset({"score"}),
    ),
    "dpo": Case("preferences", DPOSpec(**_small(1e-4), beta=0.5), _MARGINS, up=("eval_rewards/accuracies",)),
    "ipo_lora": Case(
        "preferences",
        DPOSpec(**_small(5e-4), loss=IPO(), beta=5, weights=LoRA(rank=4, dropout=0.2)),
        _MARGINS,
        up=("eval_rewards/accuracies",),
    ),
}
"""One small run for each method and each way in which its loss or its state differs. Every run is killed and resumed."""


class World(NamedTuple):
    """Rows on disk, and launches on them."""

    folder: Path

    def launch(self, folder: Path, case: str | Case, **more: Any) -> Launch:
        """Of one of ``SPECS``, by name, or of a changed one."""
        if isinstance(case, str):
            case = SPECS[case]
        return launch(folder, case.spec, self.folder / f"{case.rows}.parquet", _TYPES[case.rows], **more)


_TYPES = {
    "demonstrations": RowType.PROMPT_COMPLETION,
    "conversations": RowType.LANGUAGE_MODELING,
    "preferences": RowType.PREFERENCE,
    "prompts": RowType.PROMPT_ONLY,
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("rows")
    shown = corpus.demonstrations(150, 0)
    write_rows(folder / "demonstrations.parquet", shown)
    write_rows(folder / "conversations.parquet", [{"messages": row["prompt"] + row["completion"]} for row in shown])
    write_rows(folder / "preferences.parquet", corpus.preference_pairs(150, 0))
    return World(folder)


@pytest.fixture(scope="session")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Attempt]:
    """A completed run of one of ``SPECS``, by name."""
    runs: dict[str, Attempt] = {}

    def get(name: str) -> Attempt:
        if name not in runs:
            runs[name] = run(world.launch(tmp_path_factory.mktemp(name), name))
        return runs[name]

    return get
