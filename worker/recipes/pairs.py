"""What methods on pairs share whose loss is ours: one pass over both sides, the numbers told, a trainer without a reference.

Columns in: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``. Numbers out, under TRL's names: ``rewards/{chosen,rejected,
margins,accuracies}``, ``logps/{chosen,rejected}`` (summed over the completion, whatever the loss averages, so that
methods can be compared), ``entropy``, ``num_tokens``. A pair with equal rewards is not a win. Where rows have a
probability, accuracy is of the decided pairs: ties are not asked, and below 1/2 the rejected side is the better one.
At every evaluation also what length alone says (:mod:`worker.recipes.reckoning`).

Log-probabilities come from TRL's fused head: of completion tokens only, without keeping the (B, T, V) logits.
Left out: the load-balancing loss of mixtures of experts.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from backend.runs.specs import Launch
from worker import networks, rows
from worker.objectives import IGNORED
from worker.recipes import training
from worker.recipes.reckoning import Compared, Means
from worker.recipes.show import written
from worker.rows import Prepared

if TYPE_CHECKING:
    from peft import PeftConfig

    from worker.report import Report, Stop


class Side(NamedTuple):
    """The chosen or the rejected completions of a batch."""

    logps: Tensor
    """Summed log-probabilities (B,)."""
    tokens: Tensor
    """How many tokens each of them has (B,)."""

    @property
    def mean(self) -> Tensor:
        """Log-probability per token (B,)."""
        return self.logps / self.tokens


class Judged(NamedTuple):
    """What an objective says of a batch."""

    loss: Tensor
    """A number; a mean over pairs, if a step's passes are to be weighed by them (:class:`WithoutReference`)."""
    chosen: Tensor
    """Rewards of the chosen completions (B,)."""
    rejected: Tensor
    """Rewards of the rejected ones (B,)."""
    told: Mapping[str, Tensor] = {}
    """More numbers for the log."""


Objective = Callable[[Side, Side], Judged]


class Sides(NamedTuple):
    """One pass of the policy over a batch of pairs."""

    chosen: Side
    rejected: Side
    entropy: Tensor
    """Mean over the completions' tokens."""


def passed(model: Any, inputs: Mapping[str, Tensor]) -> Sides:
    """Both sides at once: rows of *inputs* are the chosen ones, then the rejected ones (2B, T)."""
    counts = inputs["completion_mask"][:, 1:]  # (2B, T-1)
    outputs = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED),
        use_cache=False,
        fused_lm_head=True,
    )
    logps = outputs.log_probs.sum(1)  # (2B,)
    tokens = counts.sum(1).clamp(min=1)  # (2B,)
    chosen, rejected = (Side(*side) for side in zip(logps.chunk(2), tokens.chunk(2), strict=True))
    return Sides(chosen, rejected, (outputs.entropy.detach() * counts).sum() / counts.sum().clamp(min=1))


def tell(trainer: Any, inputs: Mapping[str, Tensor], sides: Sides, judged: Judged) -> None:
    """Put a batch's numbers where TRL's trainers collect theirs.

    Of held-out rows nothing is gathered, as every process sees all. Of the others everything is: ``gather_for_metrics``
    would cut each pass of an epoch's last step to what the last pass has over.
    """
    mode = "train" if trainer.model.training else "eval"
    gather = trainer.accelerator.gather if mode == "train" else torch.Tensor.detach
    if mode == "train":
        trainer._total_train_tokens += gather(inputs["attention_mask"].sum()).sum().item()
    trainer._metrics[mode]["num_tokens"] = [trainer._total_train_tokens]
    numbers = {
        "rewards/chosen": judged.chosen,
        "rewards/rejected": judged.rejected,
        "rewards/margins": judged.chosen - judged.rejected,
        "logps/chosen": sides.chosen.logps,
        "logps/rejected": sides.rejected.logps,
        "entropy": sides.entropy,
        **judged.told,
    }
    if mode == "eval":
        numbers["loss"] = judged.loss.expand(len(judged.chosen))
    for name, values in numbers.items():  # a number for each pair: batches hold more or fewer
        trainer._metrics[mode][name] += gather(values.detach()).flatten().tolist()
    margins = gather((judged.chosen - judged.rejected).detach())
    known = gather(inputs["probability"]) if "probability" in inputs else torch.ones_like(margins)
    if decided := wins(margins, known).tolist():
        trainer._metrics[mode]["rewards/accuracies"] += decided


def wins(margins: Tensor, probability: Tensor) -> Tensor:
    """1 for each decided pair whose margin (B,) is on the better side by its probability (B,), else 0; ties are left out."""
    return (margins * (probability - 0.5) > 0).float()[probability != 0.5]


class WithoutReference(Compared, Means):
    """Trains on pairs by a loss of the policy alone: a mean over the pairs of a step, whatever its passes and processes.

    A mean of means would weigh a pair in an epoch's last pass, which may hold a single one, as much as a whole batch.
    """

    loss_is_scaled_for_ga = True
    """A pass gives its share of the step's loss: Transformers shall not divide it by the number of passes."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        *,
        args: DPOConfig,
        prepared: Prepared,
        processing_class: PreTrainedTokenizerBase,
        peft_config: "PeftConfig | None",
    ) -> None:
        """*model* is changed in place: it gets the fused head, and the adapter if there is one."""
        torch.manual_seed(args.seed)  # draws the adapter
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
            if args.gradient_checkpointing:
                model.enable_input_require_grads()
        super().__init__(
            model=model,
            args=args,
            data_collator=DataCollatorForPreference(pad_token_id=int(processing_class.pad_token_id)),
            train_dataset=prepared.train,
            eval_dataset=prepared.held_out,
            processing_class=processing_class,
        )
        self._objective = objective
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._total_train_tokens = 0

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt_ids", "chosen_ids", "rejected_ids"]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor]:
        """The batches of a step, and how many pairs are in it, over all its passes and processes."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        pairs = torch.tensor(sum(len(batch["input_ids"]) // 2 for batch in batches), device=self.args.device)
        return batches, self.accelerator.gather(pairs).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The batch's share of its step's loss, or without a step its own; its numbers are kept for the log."""
        sides = passed(model, inputs)
        judged = self._objective(sides.chosen, sides.rejected)
        tell(self, inputs, sides, judged)
        if num_items_in_batch is None:
            return judged.loss
        share = len(judged.chosen) / num_items_in_batch
        loss: Tensor = judged.loss * share * self.accelerator.num_processes  # processes are averaged afterwards
        return loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The loss of a held-out batch, without gradients."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None


def carry_out(launch: Launch, objective: Objective, report: "Report", stop: "Stop") -> None:
    """Train by *objective* alone: what ORPO and SimPO have in common."""
    spec = launch.spec
    torch.manual_seed(spec.seed)
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start)
    model = networks.load_to_train(start, spec.weights)
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    networks.silence_dropout(model)
    prepared = rows.prepare(launch, tokenizer, rows.comparisons)
    trainer = WithoutReference(
        model,
        objective,
        args=DPOConfig(**training.arguments(launch, prepared)),
        prepared=prepared,
        processing_class=tokenizer,
        peft_config=networks.lora_config(spec.weights),
    )
    training.carry_out(launch, report, stop, trainer, prepared, written(launch, trainer, prepared, stop))
