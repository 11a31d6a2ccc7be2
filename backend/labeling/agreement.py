"""How far annotators agree, and how biased they are: pure functions, no database.

Judgments come as *patterns*: the sorted values that one item received, with the number of items that received just these.
There are few patterns however many items, so everything here is fast and the bootstrap is a multinomial draw.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backend.intervals import Estimate as Estimate
from backend.intervals import wilson as wilson

Patterns = Mapping[tuple[int, ...], int]
"""Sorted values of one item → number of items with these values."""

MINIMUM_ITEMS = 20
"""Below this many doubly judged items an agreement is noise and is not shown."""

Metric = Literal["nominal", "ordinal", "interval"]


def _contributions(patterns: Sequence[tuple[int, ...]], values: Sequence[int]) -> NDArray[np.float64]:
    """Coincidences that one item of each pattern adds: pairs of its values, each weighted 1/(m − 1).  # (P, C, C)"""
    index = {value: i for i, value in enumerate(values)}
    made = np.zeros((len(patterns), len(values), len(values)))
    for p, pattern in enumerate(patterns):
        counts = np.zeros(len(values))
        for value in pattern:
            counts[index[value]] += 1
        pairs = np.outer(counts, counts) - np.diag(counts)
        made[p] = pairs / (len(pattern) - 1)
    return made


def _distances(metric: Metric, values: Sequence[int], totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared differences between values (Krippendorff 2011, "Computing Krippendorff's alpha-reliability").  # (C, C)"""
    v = np.asarray(values, dtype=float)
    if metric == "nominal":
        return 1.0 - np.eye(len(v))
    if metric == "interval":
        return np.asarray((v[:, None] - v[None, :]) ** 2)
    upto = np.cumsum(totals)
    middle = upto - totals / 2  # mid-ranks: the sum from c to k less half of both ends is their difference
    return np.asarray((middle[:, None] - middle[None, :]) ** 2)


def _alpha(coincidences: NDArray[np.float64], values: Sequence[int], metric: Metric) -> float | None:
    totals = coincidences.sum(axis=0)
    n = float(totals.sum())
    distances = _distances(metric, values, totals)
    expected = float((np.outer(totals, totals) * distances).sum() - (totals * np.diag(distances)).sum())
    if n < 2 or expected <= 0:
        return None
    observed = float((coincidences * distances).sum())
    return 1.0 - (n - 1) * observed / expected


def krippendorff_alpha(patterns: Patterns, metric: Metric = "nominal") -> float | None:
    """α = 1 − D_o / D_e over items with two or more values; ``None`` if all values are the same (no variation)."""
    multiple = [(pattern, count) for pattern, count in patterns.items() if len(pattern) > 1]
    if not multiple:
        return None
    values = sorted({value for pattern, _ in multiple for value in pattern})
    weights = np.array([count for _, count in multiple], dtype=float)
    coincidences = np.tensordot(weights, _contributions([pattern for pattern, _ in multiple], values), axes=1)
    return _alpha(coincidences, values, metric)


def alpha_estimate(
    patterns: Patterns, metric: Metric = "nominal", *, draws: int = 500, seed: int = 0
) -> Estimate | None:
    """α with a 95 % bootstrap interval over items (percentile, fixed *seed*: the page says the same twice)."""
    value = krippendorff_alpha(patterns, metric)
    if value is None:
        return None
    multiple = [(pattern, count) for pattern, count in patterns.items() if len(pattern) > 1]
    values = sorted({value for pattern, _ in multiple for value in pattern})
    made = _contributions([pattern for pattern, _ in multiple], values)

    def statistic(weights: NDArray[np.float64]) -> float | None:
        return _alpha(np.tensordot(weights, made, axes=1), values, metric)

    return _bootstrap(value, [count for _, count in multiple], statistic, draws, seed)


def raw_agreement(patterns: Patterns, *, draws: int = 500, seed: int = 0) -> Estimate | None:
    """Share of pairs of judges of one item who say the same, averaged over items."""
    multiple = [(pattern, count) for pattern, count in patterns.items() if len(pattern) > 1]
    if not multiple:
        return None
    shares = np.array([_same_pairs(pattern) for pattern, _ in multiple])

    def statistic(weights: NDArray[np.float64]) -> float:
        return float(shares @ weights / weights.sum())

    counts = [count for _, count in multiple]
    return _bootstrap(statistic(np.array(counts, dtype=float)), counts, statistic, draws, seed)


def _same_pairs(pattern: tuple[int, ...]) -> float:
    m = len(pattern)
    same = sum(pattern.count(value) * (pattern.count(value) - 1) for value in set(pattern))
    return same / (m * (m - 1))


def _bootstrap(
    value: float, counts: Sequence[int], statistic: Callable[[NDArray[np.float64]], float | None], draws: int, seed: int
) -> Estimate:
    n = sum(counts)
    resampled = np.random.default_rng(seed).multinomial(n, np.array(counts) / n, size=draws)
    drawn = [found for weights in resampled if (found := statistic(weights.astype(float))) is not None]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (value, value)
    return Estimate(value, float(low), float(high), n)


def directions(patterns: Patterns) -> dict[tuple[int, ...], int]:
    """The same items with only the sign of each value: first, tie, second."""
    made: dict[tuple[int, ...], int] = {}
    for pattern, count in patterns.items():
        key = tuple(sorted((value > 0) - (value < 0) for value in pattern))
        made[key] = made.get(key, 0) + count
    return made


def doubly_judged(patterns: Patterns) -> int:
    """Number of items with two or more judgments."""
    return sum(count for pattern, count in patterns.items() if len(pattern) > 1)
