"""Held-out figures that are reckoned from all rows: what length alone says of pairs, and KTO's means over rows."""

import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer

from backend.runs.specs import KTOSpec
from worker.recipes import kto, training
from worker.recipes.dpo import DPO
from worker.recipes.kto import KTO
from worker.recipes.pairs import WithoutReference
from worker.recipes.reckoning import Reckoning
from worker.recipes.reward import Reward


def looking(kind: type[Any], learned: Dataset, held_out: Dataset) -> Any:
    """A trainer of *kind* of which nothing is made but its rows."""
    made = object.__new__(kind)
    made.train_dataset, made.eval_dataset = learned, held_out
    return made


def pairs(*tokens: tuple[int, int], **more: list[float]) -> Dataset:
    """Pairs of so many tokens, chosen and rejected."""
    sides = {"chosen_ids": [[0] * c for c, _ in tokens], "rejected_ids": [[0] * r for _, r in tokens]}
    return Dataset.from_dict(sides | more)


HELD_OUT = ((3, 1), (4, 3), (2, 2), (1, 5), (1, 2))


@pytest.mark.parametrize("kind", [DPO, WithoutReference])
def test_what_length_alone_says_of_pairs(kind: type[Any]) -> None:
    """Chosen is longer in two pairs, as long in one, shorter in two: 2½ of 5. In training the longer one is mostly better.

    A tie is not asked, and where fewer prefer chosen the other side is the better one: of +2, +1 (turned), 0 and −4
    (a tie), −1, the longer one gets 1 + 0 + ½ + 0 of four. Where the shorter one is better in training, the judge says so.
    """
    longer, shorter = pairs((3, 1), (5, 2), (1, 2)), pairs((1, 3), (2, 5), (2, 1))
    told = looking(kind, longer, pairs(*HELD_OUT)).figures({})
    assert (told["longer_accuracy"], told["length_accuracy"]) == (0.5, 0.5)
    voted = pairs(*HELD_OUT, probability=[1.0, 0.25, 1.0, 0.5, 0.75])
    told = looking(kind, longer, voted).figures({})
    assert (told["longer_accuracy"], told["length_accuracy"]) == (1.5 / 4, 1.5 / 4)
    told = looking(kind, shorter, voted).figures({})
    assert (told["longer_accuracy"], told["length_accuracy"]) == (1.5 / 4, 2.5 / 4)
    assert told["length_nll"] > 0


