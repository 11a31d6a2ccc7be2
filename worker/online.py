"""What methods share that learn from what they write: sampling, scoring, the reference, evaluation, exact resume.

TRL's GRPO trainer runs the loop (how often is sampled, accumulation, several processes); what happens in it is ours. A
method overrides :meth:`Online.learn_from` (advantages) and :meth:`Online._compute_loss`.

What is written depends on seed, step and place in the rollout alone, and so does the order of the prompts: a rollout
that was broken off is written again, word for word, and in two processes as in one (:mod:`worker.resuming`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput
from trl import GRPOConfig

from backend.runs.events import Completion, Note
from backend.runs.specs import AdaptiveBeta, FixedBeta, Launch, OnlineSpec
from backend.runs.specs.rewards import Rewards
from worker import ranks
from worker.encoding import check_end
from worker.experience import (
    Batch,
    Collected,
    Experience,
    Order,
    Row,
    divide,
    named,
    seed_of,
    without_spread,
)
from worker.forward import Texts
from worker.objectives.reinforcement import adaptive_beta, kl_estimate
from worker.recipes import probe, training
from worker.report import SpecCannotWork
from worker.resuming import Resuming
from worker.rewards import Composition, Measured, Rollout, Scores, combine
from worker.rollouts import Written, fitting, sample
from worker.rows import Prepared, readable

if TYPE_CHECKING:
    from peft import LoraConfig


def arguments(launch: Launch, prepared: Prepared, *, group_size: int) -> GRPOConfig:
    """TRL's arguments of *launch*, *group_size* completions to a prompt."""
    spec = launch.spec
    assert isinstance(spec, OnlineSpec)
    common = training.arguments(launch, prepared)
    common.pop("max_length")
    rollout = spec.optimization.accumulation * spec.batches_per_rollout
    config = GRPOConfig(
        **common,
        num_generations=group_size if group_size > 1 else spec.optimization.batch_size * rollout * ranks.world(),
        num_generations_eval=1,
        steps_per_generation=rollout,
        num_iterations=spec.epochs,
        max_completion_length=spec.sampling.max_new_tokens,
        temperature=spec.sampling.temperature,
        beta=0.0,  # TRL would build a reference of its own, from a path
        disable_dropout=False,
    )
    config.num_generations = group_size  # TRL refuses 1, which is right for GRPO and wrong for PPO
    return config


def _figures(scores: Scores) -> dict[str, float]:
    """Each component by itself; the share that no component could score is ours to say."""
    return {name: value for name, value in scores.figures().items() if name != "rewards/unscored"}


def _elsewhere(**_: Any) -> list[float]:
    """TRL wants a reward function; ours is a composition, asked in :meth:`Online.write`."""
    raise AssertionError("TRL's own rollout is not used")


