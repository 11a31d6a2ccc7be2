"""Expected values are derived in the docstrings."""

import math

import pytest
import torch

from worker import calibration


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- calibration -------------------------------------------------------------------------------------------------


def test_temperature_of_one_size_of_difference() -> None:
    """Four pairs with d = 2, of which three are right: the best σ(2/T) is 3/4, so 2/T = log 3 and T = 2/log 3 = 1.8205.

    The least nll is the entropy of 3/4: −¾ log ¾ − ¼ log ¼ = 0.56234. Before: ¾·log(1+e⁻²) + ¼·log(1+e²) = 0.62693.
    """
    found = calibration.calibration(t(2, 2, 2, 2), t(1, 1, 1, 0))
    assert found.temperature == pytest.approx(2 / math.log(3), rel=1e-9)
    assert found.nll_calibrated == pytest.approx(0.56234, abs=1e-5)
    assert found.nll == pytest.approx(0.62693, abs=1e-5)


def test_ece_and_brier_by_hand() -> None:
    """d = ±log 3 gives σ = ¾ for what is predicted. Right in two of four: one bin, |¾ − ½| = ¼.

    Brier: the right ones are off by ¼, the wrong ones by ¾: (2/16 + 2·9/16)/4 = 5/16.
    """
    d = t(math.log(3), -math.log(3), math.log(3), -math.log(3))
    found = calibration.calibration(d, t(1, 1, 0, 0))
    assert len(found.bins) == 1
    assert found.bins[0] == pytest.approx((0.75, 0.5, 4))
    assert found.ece == pytest.approx(0.25)
    assert found.brier == pytest.approx(5 / 16)
    assert found.temperature == pytest.approx(100)  # it says nothing: the bound


def test_a_calibrated_model_has_no_error() -> None:
    """σ(log 3) = ¾ with three of four right, σ(0) = ½: ECE 0, T = 1."""
    d = t(*[math.log(3)] * 4, 0, 0)
    found = calibration.calibration(d, t(1, 1, 0, 1, 1, 0))
    assert found.ece == pytest.approx(0, abs=1e-12)
    assert found.temperature == pytest.approx(1, rel=1e-9)


def test_probabilities_are_outcomes_too() -> None:
    """Three annotators of four say the same as σ(log 3): nothing to correct. A tie is half right whatever is predicted."""
    found = calibration.calibration(t(math.log(3), -math.log(3)), t(0.75, 0.25))
    assert [found.ece, found.brier] == pytest.approx([0, 0])
    assert calibration.correct(t(5, -5, 0), t(0.5, 0.5, 1)).tolist() == [0.5, 0.5, 0.5]


def test_bins_have_equal_mass_and_no_order() -> None:
    """200 rows, 10 bins of 20; rows of one confidence share their accuracy, so a shuffle changes nothing."""
    torch.manual_seed(0)
    d = torch.randint(-8, 9, (200,)).double() / 4
    p = (torch.rand(200) < d.sigmoid()).double()
    bins = calibration.reliability(d, p)
    assert [one.rows for one in bins] == [20] * 10
    assert [one.confidence for one in bins] == sorted(one.confidence for one in bins)
    shuffled = torch.randperm(200)
    for ours, theirs in zip(bins, calibration.reliability(d[shuffled], p[shuffled]), strict=True):
        assert theirs == pytest.approx(ours)
    weighted = sum(one.rows * one.accuracy for one in bins) / 200
    assert weighted == pytest.approx(calibration.correct(d, p).mean().item())


def test_the_temperature_is_where_the_nll_is_least() -> None:
    torch.manual_seed(1)
    d = torch.randn(500).double() * 3
    p = (torch.rand(500) < (d / 2).sigmoid()).double()  # twice too sure
    found = calibration.calibration(d, p)
    assert 1.6 < found.temperature < 2.5
    for other in (0.95, 1.05):
        assert calibration.calibration(d / (found.temperature * other), p).nll > found.nll_calibrated


def test_swapping_sides_changes_nothing() -> None:
    torch.manual_seed(2)
    d, p = torch.randn(60).double(), torch.rand(60).double()
    ours, theirs = calibration.calibration(d, p), calibration.calibration(-d, 1 - p)
    for name in ("ece", "brier", "nll", "temperature", "nll_calibrated"):
        assert getattr(theirs, name) == pytest.approx(getattr(ours, name))


def test_accuracy_asks_no_ties_and_halves_equal_scores() -> None:
    """Right, wrong, equal (½), a tie that is not asked, and a minority that chose it: right where d < 0. (1+0+½+1)/4."""
    assert calibration.accuracy(t(1, -1, 0, 3, -2), t(1, 1, 1, 0.5, 0.2)) == pytest.approx(2.5 / 4)


def test_figures_name_the_diagram() -> None:
    figures = calibration.calibration(torch.linspace(-2, 2, 40), torch.ones(40)).figures()
    assert {f"reliability/{what}_{n}" for what in ("confidence", "accuracy") for n in range(4)} <= set(figures)
    assert len(figures) == 5 + 2 * 4


# --- length ------------------------------------------------------------------------------------------------------


def test_the_judge_by_length_learns_which_side_of_length_is_better() -> None:
    """Differences of 3 tokens, the shorter one better in three of four: σ(−3a) = ¾, so a = −log 3/3."""
    judge = calibration.by_length(t(3, 3, 3, 3), t(0, 0, 0, 1))
    assert judge.slope == pytest.approx(-math.log(3) / 3, rel=1e-6)
    figures = judge.figures(t(1, -2, 5, 0), t(1, 1, 0, 1))
    assert figures["longer_accuracy"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert figures["length_accuracy"] == pytest.approx((0 + 1 + 1 + 0.5) / 4)


def test_equal_lengths_say_nothing() -> None:
    figures = calibration.by_length(t(0, 0), t(1, 1)).figures(t(0, 0), t(1, 0))
    assert figures == {"longer_accuracy": 0.5, "length_accuracy": 0.5, "length_nll": pytest.approx(math.log(2))}


def test_the_best_limit_of_tokens() -> None:
    """Right: 3, 5, 5; wrong: 5, 8, 9. Up to 5: 3 + 2 of 6 right. On 4 and 7 tokens it says right, wrong."""
    limit = calibration.length_limit(t(9, 3, 5, 5, 8, 5), t(0, 1, 1, 1, 0, 0))
    assert limit == calibration.Limit(5, True)
    assert limit.accuracy(t(4, 7), t(1, 1)) == 0.5
    assert calibration.length_limit(t(9, 3), t(1, 0)) == calibration.Limit(3, False)  # long is right
    assert calibration.length_limit(t(4, 5), t(0, 0)).accuracy(t(4, 5, 5), t(0, 0, 1)) == pytest.approx(2 / 3)


# --- correlation -------------------------------------------------------------------------------------------------


def test_correlations_by_hand() -> None:
    """x = 1 2 3, y = 1 2 4: centered (−1, 0, 1) and (−4/3, −1/3, 5/3): 3/√(2·42/9) = 0.98198; the ranks agree.

    With a tie, 1 1 2 has the ranks 1½ 1½ 3, against 1 2 3: 1.5/√(1.5·2) = 0.86603.
    """
    assert calibration.pearson(t(1, 2, 3), t(1, 2, 4)) == pytest.approx(0.98198, abs=1e-5)
    assert calibration.spearman(t(1, 2, 3), t(1, 2, 4)) == pytest.approx(1)
    assert calibration.spearman(t(1, 1, 2), t(1, 2, 3)) == pytest.approx(0.86603, abs=1e-5)
    assert math.isnan(calibration.pearson(t(1, 1), t(1, 2)))
