"""Proximal policy optimization: a policy from its own completions, with a value model that says what was to be expected.

One completion of each prompt is sampled and scored. Its score r is paid at its last token; with KL in the reward, every
token pays for leaving the reference: r_t = [t = T]·r − β·k(log π_old/π_ref). A value model V and generalized advantage
estimation turn this into advantages (Schulman et al. 2015, Eq. 16):

    Â_t = Σ_l (γλ)^l·δ_{t+l},  δ_t = r_t + γ·V_{t+1} − V_t,  R_t = Â_t + V_t

With w = π/π_old, the loss is the mean over the tokens of

    −min(w·Â, clip(w, 1 ± ε)·Â) + c·½·max((V − R)², (clip(V, V_old ± ε_V) − R)²) [+ β·k(log π/π_ref)]

Schulman et al. 2017, arXiv:1707.06347, Eq. 7; for language models Ziegler et al. 2019, arXiv:1909.08593, Ouyang et al.
2022, arXiv:2203.02155. V is a head on the policy's own backbone or a backbone of its own, and begins as 0. With adapters
all roles share the frozen weights (:mod:`worker.roles`). A completion that nobody could score leaves every mean.

Columns in: ``prompt``, and those that verifiers compare with. Events out: ``objective/{kl,scores,rlhf_reward}`` (k1 in
nats per completion; mean score; mean score minus what the divergence cost), ``policy/{clipfrac,approxkl}``,
``val/{clipfrac,explained_variance}``, ``loss/{policy,value}``, ``kl_coefficient``, and what all methods that sample say
(``reward``, ``rewards/<name>/mean``, ``kl``, ``entropy``, ``completions/*``; ``eval_reward``, ``eval_kl``).

Differs from TRL's former trainer: whitening and means are those of all processes; a completion that was cut is judged
as it is, with ``missing_end_penalty`` instead of a fixed score. Left out: an entropy bonus.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from backend.runs.events import Note
from backend.runs.specs import Launch, PPOSpec, ValueHead
from worker import networks, online, rows
from worker.experience import Batch, Experience, texts_of
from worker.forward import Texts
from worker.objectives.reinforcement import (
    average,
    clipped_losses,
    clipped_value_losses,
    explained_variance,
    gae,
    importance,
    kl_estimate,
    whiten,
)
from worker.reading import still
from worker.recipes import training
from worker.rewards import Composition
from worker.roles import OwnModels, Roles, cast

if TYPE_CHECKING:
    from worker.report import Report, Stop


class PPO(online.Online):
    """A policy and its critic, learning from the same rollouts."""

    spec: PPOSpec

    def __init__(self, *args: Any, roles: Roles, **more: Any) -> None:
        self.roles = roles
        self.old_values: Tensor | None = None
        super().__init__(*args, reference=roles.second if isinstance(roles, OwnModels) else None, adapter=None, **more)

    # --- the roles -------------------------------------------------------------------------------------------------

    @contextmanager
    def as_reference(self) -> Iterator[nn.Module]:
        """The reference among the roles."""
        with self.roles.reference() as model:
            yield model

    def write_model(self, folder: Path) -> None:
        """The policy alone: an ordinary language model, or adapter."""
        with self.roles.plain():
            super().write_model(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with self.roles.plain():
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self.roles.plain():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_optimizer(self, *args: Any, **more: Any) -> torch.optim.Optimizer:
        """The value's own weights learn at a rate of their own."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **more)
        own = {id(parameter) for parameter in self.roles.values_own()}
        for group in list(optimizer.param_groups):
            apart = [parameter for parameter in group["params"] if id(parameter) in own]
            if apart:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
                optimizer.add_param_group({**group, "params": apart, "lr": group["lr"] * self.spec.value_rate})
        return optimizer

    def more_state(self) -> dict[str, Any]:
        """What the value has learned."""
        return self.roles.state()

    def load_more_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.roles.load_state(state)

    # --- the rollout -----------------------------------------------------------------------------------------------

    @property
    def needs_old_logps(self) -> bool:
        """Always: the values come with them."""
        return True

    @property
    def _has_head(self) -> bool:
        return isinstance(self.spec.value, ValueHead)

    @torch.no_grad()
    def remembered(self, texts: Texts, sampled: Tensor | None = None) -> Tensor:
        """Log-probabilities, and for a value head in the same pass the values, under the policy that wrote the texts: (B, T)."""
        logps, values = [], []
        with still(self.model):
            for part in self.batches(texts):
                said = self.say(self.model, part, hidden=True) if self._has_head else None
                values.append(self.roles.values(part, said.hidden if said else None))
                if said:
                    logps.append(said.logps)
        self.old_values = torch.cat(values)
        return torch.cat(logps) if logps else super().remembered(texts, sampled)

    def learn_from(self, experience: Experience) -> Batch:
        """Advantages, returns and the values they were reckoned with: (B, T) each."""
        spec, counts = self.spec, experience.counts
        old_logps, values = experience.old_logps, self.old_values
        assert old_logps is not None
        assert values is not None
        spent = kl_estimate(old_logps, experience.ref_logps, spec.kl.estimator) * self.kl_beta  # (B, T)
        last = (experience.texts.completion_mask.sum(1) - 1).unsqueeze(1)  # (B, 1)
        rewards = torch.zeros_like(values).scatter(1, last, experience.scores.nan_to_num(0).unsqueeze(1))
        if spec.kl.place == "reward":
            rewards = rewards - spent
        if spec.whiten_rewards:
            rewards = self._whitened(rewards, counts, shift_mean=False)
        estimated = gae(rewards, values, counts, gamma=spec.gamma, lam=spec.gae_lambda)
        self._log_learning(experience, spent, values, estimated.returns)
        advantages = estimated.advantages
        if spec.whiten_advantages:
            advantages = self._whitened(advantages, counts, shift_mean=True)
        return {"advantages": advantages, "returns": estimated.returns, "old_values": values}

    def _whitened(self, values: Tensor, counts: Tensor, *, shift_mean: bool) -> Tensor:
        """By mean and deviation over the rollouts of all processes."""
        everyone, counted = self._gathered(values, counts)
        first, length = self.accelerator.process_index * len(values), values.size(1)
        return whiten(everyone, counted, shift_mean=shift_mean)[first : first + len(values), :length]

    def _gathered(self, *tensors: Tensor) -> list[Tensor]:
        """Each (B, T) of all processes, padded with zeros to the longest."""
        return [self.accelerator.gather(self.accelerator.pad_across_processes(tensor, dim=1)) for tensor in tensors]

    def _log_learning(self, experience: Experience, spent: Tensor, values: Tensor, returns: Tensor) -> None:
        assert experience.old_logps is not None
        written = experience.texts.completion_mask
        divergence = kl_estimate(experience.old_logps, experience.ref_logps, "k1") * written
        scored = ~experience.scores.isnan()
        told = {
            "objective/kl": self.mean(divergence.sum(1)),
            "objective/scores": self.mean(experience.scores, scored),
            "objective/rlhf_reward": self.mean(experience.scores - (spent * written).sum(1), scored),
            "val/explained_variance": explained_variance(*self._gathered(values, returns, experience.counts)).item(),
        }
        for name, value in told.items():
            self._metrics["train"][name].append(value)

    # --- the loss --------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: Any) -> Tensor:
        spec, counts = self.spec, inputs["counts"]
        said = self.read(model, inputs, hidden=self._has_head)
        values = self.roles.values(texts_of(inputs), said.hidden)
        ratios = importance(said.logps, inputs["old_logps"], counts)
        policy = clipped_losses(ratios, inputs["advantages"], clip_low=spec.clip, clip_high=spec.clip)
        value = clipped_value_losses(values, inputs["old_values"], inputs["returns"], clip=spec.value_clip)
        losses = policy.losses + spec.value_weight * value.losses  # (B, T)
        if spec.kl.place == "loss" and self.kl_beta:
            losses = losses + self.kl_beta * kl_estimate(said.logps, inputs["ref_logps"], spec.kl.estimator)
        self.log_pass(said, inputs)
        told = {
            "loss/policy": policy.losses,
            "loss/value": value.losses,
            "policy/clipfrac": policy.clipped.float(),
            "policy/approxkl": kl_estimate(said.logps, inputs["old_logps"], "k2"),
            "val/clipfrac": value.clipped.float(),
        }
        for name, each in told.items():
            self._metrics["train"][name].append(self.mean(each.detach(), counts))
        return average(losses, counts, total=inputs["total_tokens"])


def run(launch: Launch, spec: PPOSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start)
    prepared = rows.prompts(launch, tokenizer, spec.columns())
    roles = cast(launch, spec, start)
    networks.check_fit(roles.policy, tokenizer, max_length=spec.max_length)
    with Composition(
        spec.rewards,
        launch,
        max_new_tokens=spec.sampling.max_new_tokens,
        device=roles.policy.device,
        scorers=roles.scorers(),
    ) as rewards:
        rewards.check(chain(prepared.train, prepared.held_out))
        prepared.notes.extend(Note(text=note) for note in rewards.notes())
        config = online.arguments(launch, prepared, group_size=1)
        trainer = PPO(launch, prepared, rewards, roles.policy, tokenizer, config=config, roles=roles)
        training.carry_out(launch, report, stop, trainer, prepared, lambda: trainer.shown(spec.evaluation.completions))
