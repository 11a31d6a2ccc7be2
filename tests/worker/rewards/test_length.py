import pytest

from backend.runs.specs.rewards import LengthTerm, RepetitionTerm, SoftOverlong
from worker.report import SpecCannotWork
from worker.rewards.length import Length, Overlong, Repetition, beyond, overlong, repetition
from worker.rewards.rollouts import Rollout


@pytest.mark.parametrize(
    ("tokens", "both", "score"),
    [
        (0, False, 0),
        (256, False, 0),
        (320, False, -0.25),
        (512, False, -1),
        (9999, False, -1),
        (192, True, -0.25),
        (0, True, -1),
    ],
)
def test_length_costs_its_distance_from_the_target(tokens, both, score):
    assert beyond(tokens, 256, shorter_too=both) == score


@pytest.mark.parametrize(
    # DAPO: L_max = 20480, L_cache = 4096; Eq. 13: ((20480 − 4096) − |y|)/4096 between 16384 and 20480
    ("tokens", "score"),
    [(1, 0), (16384, 0), (16385, -1 / 4096), (17408, -0.25), (18432, -0.5), (20480, -1), (20481, -1)],
)
def test_overlong_is_equation_13_of_dapo(tokens, score):
    assert overlong(tokens, limit=20480, buffer=4096) == score


def test_repetition_is_the_share_of_ngrams_seen_before():
    assert repetition("a b c d", 3) == 0  # abc bcd
    assert repetition("a b a b a b", 2) == -3 / 5  # ab ba ab ba ab: two kinds of five
    assert repetition("The the THE", 1) == pytest.approx(-2 / 3)
    assert repetition("a b", 3) == 0
    assert repetition("", 1) == 0


def test_tokens_are_what_was_sampled_and_the_limit_is_the_longest_completion():
    rollouts = [Rollout(prompt="?", completion="a a a a", completion_ids=range(90), ended=False)]
    assert Length(LengthTerm(target=60)).score(rollouts) == [-0.5]
    assert Overlong(SoftOverlong(buffer=40), limit=100).score(rollouts) == [-0.75]
    assert Repetition(RepetitionTerm(ngram=2)).score(rollouts) == [pytest.approx(-2 / 3)]


def test_a_buffer_as_long_as_the_limit_is_refused():
    with pytest.raises(SpecCannotWork, match=r"rewards\.components\[0\]\.buffer: .* 32 tokens before a limit of 32"):
        Overlong(SoftOverlong(buffer=32), limit=32).check([], "rewards.components[0]")
