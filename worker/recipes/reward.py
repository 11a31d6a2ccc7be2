"""Reward model: a score r for a prompt with its completion, learned from comparisons.

    −log σ(r(chosen) − r(rejected) − margin) + λ·(r(chosen) + r(rejected))²

Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155; margin: Touvron et al. 2023, arXiv:2307.09288, Eq. 2;
centering: Eisenstein et al. 2023, arXiv:2312.09244. The score is read at the last token by a new linear head.

Columns in: ``prompt``, ``chosen``, ``rejected``, and ``margin`` if asked for.
Events out: ``accuracy``, ``margin`` (the mean of r(chosen) − r(rejected)), ``mean_reward``, their ``eval_`` twins, and
held-out pairs, chosen first, each text with its score.

Left out: ensembles, calibration.
"""

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from trl import RewardConfig, RewardTrainer

from backend.runs.events import Completion
from backend.runs.specs import Launch, RewardSpec
from worker import networks, rows
from worker.recipes import training

if TYPE_CHECKING:
    from worker.report import Report, Stop


class Reward(training.Frame, RewardTrainer):
    """TRL's trainer in our frame."""


def run(launch: Launch, spec: RewardSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)  # draws the new head
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start)
    model = networks.load(start, reward=True, dtype=networks.working_dtype(spec.weights))
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    networks.silence_dropout(model)
    prepared = rows.prepare(launch, tokenizer, partial(rows.scored_pairs, use_margin=spec.use_margin))
    trainer = Reward(
        model,
        args=RewardConfig(
            **training.arguments(launch, prepared),
            center_rewards_coefficient=spec.centering or None,
            disable_dropout=False,
        ),
        train_dataset=prepared.train,
        eval_dataset=prepared.held_out,
        processing_class=tokenizer,
        peft_config=networks.lora_config(spec.weights, reward=True),
    )
    training.carry_out(launch, report, stop, trainer, prepared, _scored(trainer, launch, prepared))


@torch.no_grad()
def score(model: Any, ids: list[list[int]], pad: int) -> list[float]:
    """The reward of each sequence of token ids."""
    longest = max(map(len, ids))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    rewards = model(
        input_ids=torch.tensor([row + [pad] * (longest - len(row)) for row in ids], device=device),  # (B, T)
        attention_mask=torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device),
    ).logits.squeeze(-1)  # (B,)
    model.train(was_training)
    scores: list[float] = rewards.tolist()
    return scores


def _scored(trainer: Reward, launch: Launch, prepared: rows.Prepared) -> training.Show:
    """The first held-out pairs with their scores: as many texts as the spec asks completions for."""
    tokenizer: Any = trainer.processing_class
    encoder = rows.Encoder(tokenizer, launch.spec.max_length)
    texts = [
        (rows.readable(row["prompt"]), rows.readable(row[side]), encoder.pairs([row["prompt"]], [row[side]])[0])
        for row in prepared.examples[: launch.spec.evaluation.completions // 2]
        for side in ("chosen", "rejected")
    ]

    def show() -> list[Completion]:
        if not texts:
            return []
        ids = [(pair.prompt + pair.completion)[: launch.spec.max_length] for _, _, pair in texts]
        scores = score(trainer.accelerator.unwrap_model(trainer.model), ids, tokenizer.pad_token_id)
        return [
            Completion(
                prompt=prompt,
                completion=completion,
                tokens=len(pair.completion),
                ended=row[-1] == tokenizer.eos_token_id,
                rewards={"score": value if math.isfinite(value) else None},
            )
            for (prompt, completion, pair), row, value in zip(texts, ids, scores, strict=True)
        ]

    return show
