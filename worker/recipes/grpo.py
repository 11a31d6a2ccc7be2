"""Group relative policy optimization: a policy from its own completions, compared with each other, without a value model.

Of each prompt G completions are sampled and scored with rewards r. With the ratio w = π/π_old of a token (or its
geometric mean over the completion), the loss is the average over tokens of

    −min(w·A, clip(w, 1 − ε_low, 1 + ε_high)·A) + β·KL                                  Shao et al. 2024, Eq. 3

    A group           (r − mean) / standard deviation within the group                  GRPO: Shao et al. 2024
    A group, none     r − mean;  with ``average`` constant: Dr. GRPO                     Liu et al. 2025
    A leave_one_out   r − mean of the others: RLOO                                       Ahmadian et al. 2024, Eq. 8
    A batch           (r − mean) / standard deviation over the batch: REINFORCE          Williams 1992; Hu 2025
    DAPO              ε_high > ε_low; ``average`` token; ``drop_unfinished``; ``groups`` resample; the reward component
                      ``overlong``: each its own switch                                  Yu et al. 2025, Eq. 10 to 13
    GSPO              ``ratio`` sequence, ``average`` completion                         Zheng et al. 2025, Eq. 5 to 7
    KL                in the loss per token (k2's gradient is right, k3 is DeepSeek's), or k1, summed over the completion,
                      subtracted from r before A

A completion that no component could score is in no mean and no token count. One that was dropped as unfinished, and a
group without spread that could not be replaced, weigh nothing in the loss and its count; as in TRL, what they earned still
counts in the means that others are compared with. The divergence from the reference is measured also at β = 0, then on
one completion of each prompt. Held-out prompts are answered once each, sampled as in training (``eval_reward``,
``eval_kl``); the completions to be read are greedy.

Columns in: ``prompt``, and those that verifiers compare with. Events out: TRL's names (``reward``, ``rewards/<name>/mean``,
``frac_reward_zero_std``, ``kl``, ``entropy``, ``clip_ratio/*``, ``completions/*``), ``unscored``, ``sampling/*``.

Differs from TRL: what does not count never enters a divisor; the parts of an optimizer step keep groups together.
"""

import random
from itertools import chain
from typing import TYPE_CHECKING, Any, assert_never

import torch
from torch import Tensor, nn

from backend.runs.events import Note
from backend.runs.specs import (
    BatchBaseline,
    FullWeights,
    GroupAdvantage,
    GRPOSpec,
    Launch,
    LeaveOneOut,
    Resample,
)
from worker import networks, online, rows
from worker.experience import Batch, Collected, Experience, Row, without_spread
from worker.objectives.reinforcement import (
    average,
    batch_baseline,
    clipped_losses,
    group_advantages,
    importance,
    kl_estimate,
    leave_one_out,
)
from worker.recipes import training
from worker.rewards import Composition, combine

if TYPE_CHECKING:
    from worker.report import Report, Stop


