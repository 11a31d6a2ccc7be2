"""What methods share that learn from what they write: sampling, scoring, the reference, evaluation, exact resume.

TRL's GRPO trainer runs the loop (how often is sampled, accumulation, several processes); what happens in it is ours. A
method overrides :meth:`Online.learn_from` (advantages) and :meth:`Online._compute_loss`.

A rollout's randomness is a function of seed, step and process alone, and so is the order of the prompts: a rollout that
was broken off is written again, word for word. A checkpoint within a rollout's steps carries what is left of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from trl import GRPOConfig, GRPOTrainer

from backend.runs.events import Completion
from backend.runs.specs import AdaptiveBeta, FixedBeta, Launch, OnlineSpec
from backend.runs.specs.rewards import Rewards
from worker import forward, ranks
from worker.forward import Pass, Texts
from worker.objectives.reinforcement import adaptive_beta, kl_estimate
from worker.recipes import training
from worker.report import StopRequested
from worker.rewards import Composition, Measured, Rollout, Scores, combine
from worker.rollouts import Written, sample
from worker.rows import Prepared, readable

if TYPE_CHECKING:
    from peft import LoraConfig

Row = Mapping[str, Any]
Batch = dict[str, Tensor]
"""Tensors of a rollout or a part of it, a row per completion; ``total`` alone has no rows."""


@dataclass(frozen=True)
class Collected:
    """Completions of one process and what the verifiers say of them; each prompt's stand side by side."""

    rows: list[Row]
    """The dataset's row of every completion."""
    written: list[Written]
    """Every completion."""
    measured: Measured
    """What each component scored."""

    def picked(self, places: Sequence[int]) -> Self:
        """Some of them, in a new order."""
        measured = Measured(
            [self.measured.groups[i] for i in places],
            {name: [told[i] for i in places] for name, told in self.measured.components.items()},
            {name: [told[i] for i in places] for name, told in self.measured.extras.items()},
        )
        return type(self)([self.rows[i] for i in places], [self.written[i] for i in places], measured)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All of them."""
        return cls(
            [row for part in parts for row in part.rows],
            [text for part in parts for text in part.written],
            Measured.joined([part.measured for part in parts]),
        )


@dataclass(frozen=True)
class Experience:
    """A rollout of one process as tensors: what a method learns from."""

    texts: Texts
    """Prompts and completions: (B, P), (B, T)."""
    counts: Tensor
    """1 at tokens that count in the loss: not of completions that nobody could score: (B, T)."""
    scores: Tensor
    """What each completion is worth, clip and penalty applied; NaN: unscored: (B,)."""
    ended: Tensor
    """Whether it ended by itself: (B,)."""
    old_logps: Tensor | None
    """Log-probabilities under the policy that wrote it: (B, T); ``None`` if the only step on it is the next one."""
    ref_logps: Tensor
    """Under the reference; NaN where it was not asked: (B, T)."""


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


def _elsewhere(**_: Any) -> list[float]:
    """TRL wants a reward function; ours is a composition, asked in :meth:`Online.write`."""
    raise AssertionError("TRL's own rollout is not used")


class Online(training.Frame, GRPOTrainer):
    """A policy that learns from its own completions."""

    spec: OnlineSpec
    _step: int
    _buffered_inputs: list[Batch] | None

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
        self.reference = reference
        if reference is not None:
            from trl.trainer.utils import add_fused_lm_head

            add_fused_lm_head(reference, temperature=self.temperature)
            reference.to(self.args.device).eval().requires_grad_(False)
        penalty = self.spec.kl.beta
        self.kl_beta = penalty.beta if isinstance(penalty, FixedBeta) else penalty.initial
        """What a nat of divergence costs now."""

    # --- for methods to override ----------------------------------------------------------------------------------

    def learn_from(self, experience: Experience) -> Batch:
        """What the loss needs besides the texts, a row per completion: ``advantages`` at least; and ``counts`` if changed."""
        raise NotImplementedError

    def collect(self, rows: list[Row]) -> Collected:
        """Completions of the prompts in *rows*."""
        return self.write(rows, self.num_generations)

    def more_state(self) -> dict[str, Any]:
        """Tensors and numbers of the method that a checkpoint must hold besides the weights."""
        return {}

    def load_more_state(self, state: dict[str, Any]) -> None:
        """Take back :meth:`more_state`."""

    # --- the rollout -----------------------------------------------------------------------------------------------

    @property
    def needs_old_logps(self) -> bool:
        """Whether the policy's own log-probabilities are needed before the loss."""
        several = self.args.steps_per_generation * self.num_iterations > self.args.gradient_accumulation_steps
        return several or self.spec.kl.place == "reward" or isinstance(self.spec.kl.beta, AdaptiveBeta)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        repeats = self.args.steps_per_generation * self.num_iterations
        steps = repeats // self.args.gradient_accumulation_steps
        asked = self.args.generation_batch_size // self.num_generations
        rollouts = -(-self.args.max_steps // steps)
        return Order(len(self.prompts), asked, rollouts, self.num_generations, repeats, self.args.seed)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """A part of the rollout; at its first step the rollout itself. (Evaluation does not come here.)"""
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            torch.manual_seed(self._seed("rollout"))
            self._buffered_inputs = self._divide(self._roll_out(generation_batch[:: self.num_generations]))
        assert self._buffered_inputs is not None
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _seed(self, *what: Any) -> int:
        """A seed that only the run's seed, the step, the process and *what* decide."""
        told = repr((self.args.seed, self.state.global_step, self.accelerator.process_index, *what))
        return int.from_bytes(blake2b(told.encode(), digest_size=7).digest(), "big")

    def write(self, rows: list[Row], copies: int, *, temperature: float | None = None) -> Collected:
        """*copies* completions of the prompt of every row, measured."""
        alone = ranks.world() == 1  # a process that left by itself would leave the others waiting
        groups = sample(
            self.accelerator.unwrap_model(self.model),
            [row["prompt_ids"] for row in rows],
            copies=copies,
            ends=self.eos_token_ids,
            max_new_tokens=self.max_completion_length,
            temperature=self.temperature if temperature is None else temperature,
            pad=self._tokenizer.pad_token_id,
            stopped=(lambda: self.stop.requested) if alone else (lambda: False),
        )
        each = [row for row in rows for _ in range(copies)]
        written = [text for group in groups for text in group]
        texts = self.read_aloud(written)
        measured = self.rewards.measure(
            [
                Rollout(
                    prompt=row["prompt"],
                    completion=text,
                    prompt_ids=row["prompt_ids"],
                    completion_ids=one.ids,
                    ended=one.ended,
                    group=i // copies,
                    row=row,
                )
                for i, (row, one, text) in enumerate(zip(each, written, texts, strict=True))
            ]
        )
        return Collected(each, written, measured)

    def read_aloud(self, written: Sequence[Written]) -> list[str]:
        """Completions as text, without the token that ended them."""
        texts: list[str] = self._tokenizer.batch_decode([one.ids for one in written], skip_special_tokens=True)
        return texts

    def care(self, scores: Scores, ended: Tensor) -> Tensor:
        """The scores that are learned from: cut to ±clip, then less where the end is missing; NaN stays: (B,)."""
        total = torch.as_tensor(scores.total, dtype=torch.float32)
        if self.spec.scores.clip:
            total = total.clamp(-self.spec.scores.clip, self.spec.scores.clip)
        return total - self.spec.scores.missing_end_penalty * (~ended).float()

    def _together(self, collected: Collected, *, normalize: bool = True) -> tuple[Scores, Tensor]:
        """The scores of all processes' completions, and what is learned from of each: (N,)."""
        everyone = [collected.measured] if ranks.world() == 1 else gather_object([collected.measured])
        ended = gather_object([one.ended for one in collected.written])
        scores = combine(self.spec.rewards if normalize else self.plain, Measured.joined(everyone))
        return scores, self.care(scores, torch.tensor(ended))

    def _roll_out(self, rows: list[Row]) -> Batch:
        collected = self.collect(rows)
        scores, worth = self._together(collected)
        texts = self._pad(collected)
        first = self.accelerator.process_index * len(collected.rows)
        mine = worth[first : first + len(collected.rows)].to(texts.prompt_ids.device)  # (B,)
        measured = self.spec.kl.beta != FixedBeta(beta=0)
        asked = slice(None) if measured else slice(None, None, self.num_generations)
        experience = Experience(
            texts=texts,
            counts=texts.completion_mask * (~mine.isnan()).long().unsqueeze(1),
            scores=mine,
            ended=torch.tensor([one.ended for one in collected.written], device=mine.device),
            old_logps=self.frozen(self.model, texts) if self.needs_old_logps else None,
            ref_logps=self.referred(texts, asked),
        )
        self._log_rollout(experience, scores, worth)
        batch = {
            **{field.name: getattr(texts, field.name) for field in fields(texts)},
            "counts": experience.counts,
            "ref_logps": experience.ref_logps,
            "sampled_logps": self._padded([one.logps for one in collected.written], 0.0, texts),
            **({"old_logps": experience.old_logps} if experience.old_logps is not None else {}),
            **self.learn_from(experience),
        }
        self._adapt(experience)
        return batch

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
        say = self._metrics["train"]
        for name, value in scores.figures().items():
            say[name].append(value)
        scored = worth[~worth.isnan()]
        say["unscored"].append(1 - len(scored) / len(worth))
        say["reward"].append(scored.mean().item())
        say["reward_std"].append(scored.std(correction=0).item())
        if self.num_generations > 1:
            spread = worth.view(-1, self.num_generations)
            flat = torch.stack([(row[~row.isnan()] - row.nanmean()).abs().sum() for row in spread]) < 1e-6
            say["frac_reward_zero_std"].append(flat.float().mean().item())
        lengths = self.accelerator.gather(experience.texts.completion_mask.sum(1)).float()
        ended = self.accelerator.gather(experience.ended.int()).float()
        say["completions/mean_length"].append(lengths.mean().item())
        say["completions/min_length"].append(lengths.min().item())
        say["completions/max_length"].append(lengths.max().item())
        say["completions/clipped_ratio"].append(1 - ended.mean().item())
        read = self.accelerator.gather(experience.texts.prompt_mask.sum(1)).sum()
        self._total_train_tokens += int(read.item() + lengths.sum().item())
        say["num_tokens"] = [float(self._total_train_tokens)]
        if isinstance(self.spec.kl.beta, AdaptiveBeta):
            say["kl/beta"].append(self.kl_beta)

    def _pad(self, collected: Collected) -> Texts:
        device = self.args.device
        width = max(len(row["prompt_ids"]) for row in collected.rows)
        length = max(len(one.ids) for one in collected.written)
        pad = self._tokenizer.pad_token_id
        prompts = [list(row["prompt_ids"]) for row in collected.rows]
        return Texts(
            torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device),
            torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device),
            torch.tensor([one.ids + [pad] * (length - len(one.ids)) for one in collected.written], device=device),
            torch.tensor(
                [[1] * len(one.ids) + [0] * (length - len(one.ids)) for one in collected.written], device=device
            ),
        )

    def _padded(self, values: Sequence[list[float]], fill: float, texts: Texts) -> Tensor:
        length = texts.completion_ids.size(1)
        return torch.tensor([row + [fill] * (length - len(row)) for row in values], device=self.args.device)

    def _divide(self, batch: Batch) -> list[Batch]:
        """Parts of a rollout, one for each backward pass: groups stay together as far as they fit, padding goes.

        ``total``: what an average divides by, tokens or completions that count, so that the parts of one optimizer
        step weigh as in the undivided rollout.
        """
        groups = len(batch["counts"]) // self.num_generations
        order = torch.randperm(groups).repeat_interleave(self.num_generations) * self.num_generations
        order += torch.arange(self.num_generations).repeat(groups)
        parts = self.args.steps_per_generation
        if parts == 1:
            order = torch.arange(len(order))  # nothing is divided
        counted = torch.stack([batch["counts"].sum(), (batch["counts"].sum(1) > 0).sum()])
        share = self.args.gradient_accumulation_steps / parts / self.accelerator.num_processes
        totals = self.accelerator.reduce(counted.float(), "sum") * share
        divided = []
        for places in order.to(self.args.device).chunk(parts):
            part = {name: tensor[places] for name, tensor in batch.items()}
            divided.append(_trimmed(part) | {"total_tokens": totals[0], "total_completions": totals[1]})
        return divided

    # --- reading ---------------------------------------------------------------------------------------------------

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

    @torch.no_grad()
    def frozen(self, model: nn.Module, texts: Texts) -> Tensor:
        """Log-probabilities under *model*, without gradient and dropout, a batch at a time: (B, T)."""
        was_training = model.training
        model.eval()
        try:
            size = max(self.args.per_device_train_batch_size, self.num_generations)
            parts = [
                forward.read(
                    model,
                    Texts(*(getattr(texts, field.name)[start : start + size] for field in fields(texts))),
                    temperature=self.temperature,
                ).logps
                for start in range(0, len(texts.prompt_ids), size)
            ]
        finally:
            model.train(was_training)
        return torch.cat(parts)

    def referred(self, texts: Texts, rows: slice) -> Tensor:
        """Log-probabilities under the reference of *rows*, NaN elsewhere: (B, T)."""
        asked = Texts(*(getattr(texts, field.name)[rows] for field in fields(texts)))
        with self.as_reference() as model:
            known = self.frozen(model, asked)
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

    def mean(self, values: Tensor, mask: Tensor) -> float:
        """Over what *mask* counts, in all processes."""
        kept = mask.bool()
        told = torch.stack([torch.where(kept, values, 0).sum().float(), kept.sum().float()])
        total, count = self.accelerator.reduce(told, "sum").tolist()
        return float(total / max(count, 1.0))

    def log_pass(self, said: Pass, batch: Batch) -> None:
        """Entropy, divergence from the reference, and whether sampler and trainer agree."""
        say, counts = self._metrics["train"], batch["completion_mask"]
        logps = said.logps.detach()
        assert said.entropies is not None
        say["entropy"].append(self.mean(said.entropies, counts))
        known = counts * (~batch["ref_logps"].isnan())
        say["kl"].append(self.mean(kl_estimate(logps, batch["ref_logps"], "k3"), known))
        if "old_logps" not in batch:
            apart = (logps - batch["sampled_logps"]).abs()
            say["sampling/logp_difference"].append(self.mean(apart, counts))

    # --- evaluation ------------------------------------------------------------------------------------------------

    def evaluation_loop(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> EvalLoopOutput:
        """One completion of every held-out prompt, sampled as in training, which is what the policy is trained on."""
        self.model.eval()
        torch.manual_seed(self._seed("evaluation") if ranks.world() > 1 else self.args.seed)
        assert self.eval_dataset is not None
        rows = [self.eval_dataset[i] for i in range(len(self.eval_dataset))]
        mine = rows[ranks.rank() :: ranks.world()] or rows[:1]
        collected = self.write(mine, 1)
        scores, worth = self._together(collected, normalize=False)
        texts = self._pad(collected)
        reference = self.referred(texts, slice(None))
        policy = self.frozen(self.model, texts)
        told = {
            **scores.figures(),
            "reward": worth.nanmean().item(),
            "unscored": worth.isnan().float().mean().item(),
            "kl": self.mean(kl_estimate(policy, reference, "k3"), texts.completion_mask),
            "completions/mean_length": self.accelerator.gather(texts.completion_mask.sum(1)).float().mean().item()
            if ranks.world() == 1
            else self.mean(texts.completion_mask.sum(1).float(), torch.ones(len(mine), device=policy.device)),
            "completions/clipped_ratio": 1
            - self.mean(
                torch.tensor([float(one.ended) for one in collected.written], device=policy.device),
                torch.ones(len(mine), device=policy.device),
            ),
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in told.items()}
        return EvalLoopOutput(predictions=(), label_ids=None, metrics=metrics, num_samples=len(rows))

    def shown(self, count: int) -> list[Completion]:
        """Greedy completions of the first *count* held-out prompts, with every component's score."""
        if not count:
            return []
        assert self.eval_dataset is not None
        rows = [self.eval_dataset[i] for i in range(min(count, len(self.eval_dataset)))]
        collected = self.write(rows, 1, temperature=0)
        scores = combine(self.plain, collected.measured)
        texts = self.read_aloud(collected.written)
        return [
            Completion(
                prompt=readable(row["prompt"]),
                completion=text,
                tokens=len(one.ids),
                ended=one.ended,
                rewards={name: told[i] for name, told in scores.components.items()},
            )
            for i, (row, one, text) in enumerate(zip(collected.rows, collected.written, texts, strict=True))
        ]

    # --- stopping and resuming -------------------------------------------------------------------------------------

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
        within = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        state = {
            "batches": self._buffered_inputs if within else None,
            "kl_beta": self.kl_beta,
            "more": self.more_state(),
        }
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        torch.save(state, self._rollout_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        state = torch.load(self._rollout_file(checkpoint), weights_only=True, map_location=self.args.device)
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        self._buffered_inputs, self.kl_beta = state["batches"], state["kl_beta"]
        self.load_more_state(state["more"])


class Order(Sampler[int]):
    """Which prompts each rollout asks: one shuffling of all after the other, decided by the seed alone.

    Each prompt *copies* times side by side; the whole rollout *repeats* times, because TRL fetches it at every pass.
    """

    def __init__(self, prompts: int, asked: int, rollouts: int, copies: int, repeats: int, seed: int) -> None:
        self.prompts, self.asked, self.rollouts = prompts, asked, rollouts
        self.copies, self.repeats, self.seed = copies, repeats, seed

    def __len__(self) -> int:
        return self.asked * self.rollouts * self.copies * self.repeats

    def __iter__(self) -> Iterator[int]:
        stream = self.stream()
        for _ in range(self.rollouts):
            rollout = [i for i in (next(stream) for _ in range(self.asked)) for _ in range(self.copies)]
            for _ in range(self.repeats):
                yield from rollout

    def stream(self) -> Iterator[int]:
        """Prompts without end."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(self.prompts, generator=generator).tolist()


def texts_of(batch: Batch) -> Texts:
    """The texts in *batch*."""
    return Texts(*(batch[field.name] for field in fields(Texts)))


def _trimmed(batch: Batch) -> Batch:
    """Without columns in which every row has only padding: on the left of prompts, on the right of completions."""
    prompt = int(batch["prompt_mask"].sum(1).max())
    length = int(batch["completion_mask"].sum(1).max())
    whole = batch["completion_mask"].size(1)
    return {
        name: tensor[:, -prompt:]
        if name.startswith("prompt_")
        else tensor[:, :length]
        if tensor.dim() > 1 and tensor.size(1) == whole
        else tensor
        for name, tensor in batch.items()
    }
