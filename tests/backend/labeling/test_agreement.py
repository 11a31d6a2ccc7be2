"""Agreement against hand-computed examples and against a public data set with a known α."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from backend.labeling import agreement

CROWD = Path(__file__).parents[4] / "shared" / "data" / "crowd_labels" / "barzan_labels.txt"


def test_alpha_by_hand() -> None:
    """Two judges, four items: 11, 22, 12, 11. Coincidences o11=4, o22=2, o12=o21=1; n1=5, n2=3, n=8.

    D_o = 2/8, D_e = 2·5·3/(8·7) = 30/56, α = 1 − 0.25/(30/56) = 8/15.
    """
    patterns = {(1, 1): 2, (2, 2): 1, (1, 2): 1}
    assert agreement.krippendorff_alpha(patterns) == pytest.approx(1 - 0.25 / (30 / 56))
    raw = agreement.raw_agreement(patterns)
    assert raw is not None
    assert raw.value == pytest.approx(0.75)
    assert raw.n == 4


def test_alpha_interval_and_ordinal_by_hand() -> None:
    """Items (1,1), (1,3), (3,3) with one middle value (2,2): n1=3, n2=2, n3=3, n=8.

    Interval: Σ o·δ² = 2·4 = 8; Σ n_c n_k δ² = 2·(3·2·1 + 3·3·4 + 2·3·1) = 96; α = 1 − 7·8/96.
    Ordinal: mid-ranks 1.5, 4, 6.5, so δ²(1,2) = δ²(2,3) = 6.25 and δ²(1,3) = 25: the same ratios, the same α.
    """
    patterns = {(1, 1): 1, (1, 3): 1, (3, 3): 1, (2, 2): 1}
    assert agreement.krippendorff_alpha(patterns, "interval") == pytest.approx(1 - 7 * 8 / 96)
    assert agreement.krippendorff_alpha(patterns, "ordinal") == pytest.approx(1 - 7 * 50 / 600)


def test_alpha_of_incomplete_data_from_the_literature() -> None:
    """Krippendorff's own reliability data (2011, section C): four judges, twelve units, missing values."""
    judges = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    patterns = Counter(tuple(sorted(v for v in unit if v is not None)) for unit in zip(*judges, strict=True))
    assert agreement.krippendorff_alpha(patterns, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert agreement.krippendorff_alpha(patterns, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert agreement.krippendorff_alpha(patterns, "interval") == pytest.approx(0.849, abs=5e-4)


@pytest.mark.skipif(not CROWD.exists(), reason="the public data sets are not here")
def test_alpha_of_real_crowd_votes() -> None:
    """5,000 votes of 83 workers: 0.4059 by independent libraries."""
    votes: dict[str, list[int]] = defaultdict(list)
    for line in CROWD.read_text().splitlines():
        _, item, value = line.split("\t")
        votes[item].append(int(value))
    patterns = Counter(tuple(sorted(values)) for values in votes.values())
    estimate = agreement.alpha_estimate(patterns)
    assert estimate is not None
    assert estimate.value == pytest.approx(0.4059, abs=5e-5)
    assert estimate.n == 1000
    assert estimate.low < estimate.value < estimate.high
    assert estimate.high - estimate.low < 0.1


def test_no_variation_is_not_a_number_to_show() -> None:
    assert agreement.krippendorff_alpha({(1, 1): 30}) is None
    assert agreement.alpha_estimate({(1, 1): 30}) is None
    raw = agreement.raw_agreement({(1, 1): 30})
    assert raw is not None
    assert raw.value == 1.0


def test_single_judgments_say_nothing_about_agreement() -> None:
    assert agreement.krippendorff_alpha({(1,): 50, (2,): 50}) is None
    assert agreement.raw_agreement({(1,): 50}) is None
    assert agreement.doubly_judged({(1,): 50, (1, 2): 3, (1, 1, 1): 2}) == 5


def test_chance_and_perfect() -> None:
    assert agreement.krippendorff_alpha({(1, 1): 10, (2, 2): 10}) == pytest.approx(1.0)
    by_chance = agreement.krippendorff_alpha({(1, 1): 250, (1, 2): 500, (2, 2): 250})
    assert by_chance == pytest.approx(0.0, abs=1e-3)


def test_directions_forget_strength() -> None:
    assert agreement.directions({(-3, -1): 2, (0, 2): 1, (-1, -1): 1}) == {(-1, -1): 3, (0, 1): 1}


def test_bootstrap_says_the_same_twice() -> None:
    patterns = {(1, 1): 20, (2, 2): 12, (1, 2): 9}
    assert agreement.alpha_estimate(patterns) == agreement.alpha_estimate(patterns)
