"""Packed rows: every token's loss is what it is alone, and no row sees another."""

import random
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.worker.running import BASE
from worker import networks, packing
from worker.objectives import IGNORED
from worker.report import SpecCannotWork


@pytest.fixture(scope="module")
def model() -> Any:
    return networks.load(BASE).eval()


def data(seed: int, count: int = 40) -> Dataset:
    draw = random.Random(seed)
    ids = [[draw.randrange(5, 600) for _ in range(draw.randint(1, 60))] for _ in range(count)]
    labels = [[token if draw.random() < 0.7 else IGNORED for token in row] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """−log π of every token that counts, 0 elsewhere: (B, T)."""
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


def test_best_fit_decreasing() -> None:
    """By hand, room 10: 7 | 6 | 5 open sequences with 3, 4, 5 left; 4 fits the one with 4; 3 the one with 3; 1 the 5."""
    assert packing.fill([3, 7, 1, 6, 4, 5], 10) == [[1, 0], [3, 4], [5, 2]]
    assert packing.fill([10, 10], 10) == [[0], [1]]
    lengths = [len(row) for row in data(1, 500)["input_ids"]]
    together = packing.fill(lengths, 64)
    assert sorted(row for sequence in together for row in sequence) == list(range(500))
    assert max(sum(lengths[row] for row in sequence) for sequence in together) <= 64
    assert len(together) <= 1.05 * sum(lengths) / 64 + 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_every_token_loses_what_it_loses_alone(model: Any, attention: str) -> None:
    model.set_attn_implementation(attention)
    rows = data(2)
    collate = packing.Collator(pad=0)
    alone: dict[tuple[int, ...], torch.Tensor] = {}
    for row in rows:
        alone[tuple(row["input_ids"])] = losses(model, collate([row]))[0]
    packed = packing.pack(rows, 64)
    assert len(packed) < len(rows)
    batch = collate(list(packed))
    told = losses(model, batch)
    for sequence, values in zip(packed, told, strict=True):
        start = 0
        for length in sequence["seq_lengths"]:
            expected = alone[tuple(sequence["input_ids"][start : start + length])]
            torch.testing.assert_close(values[start : start + length - 1], expected, atol=1e-5, rtol=1e-5)
            start += length
    counted = sum(label != IGNORED for row in rows for label in row["labels"][1:])
    assert int((batch["labels"][:, 1:] != IGNORED).sum()) == counted  # the first token of a row never counts
    total = torch.cat(list(alone.values())).sum()
    torch.testing.assert_close(told.sum() / counted, total / counted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_row_is_blind_to_the_one_before(model: Any) -> None:
    first, second = [7, 8, 9, 10], [20, 21, 22]
    collate = packing.Collator(pad=0)

    def logits(before: list[int]) -> torch.Tensor:
        rows = Dataset.from_dict({"input_ids": [before, second], "labels": [before, second]})
        (packed,) = packing.pack(rows, 16)
        assert packed["input_ids"] == before + second
        batch = collate([packed])
        return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0, 4:]

    assert logits(first).equal(logits([50, 51, 52, 53]))


def test_a_model_that_sees_across_is_refused(model: Any) -> None:
    packing.check_blind(model, 600)

    class Leaky(torch.nn.Module):
        """A recurrent model: its state goes on from row to row."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(600, 8)

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return type("Output", (), {"logits": self.embedding(input_ids).cumsum(1)})()

    with pytest.raises(SpecCannotWork, match="packing: "):
        packing.check_blind(Leaky(), 600)  # type: ignore[arg-type]
