import math

import numpy as np
import pytest
from pydantic import ValidationError

from backend.datasets.rows import RowType
from backend.runs.specs import GRPOSpec, Launch
from backend.runs.specs.rewards import (
    Constraints,
    ExactAnswer,
    LengthTerm,
    NumericAnswer,
    RepetitionTerm,
    Rewards,
    SoftOverlong,
    TagFormat,
)
from worker.report import SpecCannotWork, StopRequested
from worker.rewards import Composition, Measured, Rollout, combine


def rewards(*components):
    return Rewards(components=list(components))


def said(components, groups=None):
    """Measured from lists of raw scores; one group unless said otherwise."""
    count = len(next(iter(components.values())))
    return Measured(groups or [0] * count, components)


def totals(spec, measured):
    return [None if math.isnan(total) else pytest.approx(total) for total in combine(spec, measured).total]


FORMAT, ANSWER, LENGTH = TagFormat(name="format"), ExactAnswer(name="right"), LengthTerm(name="short")


def test_the_reward_is_the_weighted_sum():
    spec = rewards(ExactAnswer(weight=2), LengthTerm(weight=0.5))
    assert totals(spec, said({"exact": [1.0, 0.0], "length": [-0.5, 0.0]})) == [1.75, 0]


def test_what_one_component_cannot_answer_is_unscored_and_never_zero():
    spec = rewards(ExactAnswer(weight=0), LengthTerm())
    scores = combine(spec, said({"exact": [None, 1.0, math.nan], "length": [-0.5, -0.25, 0.0]}))
    assert np.isnan(scores.total[[0, 2]]).all()
    assert scores.total[1] == -0.25
    assert scores.components["exact"][0] is None
    assert scores.figures() == {
        "rewards/unscored": pytest.approx(2 / 3),
        "rewards/exact/unscored": pytest.approx(2 / 3),
        "rewards/exact/mean": 1,
        "rewards/exact/std": 0,
        "rewards/length/unscored": 0,
        "rewards/length/mean": -0.25,
        "rewards/length/std": pytest.approx((1 / 24) ** 0.5),  # ((1/4)² + 0 + (1/4)²)/3
    }


def test_groups_are_normalized_by_mean_and_population_deviation():
    spec = rewards(ExactAnswer(normalize="group"))
    # (0, 1): mean 1/2, deviation 1/2. (3, 3): no spread. (2, None, 8): mean 5, deviation 3
    measured = said({"exact": [0.0, 1.0, 3.0, 3.0, 2.0, None, 8.0]}, groups=[4, 4, 9, 9, 1, 1, 1])
    assert totals(spec, measured) == [-1, 1, 0, 0, -1, None, 1]


def test_the_batch_is_normalized_as_one():
    spec = rewards(ExactAnswer(normalize="batch"))
    assert totals(spec, said({"exact": [2.0, 8.0]}, groups=[0, 1])) == [-1, 1]


def test_equal_scores_that_rounding_would_spread_have_no_spread():
    spec = rewards(ExactAnswer(normalize="group"))
    assert np.std([0.1] * 3) > 0  # 1.4e-17: dividing by it would make 1 of nothing
    assert totals(spec, said({"exact": [0.1] * 3})) == [0, 0, 0]


def test_a_gate_lets_a_component_count_only_where_another_scored_one():
    spec = rewards(FORMAT, ExactAnswer(name="right", weight=2, only_if="format"))
    scores = combine(spec, said({"format": [1.0, 0.0, 0.99, 1.0], "right": [1.0, 1.0, 1.0, 0.0]}))
    assert list(scores.total) == [3, 0, pytest.approx(0.99), 1]
    assert scores.components["right"] == [1, 1, 1, 0]  # raw: what it said by itself
    assert scores.closed == {"right": [False, True, True, False]}
    assert scores.figures()["rewards/right/gated"] == 0.5


def test_a_closed_gate_never_pays_more_than_an_open_one_with_a_wrong_answer():
    # gated after normalization, the malformed third would get 0, and the wrong second −1
    spec = rewards(
        FORMAT.model_copy(update={"weight": 0}), ExactAnswer(name="right", only_if="format", normalize="group")
    )
    third = combine(spec, said({"format": [1.0, 1.0, 0.0, 0.0], "right": [1.0, 0.0, 1.0, 0.0]})).total
    # gated scores 1, 0, 0, 0: mean 1/4, deviation √3/4
    assert third == pytest.approx([3**0.5, -1 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5])


def test_a_gate_or_a_gated_component_without_answer_leaves_the_rollout_unscored():
    spec = rewards(FORMAT, ExactAnswer(name="right", only_if="format"))
    assert totals(spec, said({"format": [None, 0.0, 1.0], "right": [1.0, None, 1.0]})) == [None, None, 2]


@pytest.mark.parametrize("gate", [LengthTerm(), RepetitionTerm(), SoftOverlong()])
def test_a_gate_that_never_opens_is_refused_with_the_spec(gate):
    with pytest.raises(ValidationError, match="to score 1, which it never does"):
        rewards(gate, ExactAnswer(only_if=gate.kind))


