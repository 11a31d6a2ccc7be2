"""What recipes of models that score have in common: what their outputs mean, a loss over what is known, texts with scores.

Reported for every kind: calibration (:mod:`worker.calibration`), the judge that only measures length, and the correlation
between score and length.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig

from worker import scoring
from worker.objectives import IGNORED
from worker.recipes.reckoning import Means, Reckoning, tokens
from worker.rows import Prepared

if TYPE_CHECKING:
    from peft import PeftConfig

Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


class Judge(Reckoning):
    """Mixed in before the trainer of a model that scores."""

    meaning: scoring.AttributesMeaning | scoring.StepsMeaning | None = None
    """What the outputs mean; saved with the model unless one score per text says it all."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.meaning is not None and self.args.should_save:
            scoring.write_meaning(self.meaning, Path(str(output_dir or self.args.output_dir)))

    def write_model(self, folder: Path) -> None:
        """See :class:`training.Frame`."""
        super().write_model(folder)
        if self.meaning is not None:
            scoring.write_meaning(self.meaning, folder)


class OwnLoss(Judge, Means):
    """A trainer without TRL: the loss is a sum over what is known, divided by how much is known in the whole step.

    A mean of means would weigh a forward pass with few labels as much as one with many; so batches, accumulated passes
    and processes can be cut in any way. Collated batches hold ``labels``, ``IGNORED`` where nothing is known.
    """

    def __init__(
        self,
        model: Any,
        *,
        args: RewardConfig,
        prepared: Prepared,
        collate: Collate,
        tokenizer: PreTrainedTokenizerBase,
        peft_config: "PeftConfig | None",
    ) -> None:
        torch.manual_seed(args.seed)  # draws the adapter
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
            if args.gradient_checkpointing:
                model.enable_input_require_grads()
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # by it the last token is found
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=prepared.train,
            eval_dataset=prepared.held_out,
            processing_class=tokenizer,
        )
        self.model_accepts_loss_kwargs = True  # have the labels of a step counted
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._total_train_tokens = 0

    def losses(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """One loss per label, 0 where it is ignored, from the model's outputs; keeps what a held-out batch tells."""
        raise NotImplementedError

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The step's share of the loss."""
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).logits.float()
        if model.training:
            tokens = self.accelerator.gather(inputs["attention_mask"].sum()).sum()
            self._total_train_tokens += int(tokens.item())
        mode = "train" if model.training else "eval"
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        loss: Tensor = self.losses(logits, inputs).sum()
        known = (inputs["labels"] != IGNORED).sum()
        if num_items_in_batch is None:
            loss = loss / known.clamp(min=1)
        else:
            loss = loss * self.accelerator.num_processes / num_items_in_batch  # processes are averaged afterwards
        if mode == "eval":
            self.weigh(loss, float(known))
        return loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The loss of a held-out batch, without gradients."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs), None, None


# --- rows and texts ----------------------------------------------------------------------------------------------


def padded(rows: list[list[Any]], pad: float) -> Tensor:
    """(B, T), padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])


def inputs(rows: list[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` (B, T)."""
    ids = [row["input_ids"] for row in rows]
    return {"input_ids": padded(ids, pad), "attention_mask": padded([[1] * len(row) for row in ids], 0)}


def lengths(dataset: Dataset, column: str = "input_ids") -> Tensor:
    """Tokens of the completions (N,): of a column with the prompt, without it."""
    return tokens(dataset, column) - torch.tensor(dataset["prompt_tokens"][:], dtype=torch.float64)


def told(score: float | None) -> float | None:
    """A score as an event carries it: what is no finite number could not be scored."""
    return score if score is not None and math.isfinite(score) else None
