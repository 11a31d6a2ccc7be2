"""Reading what was written: the policy with gradient, the policy and its reference without."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from worker import forward
from worker.experience import Batch, some, texts_of
from worker.forward import Pass, Texts
from worker.objectives.reinforcement import kl_estimate
from worker.recipes import training


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Inside, *model* has no dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Reading(training.Frame, GRPOTrainer):
    """A trainer whose policy and reference read completions as :mod:`worker.forward` does."""

    reference: PreTrainedModel | None = None

    def set_reference(self, reference: PreTrainedModel | None) -> None:
        """``None``: the reference is the policy with its adapter switched off."""
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            # in the policy's precision: the same weights must say the same, or the divergence begins above zero
            self.accelerator.prepare_model(reference, evaluation_mode=True)
            reference.to(self.args.device).eval().requires_grad_(False)
        self.reference = reference

    @property
    def _passes(self) -> int:
        """Forward passes that learn from one rollout."""
        return int(self.args.steps_per_generation * self.num_iterations)

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps that learn from one rollout."""
        return self._passes // int(self.args.gradient_accumulation_steps)

    def read(self, model: nn.Module, batch: Batch, *, hidden: bool = False) -> Pass:
        """A part of a rollout through the policy, with gradient."""
        return forward.read(
            model,
            texts_of(batch),
            temperature=self.temperature,
            entropies=True,
            hidden=hidden,
            checkpointed=self.args.gradient_checkpointing,
        )

    def batches(self, texts: Texts) -> Iterator[Texts]:
        """*texts* in parts that are read at once where nothing is learned; a prompt's completions stay together."""
        size = max(self.args.per_device_train_batch_size, self.num_generations)
        for start in range(0, len(texts.prompt_ids), size):
            yield some(texts, slice(start, start + size))

    def say(self, model: nn.Module, texts: Texts, *, hidden: bool = False) -> Pass:
        """*texts* through *model*, whole."""
        return forward.read(model, texts, temperature=self.temperature, hidden=hidden)

    @torch.no_grad()
    def frozen(self, model: nn.Module, texts: Texts) -> Tensor:
        """Log-probabilities under *model*, without gradient and dropout: (B, T)."""
        with still(model):
            return torch.cat([self.say(model, part).logps for part in self.batches(texts)])

    def referred(self, texts: Texts, rows: slice) -> Tensor:
        """Log-probabilities under the reference of *rows*, NaN elsewhere: (B, T)."""
        with self.as_reference() as model:
            known = self.frozen(model, some(texts, rows))
        everywhere = torch.full(texts.completion_ids.shape, torch.nan, device=known.device)
        everywhere[rows] = known.float()
        return everywhere

    @contextmanager
    def as_reference(self) -> Iterator[nn.Module]:
        """Inside, the yielded model is the reference: exactly the model the run starts from."""
        if self.reference is not None:
            yield self.reference
            return
        policy: Any = self.accelerator.unwrap_model(self.model)
        with policy.disable_adapter():
            yield policy

    def mean(self, values: Tensor, mask: Tensor | None = None) -> float:
        """Over what *mask* counts, in all processes."""
        kept = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
        told = torch.stack([torch.where(kept, values, 0).sum().float(), kept.sum().float()])
        total, count = self.accelerator.reduce(told, "sum").tolist()
        return float(total / max(count, 1.0))

    def log_pass(self, said: Pass, batch: Batch) -> None:
        """Entropy, divergence from the reference, and whether sampler and trainer agree."""
        say, written = self._metrics["train"], batch["completion_mask"]
        logps = said.logps.detach()
        assert said.entropies is not None
        say["entropy"].append(self.mean(said.entropies, written))
        known = written * (~batch["ref_logps"].isnan())
        say["kl"].append(self.mean(kl_estimate(logps, batch["ref_logps"], "k3"), known))
        if self.steps_per_rollout == 1:
            say["sampling/logp_difference"].append(self.mean((logps - batch["sampled_logps"]).abs(), written))
