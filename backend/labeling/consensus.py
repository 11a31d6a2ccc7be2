"""What we believe after weighing an item's judgments: a preference, a tie, or nothing. Pure functions."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from backend.labeling.judgments import FreezePolicy

Outcome = Literal["preference", "tie", "no_majority", "too_few", "unjudged"]


class Verdict(NamedTuple):
    """What the policy makes of one item."""

    outcome: Outcome
    chosen: int | None = None
    """Position of the completion that is preferred (0 or 1)."""
    margin: float = 0.0
    """Mean strength toward the chosen completion over *all* judgments, 0 … 3."""
    probability: float = 0.5
    """Share of the judgments that prefer the chosen completion, a tie counted half: what a soft label is."""


def weigh(strengths: Sequence[int], policy: FreezePolicy, overlap: int) -> Verdict:
    """Judge one item by its *strengths* (−3 … 3, positive toward position 1).

    The direction is decided by heads (more than half, or all), not by summed strength: one emphatic judge cannot
    outvote two. The margin then is the mean over everybody, so dissent shrinks it; it never goes below 0, where it would
    ask a reward model to prefer the side that lost.
    """
    if not strengths:
        return Verdict("unjudged")
    if len(strengths) < (policy.minimum_judgments or overlap):
        return Verdict("too_few")
    needed = len(strengths) if policy.rule == "unanimous" else len(strengths) // 2 + 1
    second = sum(strength > 0 for strength in strengths)
    first = sum(strength < 0 for strength in strengths)
    mean = sum(strengths) / len(strengths)
    second_share = (second + (len(strengths) - first - second) / 2) / len(strengths)
    if second >= needed:
        return Verdict("preference", 1, max(0.0, mean), second_share)
    if first >= needed:
        return Verdict("preference", 0, max(0.0, -mean), 1 - second_share)
    if len(strengths) - first - second >= needed:
        return Verdict("tie")
    return Verdict("no_majority")
