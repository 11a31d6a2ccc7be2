"""What a rollout is: completions and their scores, the tensors made of them, their parts, and the order of prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Sampler

from worker.forward import Texts
from worker.rewards import Measured
from worker.rollouts import Written

Row = Mapping[str, Any]
Batch = dict[str, Tensor]
"""Tensors of a rollout or a part of it, a row per completion; those without dimensions are of all of it."""


def seed_of(*what: Any) -> int:
    """A seed that *what* alone decides: the same in every process and on every machine."""
    return int.from_bytes(blake2b(repr(what).encode(), digest_size=7).digest(), "big")


# --- completions and scores --------------------------------------------------------------------------------------


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

    def texts(self, pad: int, device: torch.device) -> Texts:
        """As tensors: prompts padded on the left, completions on the right."""
        prompts = [list(row["prompt_ids"]) for row in self.rows]
        width, length = max(map(len, prompts)), max(len(one.ids) for one in self.written)
        return Texts(
            torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device),
            torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device),
            torch.tensor([one.ids + [pad] * (length - len(one.ids)) for one in self.written], device=device),
            torch.tensor([[1] * len(one.ids) + [0] * (length - len(one.ids)) for one in self.written], device=device),
        )

    def logps(self, device: torch.device) -> Tensor:
        """Log-probabilities as they were drawn, 0 at padding: (B, T)."""
        length = max(len(one.ids) for one in self.written)
        return torch.tensor([one.logps + [0.0] * (length - len(one.logps)) for one in self.written], device=device)

    def ended(self, device: torch.device | str = "cpu") -> Tensor:
        """Which ended by themselves: (B,)."""
        return torch.tensor([one.ended for one in self.written], device=device)


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


def without_spread(worth: Tensor, size: int) -> list[int]:
    """Groups of *size* rewards that are all the same; an unscored completion (NaN) is no reward."""
    groups = worth.view(-1, size)
    lowest, highest = groups.nan_to_num(torch.inf).amin(1), groups.nan_to_num(-torch.inf).amax(1)
    flat: list[int] = (~(highest > lowest)).nonzero().squeeze(1).tolist()
    return flat


# --- parts -------------------------------------------------------------------------------------------------------


def named(texts: Texts) -> Batch:
    """The tensors of *texts* by name."""
    return {field.name: getattr(texts, field.name) for field in fields(texts)}


def texts_of(batch: Batch) -> Texts:
    """The texts in *batch*."""
    return Texts(*(batch[field.name] for field in fields(Texts)))


def some(texts: Texts, rows: slice) -> Texts:
    """Only *rows*."""
    return Texts(*(getattr(texts, field.name)[rows] for field in fields(texts)))


def divide(batch: Batch, parts: int) -> list[Batch]:
    """*batch* in *parts* of equal size, in order, each without the columns that only it could do without."""
    size = len(batch["counts"]) // parts
    return [trimmed({name: tensor[i * size : (i + 1) * size] for name, tensor in batch.items()}) for i in range(parts)]


def trimmed(batch: Batch) -> Batch:
    """Without columns in which every row has only padding: on the left of prompts, on the right of completions."""
    prompt = int(batch["prompt_mask"].sum(1).max())
    length = int(batch["completion_mask"].sum(1).max())
    whole = batch["completion_mask"].size(1)

    def cut(name: str, tensor: Tensor) -> Tensor:
        if name.startswith("prompt_"):
            return tensor[:, -prompt:]
        return tensor[:, :length] if tensor.dim() > 1 and tensor.size(1) == whole else tensor

    return {name: cut(name, tensor) for name, tensor in batch.items()}


# --- the order of prompts ----------------------------------------------------------------------------------------


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
        stream = self._stream()
        for _ in range(self.rollouts):
            rollout = [i for i in (next(stream) for _ in range(self.asked)) for _ in range(self.copies)]
            for _ in range(self.repeats):
                yield from rollout

    def _stream(self) -> Iterator[int]:
        """Prompts without end."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(self.prompts, generator=generator).tolist()
