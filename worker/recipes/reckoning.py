"""Figures of all held-out rows at once, and what length alone would say of pairs.

TRL's trainers average over batches. That is no mean over rows where batches differ in size or in what they hold (thumbs
up and down), and ranks and calibration are no means at all. So an evaluation weighs each batch by what it holds, or keeps
what it finds about each row, and reckons at its end: how rows lie in batches and processes changes nothing.
"""

import operator
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer

from worker import calibration
from worker.recipes import training


class Reckoning(training.Frame):
    """Mixed in before a TRL trainer: an evaluation's numbers are reckoned from all its rows."""

    _kept: dict[str, list[Tensor]]
    _weights: list[float]

    def figures(self, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """The evaluation's numbers from what :meth:`keep` was given of all held-out rows, in their order.

        They take the place of TRL's means of the same names.
        """
        return {}

    def weigh(self, loss: Tensor, weight: float) -> None:
        """Of a held-out batch: how much its loss, and what TRL says of it, counts in the means (its rows, or its tokens)."""
        self._weights.append(weight)
        self._metrics["eval"]["loss"].append(float(loss))

    def keep(self, **found: Tensor) -> None:
        """Of a held-out batch: a tensor (B, …) for each name, of the same width in every batch.

        Nothing is gathered: of several processes each sees all held-out rows (:meth:`training.Frame.get_eval_dataloader`).
        """
        for name, values in found.items():
            self._kept[name].append(values.detach().double().cpu())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See :class:`training.Frame`."""
        self._kept, self._weights = defaultdict(list), []
        return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Put the evaluation's numbers where TRL's trainers collect their means."""
        if "eval_loss" in logs:
            for name, values in self._metrics["eval"].items():
                if len(values) == len(self._weights):
                    whole = sum(map(operator.mul, values, self._weights)) / sum(self._weights)
                    self._metrics["eval"][name] = [whole]
            kept = {name: torch.cat(values) for name, values in self._kept.items()}
            self._kept.clear()
            self._metrics["eval"].update({name: [value] for name, value in self.figures(kept).items()})
        super().log(logs, start_time)


class Means(Trainer):
    """What TRL's trainers do with the numbers that they collect, for trainers without TRL."""

    _metrics: dict[str, dict[str, list[float]]]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last call."""
        mode = "train" if self.model.training else "eval"
        prefix = "eval_" if mode == "eval" else ""
        logs |= {f"{prefix}{name}": sum(values) / len(values) for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        super().log(logs, start_time)


class Compared(Reckoning):
    """The rows are pairs: at every evaluation it is said what a judge gets right that only measures length.

    No better than that, and a margin may be nothing but length.
    """

    def figures(self, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """What length alone says of the held-out pairs: ``length_accuracy``, ``longer_accuracy``, ``length_nll``."""
        held_out = self.eval_dataset
        assert isinstance(held_out, Dataset)
        return self.length_judge.figures(self.longer_by(held_out), self.probabilities(held_out))

    @property
    def length_judge(self) -> calibration.ByLength:
        """The judge that only measures length, fitted on the training pairs."""
        if self._length_judge is None:
            learned = self.train_dataset
            assert isinstance(learned, Dataset)
            self._length_judge = calibration.by_length(self.longer_by(learned), self.probabilities(learned))
        return self._length_judge

    _length_judge: calibration.ByLength | None = None

    def longer_by(self, pairs: Dataset) -> Tensor:
        """Tokens of chosen − tokens of rejected (N,); the prompt, if both begin with it, takes itself away."""
        return tokens(pairs, "chosen_ids") - tokens(pairs, "rejected_ids")

    def probabilities(self, pairs: Dataset) -> Tensor:
        """That chosen is better (N,); 1 if nobody says otherwise."""
        known = pairs["probability"][:] if "probability" in pairs.column_names else [1.0] * len(pairs)
        return torch.tensor(known, dtype=torch.float64)


def tokens(rows: Dataset, column: str) -> Tensor:
    """How many there are in a column of token ids (N,)."""
    found = pc.list_value_length(rows.with_format("arrow")[column]).to_pylist()
    return torch.tensor(found, dtype=torch.float64)
