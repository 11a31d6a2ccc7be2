"""Whether a score can be believed: calibration, and what the length of a text alone would say.

Pure functions of differences d (B,), the logit of "the first is better" (of a step: of "it is right"), and of what is
known, p (B,): 1, 0, or how many annotators said so. So σ(d) is the model's probability, and its prediction is right
with probability p where d > 0, with 1 − p where d < 0, and half right where d = 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

BINS = 10
"""At most; fewer if a bin would hold less than ten rows."""

_SMALLEST, _LARGEST = 0.01, 100.0
"""Bounds of the temperature: without them it would be 0 where every prediction is right, and infinite where d says nothing."""


class Bin(NamedTuple):
    """Predictions of about equal confidence."""

    confidence: float
    """Mean probability of what was predicted, σ(|d|)."""
    accuracy: float
    """Share of them that are right."""
    rows: int


class Calibration(NamedTuple):
    """How probabilities and outcomes agree."""

    ece: float
    """Expected calibration error: Σ (rows/B)·|confidence − accuracy| over the bins."""
    brier: float
    """Mean of (σ(d) − p)²."""
    nll: float
    """Mean of −p·log σ(d) − (1−p)·log σ(−d), in nats."""
    temperature: float
    """T for which σ(d/T) has the least nll; above 1 the model is too sure of itself."""
    nll_calibrated: float
    """That least nll. T is fitted on the same rows: one number cannot fit many of them."""
    bins: list[Bin]
    """The reliability diagram, least confident first."""

    def figures(self) -> dict[str, float]:
        """For the log; the diagram as ``reliability/confidence_0`` and ``reliability/accuracy_0`` to ``_9``."""
        named = {name: getattr(self, name) for name in ("ece", "brier", "nll", "temperature", "nll_calibrated")}
        for index, one in enumerate(self.bins):
            named[f"reliability/confidence_{index}"] = one.confidence
            named[f"reliability/accuracy_{index}"] = one.accuracy
        return named


def calibration(d: Tensor, p: Tensor) -> Calibration:
    """All of it. Guo et al. 2017, arXiv:1706.04599, with bins of equal mass: Nixon et al. 2019, arXiv:1904.01685."""
    d, p = d.double(), p.double()
    bins = reliability(d, p)
    temperature = 1 / fit_slope(d, p, 1 / _LARGEST, 1 / _SMALLEST)
    return Calibration(
        ece=sum(one.rows * abs(one.confidence - one.accuracy) for one in bins) / len(d),
        brier=(d.sigmoid() - p).square().mean().item(),
        nll=binary_cross_entropy_with_logits(d, p).item(),
        temperature=temperature,
        nll_calibrated=binary_cross_entropy_with_logits(d / temperature, p).item(),
        bins=bins,
    )


def correct(d: Tensor, p: Tensor) -> Tensor:
    """The probability that each prediction is right: (B,)."""
    return torch.where(d == 0, 0.5, torch.where(d > 0, p, 1 - p))


def accuracy(d: Tensor, p: Tensor) -> float:
    """Share of pairs on whose better side the model is; equal scores are half right, ties (p = 1/2) are not asked."""
    decided = p != 0.5
    better = (p > 0.5).to(d.dtype)
    return correct(d, better)[decided].mean().item()


def reliability(d: Tensor, p: Tensor) -> list[Bin]:
    """Bins of equal mass by confidence; rows of the same confidence share their accuracy, whatever their order."""
    confidence = d.abs().sigmoid()
    confidence, order = confidence.sort()
    right = correct(d, p)[order]
    _, same = confidence.unique_consecutive(return_inverse=True)
    totals = torch.zeros(int(same.max()) + 1, dtype=right.dtype).index_add(0, same, right)
    right = (totals / same.bincount())[same]
    parts = max(1, min(BINS, len(d) // 10))
    return [
        Bin(c.mean().item(), r.mean().item(), len(c))
        for c, r in zip(confidence.tensor_split(parts), right.tensor_split(parts), strict=True)
    ]


def fit_slope(x: Tensor, p: Tensor, low: float, high: float) -> float:
    """A in [low, high] for which σ(a·x) has the least cross-entropy to p: logistic regression without intercept.

    It is convex in a, with the derivative mean(x·(σ(a·x) − p)), whose root is found by bisection.
    """
    x, p = x.double(), p.double()
    for _ in range(100):
        middle = (low + high) / 2
        if (x * ((middle * x).sigmoid() - p)).mean() > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


# --- what length alone says --------------------------------------------------------------------------------------


class ByLength(NamedTuple):
    """A judge of pairs that reads nothing: P(first is better) = σ(slope·(tokens of the first − tokens of the second))."""

    slope: float
    """Above 0 the longer one is better."""

    def figures(self, difference: Tensor, p: Tensor) -> dict[str, float]:
        """Its accuracy and nll on held-out pairs, and how often simply the longer one is better."""
        difference, p = difference.double(), p.double()
        return {
            "longer_accuracy": accuracy(difference, p),
            "length_accuracy": accuracy(self.slope * difference, p),
            "length_nll": binary_cross_entropy_with_logits(self.slope * difference, p).item(),
        }


def by_length(difference: Tensor, p: Tensor) -> ByLength:
    """The judge fitted on training pairs: differences in tokens (B,), and p (B,)."""
    difference = difference.double()
    spread = difference.square().mean().sqrt().item() or 1.0
    return ByLength(fit_slope(difference / spread, p, -10, 10) / spread)


class Limit(NamedTuple):
    """A judge of single texts that reads nothing: right up to so many tokens, wrong beyond, or the other way round."""

    tokens: float
    short_is_right: bool

    def accuracy(self, tokens: Tensor, right: Tensor) -> float:
        """On held-out texts: lengths (B,) and whether each is right (B,)."""
        predicted = (tokens <= self.tokens) == self.short_is_right
        return (predicted == right.bool()).double().mean().item()


def length_limit(tokens: Tensor, right: Tensor) -> Limit:
    """The limit that is most often right on training texts; without any limit it says what most of them are."""
    tokens, order = tokens.double().sort()
    right = right.double()[order]
    after = right.cumsum(0)  # right ones among the shortest n
    shortest = torch.arange(1, len(tokens) + 1, dtype=torch.float64)
    hits = after + (len(tokens) - shortest) - (after[-1] - after)  # short ones right, long ones wrong
    possible = torch.cat([tokens[1:] != tokens[:-1], torch.tensor([True])])  # equal lengths stay together
    best, worst = (find(hits[possible], 0) for find in (torch.max, torch.min))
    short_is_right = bool(best.values >= len(tokens) - worst.values)
    chosen = best.indices if short_is_right else worst.indices
    return Limit(tokens[possible][chosen].item(), short_is_right)


# --- correlation -------------------------------------------------------------------------------------------------


def pearson(x: Tensor, y: Tensor) -> float:
    """Linear correlation; not a number where one of them does not vary."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return ((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()).item()


def spearman(x: Tensor, y: Tensor) -> float:
    """Correlation of ranks; equal values share their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: Tensor) -> Tensor:
    _, place, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = last - (counts - 1) / 2  # of each different value, from 1
    return ranks[place]