class Online(Resuming):
    """A policy that learns from its own completions."""

    spec: OnlineSpec

    def __init__(
        self,
        launch: Launch,
        prepared: Prepared,
        rewards: Composition,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        config: GRPOConfig,
        reference: PreTrainedModel | None,
        adapter: "LoraConfig | None",
    ) -> None:
        """*reference*: the model the run starts from; ``None``: the policy with its adapter switched off."""
        assert isinstance(launch.spec, OnlineSpec)
        if getattr(model, "_is_stateful", False):
            raise SpecCannotWork(
                f"{type(model).__name__} keeps a state instead of keys and values, which cannot be shared by completions",
                remedy="Use a model whose layers all attend.",
                field="base_model",
            )
        self.spec = launch.spec
        self.rewards = rewards
        parts = self.spec.rewards.components
        self.plain = Rewards(components=[part.model_copy(update={"normalize": "none"}) for part in parts])
        """What is good, without normalization: one completion of a prompt has nothing to be compared with."""
        self.prompts = prepared.train
        super().__init__(
            model,
            reward_funcs=[_elsewhere],
            args=config,
            train_dataset=prepared.train,
            eval_dataset=prepared.held_out,
            processing_class=tokenizer,
            peft_config=adapter,
        )
        check_end(tokenizer, self.eos_token_ids, prepared.train[0]["prompt"])
        self.set_reference(reference)
        penalty = self.spec.kl.beta
        self.kl_beta = penalty.beta if isinstance(penalty, FixedBeta) else penalty.initial
        """What a nat of divergence costs now."""

    # --- for methods to override ----------------------------------------------------------------------------------

    def learn_from(self, experience: Experience) -> Batch:
        """What the loss needs besides the texts, a row per completion: ``advantages`` at least; and ``counts`` if changed."""
        raise NotImplementedError

    def collect(self, rows: list[Row]) -> Collected:
        """Completions of the prompts in *rows*."""
        return self.write(rows, self.num_generations, self.seeds("rollout", len(rows)))

    @property
    def needs_old_logps(self) -> bool:
        """Whether the policy's own log-probabilities are needed before the loss."""
        costs = self.kl_beta != 0 and self.spec.kl.place == "reward"
        return self.steps_per_rollout > 1 or costs or isinstance(self.spec.kl.beta, AdaptiveBeta)

    def remembered(self, texts: Texts, sampled: Tensor | None = None) -> Tensor:
        """Log-probabilities under the policy that wrote them, by the trainer's own reckoning: (B, T).

        *sampled*: what the sampler said of them. Where both reckon in single precision no pass is needed to repeat it.
        """
        return self.frozen(self.model, texts) if sampled is None or self.args.bf16 else sampled

    # --- what fits into memory -------------------------------------------------------------------------------------

    def longest_batch(self, rows: int) -> Batch:
        """*rows* completions of the longest prompts, none of which ended: no pass can have to read more."""
        size = self.num_generations
        lengths = probe.lengths(self.prompts.select_columns(["prompt_ids"]))
        longest = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        asked = [self.prompts[longest[i % len(longest)]] for i in range(-(-rows // size))]  # whole groups
        each = [row for row in asked for _ in range(size)]
        pad, length = self._tokenizer.pad_token_id, self.max_completion_length
        written = [Written([pad] * length, [0.0] * length, ended=False)] * len(each)
        device = self.args.device
        texts = Collected(each, written, Measured([], {})).texts(pad, device)
        nothing = torch.zeros(texts.completion_ids.shape, device=device)
        with self.apart():
            old = self.remembered(texts) if self.needs_old_logps else None
        scores, ended = nothing[:, 0], torch.zeros(len(each), dtype=torch.bool, device=device)
        experience = Experience(texts, texts.completion_mask, scores, ended, old, ref_logps=nothing)
        batch = {
            **named(texts),
            "counts": texts.completion_mask,
            "ref_logps": nothing,
            "sampled_logps": nothing,
            **({"old_logps": old} if old is not None else {}),
            **self.learn_from(experience),
        }
        part = {name: tensor[:rows] for name, tensor in batch.items()}
        return part | self._totals(part["counts"])

    def longest_row(self) -> int:
        """Tokens of the longest prompt and the longest completion that may follow it."""
        return max(probe.lengths(self.prompts.select_columns(["prompt_ids"]))) + int(self.max_completion_length)

    # --- the rollout -----------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        asked = self.args.generation_batch_size // self.num_generations
        rollouts = -(-self.args.max_steps // self.steps_per_rollout)
        return Order(len(self.prompts), asked, rollouts, self.num_generations, self._passes, self.args.seed)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """A part of the rollout; at its first pass the rollout itself. (Evaluation does not come here.)"""
        if self._step % self._passes == 0:
            # an adapter's dropout is the only other randomness: no state to remember, whenever it is asked
            torch.manual_seed(seed_of(self.args.seed, self.state.global_step, self.accelerator.process_index))
            self._buffered_inputs = self._roll_out(generation_batch[:: self.num_generations])
        assert self._buffered_inputs is not None
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def seeds(self, what: str, prompts: int) -> list[int]:
        """A seed for each prompt of this process: its place among those of all processes decides, and the step."""
        first = self.accelerator.process_index * prompts
        return [seed_of(self.args.seed, what, self.state.global_step, first + place) for place in range(prompts)]

    def write(
        self, rows: Sequence[Row], copies: int, seeds: Sequence[int], *, temperature: float | None = None
    ) -> Collected:
        """*copies* completions of the prompt of every row, measured."""
        alone = ranks.world() == 1  # a process that left by itself would leave the others waiting
        stopped = (lambda: self.stop.requested) if alone else (lambda: False)
        groups = sample(
            self.accelerator.unwrap_model(self.model),
            [row["prompt_ids"] for row in rows],
            seeds,
            copies=copies,
            ends=self.eos_token_ids,
            max_new_tokens=self.max_completion_length,
            temperature=self.temperature if temperature is None else temperature,
            pad=self._tokenizer.pad_token_id,
            at_once=self._at_once(),
            stopped=stopped,
        )
        each = [row for row in rows for _ in range(copies)]
        written = [text for group in groups for text in group]
        rollouts = [
            Rollout(
                prompt=row["prompt"],
                completion=text,
                prompt_ids=row["prompt_ids"],
                completion_ids=one.ids,
                ended=one.ended,
                group=i // copies,
                row=row,
            )
            for i, (row, one, text) in enumerate(zip(each, written, self.aloud(written), strict=True))
        ]
        measured = self.rewards.measure(rollouts, stopped=stopped)
        for warning in self.rewards.warnings():
            self.report.say(Note(level="warning", text=warning))
        return Collected(each, written, measured)

    def _at_once(self) -> int:
        """A quarter of a GPU may hold keys and values; on a processor more side by side gains nothing."""
        if self.args.device.type != "cuda":
            return 64
        memory = torch.cuda.get_device_properties(self.args.device).total_memory
        return fitting(self.accelerator.unwrap_model(self.model).config, self.spec.max_length, memory // 4)

    def aloud(self, written: Sequence[Written]) -> list[str]:
        """Completions as text, without the token that ended them."""
        texts: list[str] = self._tokenizer.batch_decode([one.ids for one in written], skip_special_tokens=True)
        return texts

    def care(self, scores: Scores, ended: Tensor) -> Tensor:
        """The scores that are learned from: cut to ±clip, then less where the end is missing; NaN stays: (B,)."""
        total = torch.as_tensor(scores.total, dtype=torch.float32)
        if self.spec.scores.clip:
            total = total.clamp(-self.spec.scores.clip, self.spec.scores.clip)
        return total - self.spec.scores.missing_end_penalty * (~ended).float()

    def _together(self, collected: Collected, rewards: Rewards) -> tuple[Scores, Tensor]:
        """The scores of all processes' completions, and what each is worth: (N,)."""
        measured = [collected.measured] if ranks.world() == 1 else gather_object([collected.measured])
        ended = gather_object([one.ended for one in collected.written])
        scores = combine(rewards, Measured.joined(measured))
        return scores, self.care(scores, torch.tensor(ended))

    def _roll_out(self, rows: list[Row]) -> list[Batch]:
        """A rollout in parts, one for each backward pass."""
        device = self.args.device
        collected = self.collect(rows)
        scores, worth = self._together(collected, self.spec.rewards)
        first = self.accelerator.process_index * len(collected.rows)
        mine = worth[first : first + len(collected.rows)].to(device)  # (B,)
        texts = collected.texts(self._tokenizer.pad_token_id, device)
        measured = slice(None) if self.spec.kl.beta != FixedBeta(beta=0) else slice(None, None, self.num_generations)
        experience = Experience(
            texts=texts,
            counts=texts.completion_mask * (~mine.isnan()).long().unsqueeze(1),
            scores=mine,
            ended=collected.ended(device),
            old_logps=self.remembered(texts, collected.logps(device)) if self.needs_old_logps else None,
            ref_logps=self.referred(texts, measured),
        )
        self._log_rollout(experience, scores, worth)
        batch = {
            **named(texts),
            "counts": experience.counts,
            "ref_logps": experience.ref_logps,
            "sampled_logps": collected.logps(device),
            **({"old_logps": experience.old_logps} if experience.old_logps is not None else {}),
            **self.learn_from(experience),
        }
        self._adapt(experience)
        parts = divide(batch, self.args.steps_per_generation)
        return [part | self._totals(batch["counts"]) for part in parts]

    def _totals(self, counts: Tensor) -> Batch:
        """What an average divides by, so that the parts of a step weigh as in the undivided rollout of all processes."""
        counted = torch.stack([counts.sum(), (counts.sum(1) > 0).sum()]).float()
        share = self.args.gradient_accumulation_steps / self.args.steps_per_generation
        totals = self.accelerator.reduce(counted, "sum") * share / self.accelerator.num_processes
        return {"total_tokens": totals[0], "total_completions": totals[1]}

    def _adapt(self, experience: Experience) -> None:
        penalty = self.spec.kl.beta
        if isinstance(penalty, AdaptiveBeta):
            assert experience.old_logps is not None
            spent = kl_estimate(experience.old_logps, experience.ref_logps, "k1") * experience.texts.completion_mask
            everyone = self.accelerator.gather(spent.sum(1))
            self.kl_beta = adaptive_beta(
                self.kl_beta,
                everyone.mean().item(),
                target=penalty.target,
                horizon=penalty.horizon,
                completions=len(everyone),
            )

    def _log_rollout(self, experience: Experience, scores: Scores, worth: Tensor) -> None:
        """*worth*: of all processes' completions."""
        say = self._metrics["train"]
        lengths = self.accelerator.gather(experience.texts.completion_mask.sum(1)).float()
        read = self.accelerator.gather(experience.texts.prompt_mask.sum(1)).sum()
        self._total_train_tokens += int(read.item() + lengths.sum().item())
        scored = worth[~worth.isnan()]
        told = {
            **_figures(scores),
            "unscored": 1 - len(scored) / len(worth),
            "completions/mean_length": lengths.mean().item(),
            "completions/min_length": lengths.min().item(),
            "completions/max_length": lengths.max().item(),
            "completions/clipped_ratio": 1 - self.mean(experience.ended.float()),
            "kl_coefficient": self.kl_beta,
            "num_tokens": float(self._total_train_tokens),
        }
        if len(scored):
            told |= {"reward": scored.mean().item(), "reward_std": scored.std(correction=0).item()}
        if (size := self.num_generations) > 1:
            told["frac_reward_zero_std"] = len(without_spread(worth, size)) * size / len(worth)
        for name, value in told.items():
            say[name].append(value)

    # --- evaluation ------------------------------------------------------------------------------------------------

    def evaluation_loop(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> EvalLoopOutput:
        """One completion of every held-out prompt, sampled as in training: that is what is trained, and what KL is of.

        The draws are the same at every evaluation, so that what changes is the policy.
        """
        self.model.eval()
        rows = self._held_out()
        mine = range(ranks.rank(), max(len(rows), ranks.rank() + 1), ranks.world())
        seeds = [seed_of(self.args.seed, "evaluation", i) for i in mine]
        collected = self.write([rows[i % len(rows)] for i in mine], 1, seeds)
        scores, worth = self._together(collected, self.plain)
        texts = collected.texts(self._tokenizer.pad_token_id, self.args.device)
        divergence = kl_estimate(self.frozen(self.model, texts), self.referred(texts, slice(None)), "k3")
        told = {
            **_figures(scores),
            "reward": worth.nanmean().item(),
            "unscored": worth.isnan().float().mean().item(),
            "kl": self.mean(divergence, texts.completion_mask),
            "completions/mean_length": self.mean(texts.completion_mask.sum(1).float()),
            "completions/clipped_ratio": 1 - self.mean(collected.ended(self.args.device).float()),
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in told.items()}
        return EvalLoopOutput(predictions=(), label_ids=None, metrics=metrics, num_samples=len(rows))

    def _held_out(self) -> list[Row]:
        assert self.eval_dataset is not None
        return list(self.eval_dataset)

    def shown(self, count: int) -> list[Completion]:
        """Greedy completions of the first *count* held-out prompts, with every component's score."""
        rows = self._held_out()[:count]
        if not rows:
            return []
        collected = self.write(rows, 1, [0] * len(rows), temperature=0)
        scores = combine(self.plain, collected.measured)
        texts = self.aloud(collected.written)
        return [
            Completion(
                prompt=readable(row["prompt"]),
                completion=text,
                tokens=len(one.ids),
                ended=one.ended,
                rewards={name: told[i] for name, told in scores.components.items()},
            )
            for i, (row, one, text) in enumerate(zip(rows, collected.written, texts, strict=True))
        ]
