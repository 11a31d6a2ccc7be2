"""Supervised fine-tuning: the mean of −log π(token | what comes before) over the tokens that count.

Columns in: ``prompt`` and ``completion``, or ``messages``, or ``text``. With *completion only* a row's completion (in
``messages`` what the assistant says) counts, its end token once; without it, everything counts.
Events out: ``loss``, ``mean_token_accuracy``, ``entropy``, their ``eval_`` twins, and held-out completions (greedy).

Left out: packing, and weights per row.
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from trl import SFTConfig, SFTTrainer

from backend.runs.specs import Launch, SFTSpec
from worker import networks, rows
from worker.recipes import training
from worker.recipes.show import written

if TYPE_CHECKING:
    from worker.report import Report, Stop


class SFT(training.Frame, SFTTrainer):
    """TRL's trainer in our frame."""


def run(launch: Launch, spec: SFTSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start)
    model = networks.load_to_train(start, spec.weights)
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    prepared = rows.prepare(launch, tokenizer, partial(rows.demonstrations, completion_only=spec.completion_only))
    trainer = SFT(
        model,
        args=SFTConfig(**training.arguments(launch, prepared)),
        train_dataset=prepared.train,
        eval_dataset=prepared.held_out,
        processing_class=tokenizer,
        peft_config=networks.lora_config(spec.weights),
    )
    training.carry_out(launch, report, stop, trainer, prepared, written(launch, trainer, prepared, stop))
