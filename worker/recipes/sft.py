"""Supervised fine-tuning: the mean of −log π(token | what comes before) over the tokens that count.

Columns in: ``prompt`` and ``completion``, or ``messages``, or ``text``. With *completion only* a row's completion (in
``messages`` what the assistant says) counts, its end token once; without it, everything counts. With *packing* several
rows share a sequence, and a batch's rows are such sequences; held-out rows stand alone, so that runs with and without it
are measured alike.
Events out: ``loss``, ``mean_token_accuracy``, ``entropy``, their ``eval_`` twins, and held-out completions (greedy).

Left out: weights per row.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from trl import SFTConfig, SFTTrainer

from backend.runs.events import Note
from backend.runs.specs import Launch, SFTSpec
from worker import networks, packing, rows
from worker.objectives import IGNORED
from worker.recipes import training
from worker.recipes.reckoning import Reckoning
from worker.recipes.show import written

if TYPE_CHECKING:
    from worker.report import Report, Stop


class SFT(Reckoning, SFTTrainer):
    """TRL's trainer in our frame. Held-out figures are means over tokens, whatever the batches; TRL's over batches."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; of packed rows TRL counts the tokens of one sequence only."""
        seen = self._total_train_tokens
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not self.model.training:
            self.weigh(loss, float((inputs["labels"][:, 1:] != IGNORED).sum()))
        elif "position_ids" in inputs:
            tokens = torch.tensor(inputs["input_ids"].numel(), device=self.args.device)
            self._total_train_tokens = seen + int(self.accelerator.gather(tokens).sum())
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss


def run(launch: Launch, spec: SFTSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start)
    model = networks.load_to_train(start, spec.weights)
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    prepared = rows.prepare(launch, tokenizer, partial(rows.demonstrations, completion_only=spec.completion_only))
    train = prepared.train
    if spec.packing:
        packing.check_blind(model, len(tokenizer))
        train = packing.pack(prepared.train, spec.max_length)
        report.say(Note(text=f"{len(prepared.train)} rows are packed into {len(train)} sequences."))
    trainer = SFT(
        model,
        args=SFTConfig(**training.arguments(launch, prepared)),
        data_collator=packing.Collator(tokenizer.pad_token_id) if spec.packing else None,
        train_dataset=train,
        eval_dataset=prepared.held_out,
        processing_class=tokenizer,
        peft_config=networks.lora_config(spec.weights),
    )
    training.carry_out(launch, report, stop, trainer, prepared, written(launch, trainer, prepared, stop))