def test_batches_count_by_what_they_hold() -> None:
    """Losses 1 and 4 of three rows and of one: (3·1 + 4)/4 = 7/4, not 5/2; an accuracy of 1 and of 0: 3/4. A number
    for each row stays as it is, and what is known of all rows takes the place of a mean.
    """

    class Odd(Reckoning):
        def figures(self, kept: Any) -> dict[str, float]:
            return {"margin": kept["margin"].sum().item()}

    class Logged(Trainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            told.update({name: list(values) for name, values in self._metrics["eval"].items()})

    class Made(Odd, Logged):
        pass

    told: dict[str, list[float]] = {}
    made = object.__new__(Made)
    made._kept, made._weights, made._metrics = defaultdict(list), [], {"eval": defaultdict(list)}
    for loss, accuracy, margins in ((1.0, 1.0, [1.0, 2.0, 3.0]), (4.0, 0.0, [4.0])):
        made.weigh(torch.tensor(loss), len(margins))
        made.keep(margin=torch.tensor(margins))
        made._metrics["eval"]["accuracy"].append(accuracy)
        made._metrics["eval"]["margin"].append(sum(margins) / len(margins))
        made._metrics["eval"]["chosen"] += margins
    made.log({"loss": 0.0})
    assert told["loss"] == [1, 4]  # no evaluation has ended
    made.log({"eval_loss": 2.5})
    assert told == {"loss": [1.75], "accuracy": [0.75], "margin": [10], "chosen": [1, 2, 3, 4]}


def test_ties_are_counted() -> None:
    assert training.ties(pairs(*HELD_OUT, probability=[1.0, 0.5, 0.25, 0.5, 0.75])) == 2
    assert training.ties(pairs(*HELD_OUT)) == 0


def test_a_reward_model_counts_the_same_lengths() -> None:
    """Its texts begin with the prompt, which is as long on both sides."""
    learned, held_out = pairs((3, 1), (5, 2), (1, 2)), pairs((13, 11), (11, 15))
    assert looking(Reward, learned, held_out).longer_by(held_out).tolist() == [2, -4]


def thumbs(*rows: tuple[int, int]) -> Dataset:
    """Shuffled pairs: tokens of a completion, and its place before."""
    return Dataset.from_dict({"completion_ids": [[0] * n for n, _ in rows], kto.PAIRED: [place for _, place in rows]})


def test_shuffled_thumbs_find_the_pair_they_were() -> None:
    """Pairs of 4 and 1, 2 and 3, 5 and 5 tokens, shuffled: the longer one is better in 1 + 0 + ½ of three."""
    held_out = thumbs((3, 3), (5, 4), (1, 1), (4, 0), (5, 5), (2, 2))
    chosen, rejected = kto.as_pairs(held_out)
    assert (chosen.tolist(), rejected.tolist()) == ([3, 5, 1], [2, 0, 4])
    learned = thumbs((1, 1), (9, 0))
    made = looking(KTO, learned, held_out)
    assert made.longer_by(held_out).tolist() == [3, -1, 0]
    spec: Any = type("Launch", (), {"spec": KTOSpec(base_model=1, dataset=1)})
    made.launch = spec
    ratio = torch.tensor([0.5, 0.0, 2.0, 1.0, -1.0, 0.75], dtype=torch.float64)
    ones = torch.ones(6, dtype=torch.float64)
    up = torch.tensor([0.0, 1, 0, 1, 0, 1])
    kept = {"ratio": ratio, "up": up, "shifted": ones, "logps": ones, "entropy": ones, "logits": ones, "tokens": ones}
    told = made.figures(kept)
    assert told["rewards/accuracies"] == pytest.approx(2 / 3)  # 1 < 2; .75 > .5; 0 > −1
    assert told["longer_accuracy"] == pytest.approx(0.5)


def test_thumbs_are_means_over_rows() -> None:
    """Log-ratios log 3, log 3, 0 and −log 3, of which the last is a thumb down; z_ref = max(0, mean(1, −1, 2, −2)) = 0.

    β = 1: σ = 3/4, 3/4, 1/2, and 1/4 turned into 1 − σ(log 3) = 1/4, so (1/4 + 1/4 + 1/2 + 1/4)/4 = 5/16. Batches of
    three and one would have said (1/3 + 1/4)/2, and a margin of nobody. Rewards: ⅔·log 3 up, −log 3 down. Entropy and
    logits are of tokens: (2 + 2 + 2 + 12)/(1 + 1 + 1 + 3) = 3.
    """
    three = math.log(3)
    kept = {
        "up": torch.tensor([1.0, 1.0, 1.0, 0.0]),
        "ratio": torch.tensor([three, three, 0.0, -three]),
        "shifted": torch.tensor([1.0, -1.0, 2.0, -2.0]),
        "logps": torch.tensor([-1.0, -2.0, -6.0, -5.0]),
        "entropy": torch.tensor([2.0, 2.0, 2.0, 12.0]),
        "logits": torch.tensor([1.0, 2.0, 3.0, 6.0]),
        "tokens": torch.tensor([1.0, 1.0, 1.0, 3.0]),
    }
    assert kto.of_rows(KTOSpec(base_model=1, dataset=1, beta=1), kept) == pytest.approx(
        {
            "loss": 5 / 16,
            "kl": 0,
            "entropy": 3,
            "rewards/chosen": 2 / 3 * three,
            "rewards/rejected": -three,
            "rewards/margins": 5 / 3 * three,
            "logps/chosen": -3,
            "logps/rejected": -5,
            "logits/chosen": 2,
            "logits/rejected": 2,
        }
    )
    only_up = {name: values[:3] for name, values in kept.items()}
    told = kto.of_rows(KTOSpec(base_model=1, dataset=1, beta=1), only_up)
    assert told["kl"] == pytest.approx(2 / 3)
    assert not {"rewards/rejected", "rewards/margins"} & told.keys()
