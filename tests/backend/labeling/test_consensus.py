"""The policies that turn judgments into preferences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.labeling.consensus import Verdict, weigh
from backend.labeling.judgments import FreezePolicy

MAJORITY = FreezePolicy(minimum_judgments=1)
UNANIMOUS = FreezePolicy(rule="unanimous", minimum_judgments=1)


@pytest.mark.parametrize(
    ("strengths", "expected"),
    [
        ([], Verdict("unjudged")),
        ([2], Verdict("preference", 1, 2.0, 1.0)),
        ([-3, -1], Verdict("preference", 0, 2.0, 1.0)),
        ([3, 1, -1], Verdict("preference", 1, 1.0, 2 / 3)),
        ([3, 1, 0], Verdict("preference", 1, 4 / 3, 5 / 6)),  # a tie is half a vote for each side
        (
            [1, 1, -3],
            Verdict("preference", 1, 0.0, 2 / 3),
        ),  # heads decide, and a margin never turns against the chosen side
        ([1, -1], Verdict("no_majority")),
        ([2, 0], Verdict("no_majority")),
        ([0], Verdict("tie")),
        ([0, 0, 3], Verdict("tie")),
    ],
)
def test_majority(strengths: list[int], expected: Verdict) -> None:
    assert weigh(strengths, MAJORITY, overlap=3) == expected


def test_unanimous_asks_for_all() -> None:
    assert weigh([3, 1, -1], UNANIMOUS, 3) == Verdict("no_majority")
    assert weigh([3, 1, 2], UNANIMOUS, 3) == Verdict("preference", 1, 2.0, 1.0)
    assert weigh([0, 0], UNANIMOUS, 2) == Verdict("tie")


def test_too_few_judgments_wait() -> None:
    assert weigh([2], FreezePolicy(), overlap=2) == Verdict("too_few")
    assert weigh([2], FreezePolicy(minimum_judgments=1), overlap=2).outcome == "preference"


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7))
def test_the_names_of_the_completions_do_not_matter(strengths: list[int]) -> None:
    """Exchanging first and second exchanges the verdict and nothing else."""
    there, back = weigh(strengths, MAJORITY, 1), weigh([-s for s in strengths], MAJORITY, 1)
    assert there.outcome == back.outcome
    assert there.margin == back.margin
    assert there.probability == pytest.approx(back.probability)
    if there.chosen is not None:
        assert back.chosen == 1 - there.chosen
        assert 0 <= there.margin <= 3
        assert 0.5 < there.probability <= 1