def test_a_gate_may_itself_be_gated():
    spec = rewards(FORMAT, ExactAnswer(name="right", only_if="format"), LengthTerm(name="short", only_if="right"))
    # gates look at raw scores: the second answer is right though malformed
    assert totals(spec, said({"format": [1.0, 0.0], "right": [1.0, 1.0], "short": [-0.5, -0.5]})) == [1.5, -0.5]


def test_processes_join_what_they_measured_without_mixing_groups():
    parts = [
        Measured([0, 0], {"exact": [0.0, 1.0]}, {"exact/x": [1.0, 2.0]}),
        Measured([0, 0], {"exact": [5.0, 9.0]}, {"exact/x": [3.0, None]}),
    ]
    joined = Measured.joined(parts)
    assert joined.components == {"exact": [0, 1, 5, 9]}
    assert joined.extras == {"exact/x": [1, 2, 3, None]}
    assert totals(rewards(ExactAnswer(normalize="group")), joined) == [-1, 1, -1, 1]
    assert combine(rewards(ExactAnswer()), joined).figures()["rewards/exact/x"] == 2


# --- at work -----------------------------------------------------------------------------------------------------


@pytest.fixture
def compose(tmp_path):
    def make(*components):
        spec = GRPOSpec(base_model=1, dataset=1, rewards=rewards(*components))
        launch = Launch(
            spec=spec,
            folder=tmp_path,
            base_model=tmp_path,
            rows=tmp_path / "rows.parquet",
            row_type=RowType.PROMPT_ONLY,
        )
        return Composition(spec.rewards, launch, max_new_tokens=64)

    return make


def test_a_run_in_the_style_of_r1_zero_scores_format_and_answer(compose):
    texts = [
        "<think>9 · 2</think><answer>18</answer>",
        "<think>9 · 2</think><answer>17</answer>",
        "It is <answer>18</answer>",
        "18",
    ]
    rollouts = [
        Rollout(prompt="9 times 2?", completion=text, completion_ids=range(56), row={"gold": "#### 18"})
        for text in texts
    ]
    with compose(
        TagFormat(name="format", weight=0.5),
        NumericAnswer(name="right", column="gold", answer="answer_tag", only_if="format"),
        SoftOverlong(buffer=16),
        RepetitionTerm(weight=0),
    ) as composition:
        composition.check([rollout.row for rollout in rollouts])
        scores = composition.score(rollouts)
        again = composition.score(list(reversed(rollouts)))
    # 56 tokens of 64 with a buffer of 16: half way, −0.5
    assert list(scores.total) == [1, 0, -0.5, -0.5]
    assert list(reversed(again.total)) == list(scores.total)
    assert scores.components == {
        "format": [1, 1, 0, 0],
        "right": [1, 0, 1, 0],
        "overlong": [-0.5] * 4,
        "repetition": [0] * 4,
    }


def test_a_column_that_is_not_there_is_refused_with_its_component(compose):
    with compose(TagFormat(), NumericAnswer(column="gold")) as composition, pytest.raises(SpecCannotWork) as refused:
        composition.check([{"prompt": "?", "answer": "3", "gold": None}])
    assert refused.value.reason == "rewards.components[1].column: the rows have no 'gold'; they have answer, prompt"
    assert "Name one of the rows' columns" in refused.value.remedy


def test_instructions_come_from_one_column_or_from_the_two_of_ifeval(compose):
    ours = {
        "constraints": '[{"id": "punctuation:no_comma"}, {"id": "length_constraints:number_words", "num_words": 2, "relation": "at least"}]'
    }
    theirs = {
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": '[{"num_words": null}, {"num_words": 2, "relation": "at least"}]',
    }
    for row, column in ((ours, "constraints"), (theirs, "instruction_id_list")):
        texts = ["one two", "one, two", "one,", " "]
        rollouts = [Rollout(prompt="?", completion=text, row=row) for text in texts]
        spec = Constraints(column=column)
        assert list(rewards(spec).columns()) == list(row)
        with compose(spec) as strict, compose(spec.model_copy(update={"all_or_nothing": False})) as shares:
            strict.check([row])
            assert list(strict.score(rollouts).total) == [1, 0, 0, 0]
            assert list(shares.score(rollouts).total) == [1, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"id": "keywords:rhyme"}]', "there is no instruction 'keywords:rhyme'"),
        ('[{"id": "startend:end_checker"}]', "end_phrase: Field required"),
        ("[]", "no JSON list"),
        ("nonsense", "no JSON list"),
        ('["punctuation:no_comma"]', "arguments in the column 'kwargs'"),
        ("[3]", "neither an id nor an object"),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused(compose, content, problem):
    with compose(Constraints()) as composition, pytest.raises(SpecCannotWork, match=problem) as refused:
        composition.check([{"constraints": content}])
    assert refused.value.reason.startswith("rewards.components[0].column: 1 of 1 rows")
    assert "punctuation:no_comma" in refused.value.remedy
    with compose(Constraints()) as composition:
        rollout = Rollout(prompt="?", completion="x", row={"constraints": content})
        assert math.isnan(composition.score([rollout]).total[0])


def test_a_request_to_stop_is_answered_between_components(compose):
    asked = iter([False, True])
    with compose(LengthTerm(), RepetitionTerm()) as composition, pytest.raises(StopRequested):
        composition.measure([Rollout(prompt="?", completion="x")], stopped=lambda: next(asked))
