"""A rollout that is broken off: stopped within a token, written again after it, and kept where it is half learned from.

What is written depends on seed, step and place alone, so of a rollout that was being written nothing is kept. Of one that
is being learned from, a checkpoint carries what is left.
"""

from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import TrainOutput

from worker.experience import Batch
from worker.reading import Reading
from worker.recipes import training
from worker.report import StopRequested


class Resuming(Reading):
    """A trainer with rollouts, any step of which can be the last of an attempt."""

    kl_beta: float
    """What a nat of divergence costs now."""
    _step: int
    _buffered_inputs: list[Batch] | None

    def more_state(self) -> dict[str, Any]:
        """Tensors and numbers of the method that a checkpoint must hold besides the weights."""
        return {}

    def load_more_state(self, state: dict[str, Any]) -> None:
        """Take back :meth:`more_state`."""

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        try:
            output: TrainOutput = super()._inner_training_loop(*args, **kwargs)
        except StopRequested:  # in a rollout, which will be written again
            step = self.state.global_step
            if step == 0:
                raise
            if not (self.launch.folder / "checkpoints" / f"step-{step}" / training.MANIFEST).exists():
                self._save_checkpoint(self.model, None)
            return TrainOutput(step, 0.0, {})
        return output

    def _rollout_file(self, folder: str) -> Path:
        return Path(folder) / f"rollout_{self.accelerator.process_index}.pt"

    def _save_rng_state(self, output_dir: str) -> None:
        """Every process: besides the random state, what is left of its rollout."""
        super()._save_rng_state(output_dir)
        within = self._step % self._passes != 0
        state = {
            "parts": self._buffered_inputs if within else None,
            "kl_beta": self.kl_beta,
            "more": self.more_state(),
        }
        torch.save(state, self._rollout_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        state = torch.load(self._rollout_file(checkpoint), weights_only=True, map_location=self.args.device)
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        self._buffered_inputs, self.kl_beta = state["parts"], state["kl_beta"]
        self.load_more_state(state["more"])
