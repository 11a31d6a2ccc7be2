"""Small runs that several tests look at; each is started once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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

SPECS: dict[str, TrainingSpec] = {
    "sft": SFTSpec(**_SMALL),
    "sft_lora": SFTSpec(**_SMALL, weights=LoRA(rank=4, dropout=0.2)),
    "reward": RewardSpec(**_SMALL, use_margin=True),
    "dpo": DPOSpec(**_small(1e-4), beta=0.5),
    "ipo_lora": DPOSpec(**_small(5e-4), loss=IPO(), beta=5, weights=LoRA(rank=4, dropout=0.2)),
}


class World(NamedTuple):
    """Rows on disk, and launches on them."""

    demonstrations: Path
    preferences: Path

    def launch(self, folder: Path, spec: TrainingSpec, **more: Any) -> Launch:
        if isinstance(spec, SFTSpec):
            return launch(folder, spec, self.demonstrations, RowType.PROMPT_COMPLETION, **more)
        return launch(folder, spec, self.preferences, RowType.PREFERENCE, **more)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("rows")
    return World(
        write_rows(folder / "demonstrations.parquet", corpus.demonstrations(150, 0)),
        write_rows(folder / "preferences.parquet", corpus.preference_pairs(150, 0)),
    )


@pytest.fixture(scope="session")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Attempt]:
    """A completed run of one of ``SPECS``, by name."""
    runs: dict[str, Attempt] = {}

    def get(name: str) -> Attempt:
        if name not in runs:
            runs[name] = run(world.launch(tmp_path_factory.mktemp(name), SPECS[name]))
        return runs[name]

    return get
