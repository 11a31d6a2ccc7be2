"""Before the first step: do the longest rows fit into memory?

Otherwise a run dies hours later, at the first batch that happens to be long. The probe takes a whole batch of the longest
rows forward and backward, twice: the second time gradients lie in memory, as they do under accumulation. Meanwhile as
much memory is held as the optimizer will need for its moments. It costs about two steps, on every device: where a step
takes long, a run has many.

It leaves no trace: random numbers are forked, gradients removed, what was counted is put back.
"""

import copy
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import TrainerCallback

from backend.runs.specs import DeepSpeed, OnlineSpec
from worker import memory, ranks
from worker.memory import Fits

if TYPE_CHECKING:
    from worker.recipes.training import Frame

_COUNTED = ("_metrics", "_total_train_tokens")


def lengths(rows: Any) -> list[int]:
    """Tokens of each row, its texts together: what it takes grows with them."""
    table: pa.Table = rows.with_format("arrow")[:]
    total = pa.array([0] * len(table), pa.int64())
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_list(column.type) and name not in ("labels", "seq_lengths"):
            total = pc.add(total, pc.fill_null(pc.list_value_length(column), 0).cast(pa.int64()))
    counted: list[int] = total.to_pylist()
    return counted


class Probe(TrainerCallback):
    """Asks before the training begins, after a checkpoint is loaded."""

    def __init__(self, trainer: "Frame") -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Raises :class:`SpecCannotWork` with advice if the longest batch does not fit."""
        trainer = self.trainer
        spec = trainer.launch.spec
        if isinstance(spec.devices, DeepSpeed):  # its engine counts every backward pass as part of a step
            return
        size = spec.optimization.batch_size
        if not isinstance(spec, OnlineSpec):  # of a prompt there may be any number of completions
            size = min(size, len(trainer.train_dataset))
        if self._fits(size) is not None:
            return
        fits: list[Fits] = []
        smaller = size // 2
        while smaller and len(fits) < 2:
            if (found := self._fits(smaller)) is not None:
                fits.append(found)
            smaller //= 2
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        raise memory.advice(spec, longest=trainer.longest_row(), fits=fits, trainable=trainable)

    def _fits(self, rows: int) -> Fits | None:
        """What *rows* of the longest rows take; ``None`` if it is too much in any process."""
        peak: int | None = None
        full = False
        try:
            peak = memory.peak_of(lambda: self._twice(rows))
        except (RuntimeError, MemoryError) as error:
            if not memory.is_full(error):
                raise
            full = True
        self.trainer.model.zero_grad(set_to_none=True)
        memory.give_back()
        return None if ranks.any_of(full) else Fits(rows, peak)

    def _twice(self, rows: int) -> None:
        trainer = self.trainer
        model: Any = trainer.model
        kept = {name: copy.deepcopy(getattr(trainer, name)) for name in _COUNTED if hasattr(trainer, name)}
        moments = [] if trainer.optimizer is None or trainer.optimizer.state else [
            torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)
        ]  # fmt: skip
        model.train()
        try:
            batch = trainer.longest_batch(rows)
            with trainer.apart():
                for _ in range(2):
                    inputs = trainer._prepare_input(dict(batch))
                    with trainer.compute_loss_context_manager():
                        loss = trainer.compute_loss(model, inputs)
                    trainer.accelerator.backward(loss)
        finally:
            del moments
            for name, value in kept.items():
                setattr(trainer, name, value)
