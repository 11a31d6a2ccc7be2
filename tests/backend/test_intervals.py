"""One interval for shares, against numbers by hand and from the literature."""

import math

import pytest

from backend.intervals import Estimate, by_chance, wilson


def test_wilson_by_hand() -> None:
    """8 of 10, z² = 3.8415: center (0.8 + 0.19207)/1.38415 = 0.71674, half 1.95996·√(0.016 + 0.0096036)/1.38415 = 0.22658."""
    found = wilson(8, 10)
    assert found is not None
    assert (found.value, found.n) == (0.8, 10)
    assert (found.low, found.high) == (pytest.approx(0.71674 - 0.22658, abs=2e-5), pytest.approx(0.94332, abs=2e-5))


def test_a_share_of_nothing_or_of_all_has_an_interval_still() -> None:
    """At 0 the upper limit is z²/(n + z²) = 3.8415/23.8415 = 0.16113, at 1 the lower is what is left of 1."""
    none, every = wilson(0, 20), wilson(20, 20)
    assert none is not None
    assert every is not None
    assert (none.low, none.high) == (0, pytest.approx(0.16113, abs=1e-5))
    assert (every.low, every.high) == (pytest.approx(1 - 0.16113, abs=1e-5), 1)
    assert wilson(0, 0) is None


def test_difference_of_shares_from_the_literature() -> None:
    """56 of 70 against 48 of 80: 0.2, from 0.0524 (Newcombe 1998, table II, example a, method 10)."""
    one, other = wilson(56, 70), wilson(48, 80)
    assert one is not None
    assert other is not None
    assert by_chance(one, other) == by_chance(other, one) == pytest.approx(0.2 - 0.0524, abs=5e-5)


def test_what_is_known_exactly_adds_nothing_to_chance() -> None:
    """20 of 20 against exactly 1/2: only the arm below 1 is left, 0.16113."""
    every = wilson(20, 20)
    assert every is not None
    assert math.isclose(by_chance(Estimate(0.5, 0.5, 0.5, 20), every), every.value - every.low)
