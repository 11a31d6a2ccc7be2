"""How sure a share is: one interval for the whole studio, so that two pages never disagree about the same rows.

Shares get Wilson's score interval (Wilson 1927, JASA 22, 209–212). The interval of the textbooks, p ± z·√(p(1−p)/n), shrinks to
nothing at 0 and 1, leaves 0 … 1 beside them, and covers far less than it says for the few dozen rows that people hold
out or judge twice. Brown, Cai and DasGupta (2001, Statistical Science 16, 101–133) advise Wilson's or Jeffreys's for n ≤ 40 and
find Wilson's, Jeffreys's and Agresti and Coull's alike beyond; Wilson's alone of these is a formula that never leaves
0 … 1. Its price: it is not symmetric, so two limits are said instead of one ±.
"""

import math
from typing import NamedTuple

Z95 = 1.959963984540054
"""Standard deviations on both sides that hold 95 % of a normal distribution."""


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """What it rests on: items for agreement, judgments or rows for shares."""


def wilson(hits: float, n: int) -> Estimate | None:
    """Share *hits*/*n* with its interval, for half hits too; ``None`` without any trial."""
    if n == 0:
        return None
    share, z2 = hits / n, Z95 * Z95
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # at 0 and 1 one limit is the share itself, but for rounding
    return Estimate(share, max(0.0, min(share, center - half)), min(1.0, max(share, center + half)), n)


def by_chance(one: Estimate, other: Estimate) -> float:
    """How far apart two shares may lie by chance alone: beyond it the 95 % interval of their difference leaves out 0.

    Newcombe 1998 (Statistics in Medicine 17, 873–890), method 10: of both Wilson intervals the arms that face each other.
    It takes the two for independent; where they are of the same rows it is too cautious rather than too bold.
    """
    lower, upper = sorted((one, other))
    return math.hypot(lower.high - lower.value, upper.value - upper.low)
