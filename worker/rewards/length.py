"""Terms that need no row: how long a completion is, and how much it repeats itself."""

from collections.abc import Sequence

from backend.runs.specs.rewards import LengthTerm, RepetitionTerm, SoftOverlong
from worker.report import SpecCannotWork
from worker.rewards.rollouts import Rollout, Row, Score, Scorer


def beyond(tokens: int, target: int, *, shorter_too: bool) -> float:
    """−(tokens − target)/target beyond the target, at most −1; short of it 0, or as much if *shorter_too*."""
    distance = tokens - target
    return max(-1.0, -(abs(distance) if shorter_too else max(0, distance)) / target)


def overlong(tokens: int, limit: int, buffer: int) -> float:
    """DAPO's soft punishment. Yu et al. 2025, arXiv:2503.14476, Eq. 13, with L_max = *limit* and L_cache = *buffer*.

    0 for |y| ≤ L_max − L_cache; ((L_max − L_cache) − |y|)/L_cache up to L_max; −1 beyond.
    """
    return max(-1.0, min(0.0, (limit - buffer - tokens) / buffer))


def repetition(text: str, n: int) -> float:
    """−(share of the n-grams of words that occurred before); 0 if there are fewer than n words."""
    words = text.lower().split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) - 1 if grams else 0.0


class Length(Scorer):
    """The length term on a completion's tokens."""

    def __init__(self, spec: LengthTerm) -> None:
        self.spec = spec

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Each by itself."""
        return [
            beyond(len(rollout.completion_ids), self.spec.target, shorter_too=self.spec.shorter_too)
            for rollout in rollouts
        ]


class Overlong(Scorer):
    """The soft punishment before the limit."""

    def __init__(self, spec: SoftOverlong, limit: int) -> None:
        self.spec, self.limit = spec, limit

    def check(self, rows: Sequence[Row], field: str) -> None:
        """The buffer is shorter than the limit."""
        if self.spec.buffer >= self.limit:
            raise SpecCannotWork(
                f"the punishment would begin {self.spec.buffer} tokens before a limit of {self.limit}, at the first token",
                remedy=f"Choose a buffer below {self.limit}, or sample longer completions.",
                field=f"{field}.buffer",
            )

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Each by itself."""
        return [overlong(len(rollout.completion_ids), self.limit, self.spec.buffer) for rollout in rollouts]


class Repetition(Scorer):
    """The repetition term on a completion's words."""

    def __init__(self, spec: RepetitionTerm) -> None:
        self.spec = spec

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Each by itself."""
        return [repetition(rollout.completion, self.spec.ngram) for rollout in rollouts]