class GRPO(online.Online):
    """A policy that learns from the completions of a prompt compared with each other."""

    spec: GRPOSpec

    # --- which groups are learned from -----------------------------------------------------------------------------

    def collect(self, rows: list[Row]) -> Collected:
        """With dynamic sampling, a group without spread is replaced by another prompt's, a few times if need be."""
        kept = super().collect(rows)
        if not isinstance(self.spec.groups, Resample):
            return kept
        sampled, rounds, size = len(rows), 1, self.num_generations
        while rounds < self.spec.groups.max_rounds and (dead := without_spread(self._worth(kept), size)):
            seeds = self.seeds(f"round {rounds}", len(rows))
            again = [seeds[group] for group in dead]
            others = [self.prompts[random.Random(seed).randrange(len(self.prompts))] for seed in again]
            fresh = self.write(others, size, again)
            places = list(range(len(kept.rows)))
            for number, group in enumerate(dead):
                start = len(kept.rows) + number * size
                places[group * size : (group + 1) * size] = range(start, start + size)
            kept = Collected.joined([kept, fresh]).picked(places)
            sampled, rounds = sampled + len(dead), rounds + 1
        dead = without_spread(self._worth(kept), size)
        told = torch.tensor([[sampled / len(rows), rounds, len(dead) / len(rows)]], device=self.args.device)
        everyone = self.accelerator.gather(told)  # (processes, 3)
        say = self._metrics["train"]
        say["sampling/sampled"].append(everyone[:, 0].mean().item())
        say["sampling/rounds"].append(everyone[:, 1].max().item())
        say["sampling/dead_groups"].append(everyone[:, 2].mean().item())
        return kept

    def _worth(self, collected: Collected) -> Tensor:
        return self.care(combine(self.spec.rewards, collected.measured), collected.ended())

    # --- what is learned from them ---------------------------------------------------------------------------------

    def learn_from(self, experience: Experience) -> Batch:
        """Advantages (B, 1), and which tokens count."""
        worth, size = experience.scores, self.num_generations
        counts = experience.counts
        if isinstance(self.spec.groups, Resample):
            alive = torch.ones(len(worth) // size, dtype=torch.long, device=worth.device)
            alive[without_spread(worth, size)] = 0
            counts = counts * alive.repeat_interleave(size).unsqueeze(1)
        if self.spec.drop_unfinished:
            counts = counts * experience.ended.long().unsqueeze(1)
        if self.spec.kl.place == "reward" and self.kl_beta:
            assert experience.old_logps is not None
            spent = kl_estimate(experience.old_logps, experience.ref_logps, self.spec.kl.estimator)
            worth = worth - self.kl_beta * (spent * experience.texts.completion_mask).sum(1)
        return {"advantages": self._advantages(worth).nan_to_num(0.0).unsqueeze(1), "counts": counts}

    def _advantages(self, worth: Tensor) -> Tensor:
        match self.spec.advantage:
            case GroupAdvantage(scale="batch") | BatchBaseline() as kind:  # statistics of all processes
                everyone = self.accelerator.gather(worth)
                first = self.accelerator.process_index * len(worth)
                if isinstance(kind, BatchBaseline):
                    return batch_baseline(everyone)[first : first + len(worth)]
                return group_advantages(everyone, self.num_generations, "batch")[first : first + len(worth)]
            case GroupAdvantage(scale=scale):
                return group_advantages(worth, self.num_generations, scale)
            case LeaveOneOut():
                return leave_one_out(worth, self.num_generations)
            case unknown:
                assert_never(unknown)

    def _compute_loss(self, model: nn.Module, inputs: Any) -> Tensor:
        said = self.read(model, inputs)
        counts, advantages = inputs["counts"], inputs["advantages"]
        old = inputs.get("old_logps", said.logps.detach())
        ratios = importance(said.logps, old, counts, self.spec.ratio)
        losses = clipped_losses(
            ratios, advantages, clip_low=self.spec.clip_low, clip_high=self.spec.clip_high
        ).losses  # (B, T)
        if self.spec.kl.place == "loss" and self.kl_beta:
            losses = losses + self.kl_beta * kl_estimate(said.logps, inputs["ref_logps"], self.spec.kl.estimator)
        total = inputs["total_tokens" if self.spec.average == "token" else "total_completions"]
        loss = average(losses, counts, self.spec.average, length=self.spec.sampling.max_new_tokens, total=total)
        self.log_pass(said, inputs)
        say = self._metrics["train"]
        ratios = ratios.detach()
        low = (ratios < 1 - self.spec.clip_low) & (advantages < 0)
        high = (ratios > 1 + self.spec.clip_high) & (advantages > 0)
        for name, clipped in (("low_mean", low), ("high_mean", high), ("region_mean", low | high)):
            say[f"clip_ratio/{name}"].append(self.mean(clipped.float(), counts))
        return loss


def run(launch: Launch, spec: GRPOSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start)
    model = networks.load_to_train(start, spec.weights)
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    networks.silence_dropout(model)
    prepared = rows.prompts(launch, tokenizer, spec.columns())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with Composition(spec.rewards, launch, max_new_tokens=spec.sampling.max_new_tokens, device=device) as rewards:
        rewards.check(chain(prepared.train, prepared.held_out))
        prepared.notes.extend(Note(text=note) for note in rewards.notes())
        trainer = GRPO(
            launch,
            prepared,
            rewards,
            model,
            tokenizer,
            config=online.arguments(launch, prepared, group_size=spec.group_size),
            reference=networks.load(start) if isinstance(spec.weights, FullWeights) else None,
            adapter=networks.lora_config(spec.weights),
        )
        training.carry_out(launch, report, stop, trainer, prepared, lambda: trainer.shown(spec.evaluation.completions))
