"""Several rows in one sequence, each blind to the others: less padding, and the same loss for every token.

Rows are put together best-fit decreasing (Ding et al. 2024, arXiv:2404.10830): longest first, each into the fullest
sequence that still has room. Positions begin anew with every row; from that Transformers makes an attention mask with a
block for each row (only without a cache: a model that is called with one sees across). The first token of a row has nothing before it to be predicted from, so it never counts.

TRL packs a batch into one long sequence instead, which is meant for FlashAttention: with any other attention the mask
grows with the square of the whole batch.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from worker.objectives import IGNORED
from worker.report import SpecCannotWork


def fill(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices of rows that share a sequence of at most *room* tokens. Always the same ones for the same lengths."""
    sequences: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # tokens left → sequences
    left: list[int] = []  # the keys of *with_room*, sorted
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        place = bisect_left(left, lengths[row])
        if place == len(left):
            sequences.append([row])
            number, rest = len(sequences) - 1, room - lengths[row]
        else:
            space = left[place]
            number, rest = with_room[space].pop(), space - lengths[row]
            sequences[number].append(row)
            if not with_room[space]:
                del with_room[space], left[place]
        if rest > 0:
            if rest not in with_room:
                insort(left, rest)
            with_room[rest].append(number)
    return sequences


def pack(rows: Dataset, room: int) -> Dataset:
    """Rows of ``input_ids`` and ``labels`` put together; ``seq_lengths`` tells them apart."""
    ids, labels = rows["input_ids"][:], rows["labels"][:]
    together = fill([len(row) for row in ids], room)
    return Dataset.from_dict(
        {
            "input_ids": [[token for row in sequence for token in ids[row]] for sequence in together],
            "labels": [[label for row in sequence for label in (IGNORED, *labels[row][1:])] for sequence in together],
            "seq_lengths": [[len(ids[row]) for row in sequence] for sequence in together],
        }
    )


class Collator:
    """Pads to the longest: packed rows with positions, rows that stand alone (held out) with an attention mask."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors (B, T)."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([row + [filler] * (longest - len(row)) for row in values])  # (B, T)

        ids = [list(row["input_ids"]) for row in rows]
        batch = {
            "input_ids": padded(ids, self.pad),
            "labels": padded([list(row["labels"]) for row in rows], IGNORED),
        }
        if "seq_lengths" in rows[0]:  # padding at position 0, each a row of its own
            batch["position_ids"] = padded([[n for size in row["seq_lengths"] for n in range(size)] for row in rows], 0)
        else:
            batch["attention_mask"] = padded([[1] * len(row) for row in ids], 0)
        return batch


@torch.no_grad()
def check_blind(model: PreTrainedModel, vocabulary: int) -> None:
    """Raises :class:`SpecCannotWork` unless a packed row's output is what it is alone, whatever stands before it.

    Not every architecture reads positions that way (recurrent ones carry a state across), so the model is asked.
    """
    device = next(model.parameters()).device
    tokens = torch.arange(24, device=device) * 7 % vocabulary
    one, other, row = tokens[:8], tokens[8:16], tokens[16:]
    positions = torch.arange(8, device=device).repeat(2)[None]  # (1, 16)
    was_training = model.training
    model.eval()
    alone = model(input_ids=row[None], use_cache=False).logits[0]  # (8, V)
    for before in (one, other):
        packed = model(input_ids=torch.cat([before, row])[None], position_ids=positions, use_cache=False).logits[0, 8:]
        if (
            packed - alone
        ).abs().max() > 1e-2 * alone.abs().max():  # half precision is this coarse; a leak is not small
            raise SpecCannotWork(
                "rows that share a sequence would see each other: this architecture does not keep them apart",
                remedy="Turn it off.",
                field="packing",
            )
    model.train(was_training)
