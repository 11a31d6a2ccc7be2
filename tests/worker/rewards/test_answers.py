from fractions import Fraction

import pytest

from backend.runs.specs.rewards import ExactAnswer, NumericAnswer
from worker.report import SpecCannotWork
from worker.rewards import quantities
from worker.rewards.answers import Exact, Number, locate
from worker.rewards.rollouts import Rollout


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        (" Paris \n", "whole", "Paris"),
        ("  \n", "whole", None),
        ("<think>4?</think><answer> 5 </answer>", "answer_tag", "5"),
        ("<answer>1</answer> no: <answer>2</answer>", "answer_tag", "2"),
        ("<answer>cut off", "answer_tag", None),
        ("</answer><answer>", "answer_tag", None),
        ("<answer> </answer>", "answer_tag", None),
        (r"\boxed{1} then \boxed{\frac{1}{2}} end", "boxed", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", "boxed", r"\{1,2\}"),
        (r"\boxed{\left\{x\right.} so", "boxed", r"\left\{x\right."),
        (r"\boxed{4} and \boxed{5", "boxed", "4"),
        (r"\boxed{\boxed{5}}", "boxed", "5"),
        ("no box", "boxed", None),
        ("one\n two \n\n", "last_line", "two"),
        ("I had 3, then −1,250.5 in all.", "last_number", "-1,250.5"),
        ("none", "last_number", None),
        ("16 - 3 = 13\n#### 13", "after_marker", "13"),
        ("The answer is 42. It took 3 steps.", "after_marker", "42"),
        ("**Answer:** $3.50 per dozen", "after_marker", "$3.50 per dozen"),
        ("Sum\nA: 18", "after_marker", "18"),
        ("My answer: 4\nThe final answer: **5**.", "after_marker", "5"),
        ("It is 5.", "after_marker", None),
        ("The answer is", "after_marker", None),
    ],
)
def test_the_answer_is_found_where_it_is_said_to_be(text, where, found):
    assert locate(text, where) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5", Fraction(2469, 2)),
        ("1,234,567", 1234567),
        ("1,5", 5),  # two numbers: a comma separates thousands only before three digits
        ("1,2345", 2345),
        ("$3", 3),
        ("-$3", -3),
        ("$-3", -3),
        ("€ 1.20", Fraction(6, 5)),
        ("−7", -7),
        ("–7", -7),
        ("pages 5–7", 7),
        ("10-3", 3),
        ("x = -0.5", Fraction(-1, 2)),
        ("f(2)-1", 1),
        ("1/2", Fraction(1, 2)),
        ("2 1/2", Fraction(5, 2)),
        ("16\n1/2", Fraction(1, 2)),
        ("2½", Fraction(5, 2)),
        ("¾", Fraction(3, 4)),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        (r"10{,}000", 10000),
        (r"10,\!000", 10000),
        ("10\u202f000", 10000),
        (r"\$18", 18),
        ("1.5e3", 1500),
        ("2e-2 m", Fraction(1, 50)),
        (".5", Fraction(1, 2)),
        ("ends with 5.", 5),
        ("007", 7),
        ("it takes 5 l of H2O", 5),
    ],
)
def test_numbers_are_read_as_people_write_them(text, value):
    assert quantities.read(text).value == value


@pytest.mark.parametrize("text", ["", "nine", "NaN", "inf", "-∞", "1/0", r"\frac{1}{0}", "9" * 401])
def test_what_is_no_finite_number_is_none(text):
    assert quantities.read(text) is None


@pytest.mark.parametrize(
    ("gold", "found", "same"),
    [
        ("18", "18.0", True),
        ("18", "18.0001", False),
        ("0.1", "1/10", True),
        ("1/3", "0.3333333", True),  # off by 1e-7 of a third
        ("1/3", "0.333", False),
        ("0", "0.0000001", False),  # a relative tolerance of 0 is 0
        ("50", "50%", True),
        ("0.5", "50%", True),
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("50%", "0.5%", False),
        ("5", "500%", True),
        ("0.5", "50", False),
        ("-7", "7", False),
    ],
)
def test_numbers_are_equal_within_a_relative_tolerance(gold, found, same):
    assert quantities.equal(quantities.read(gold), quantities.read(found), 1e-6) is same


def scores(scorer, completion, **row):
    return scorer.score([Rollout(prompt="?", completion=completion, row=row)])


def test_exact_answers_ignore_spaces_at_the_ends_and_capitals_if_asked():
    assert scores(Exact(ExactAnswer()), " paris\n", answer="Paris ") == [1]
    assert scores(Exact(ExactAnswer(ignore_case=False)), "paris", answer="Paris") == [0]
    assert scores(Exact(ExactAnswer()), "Paris.", answer="Paris") == [0]
    assert scores(Exact(ExactAnswer(answer="answer_tag")), "Paris", answer="Paris") == [0]
    assert scores(Exact(ExactAnswer()), "", answer="Paris") == [0]


def test_numbers_score_and_a_row_without_one_has_no_score():
    scorer = Number(NumericAnswer())
    assert scores(scorer, "so 9 * 2 = $18.", answer="9*2=18\n#### 18") == [1]
    assert scores(scorer, "so 17", answer=18) == [0]
    assert scores(scorer, "nothing", answer=18) == [0]
    assert scores(scorer, "0.30", answer=0.1 + 0.2) == [1]
    assert scores(scorer, "18", answer=float("nan")) == [None]
    assert scores(scorer, "18", answer=None) == [None]
    assert scores(scorer, "1", answer=True) == [None]
    assert scores(Exact(ExactAnswer()), "x", other=1) == [None]


def test_rows_that_no_verifier_can_compare_with_are_refused_with_the_field():
    rows = [{"answer": 3}, {"answer": "three"}, {"answer": None}]
    with pytest.raises(
        SpecCannotWork, match=r"rewards\.components\[2\]\.column: 2 of 3 rows .* row 2: 'three'"
    ) as refused:
        Number(NumericAnswer()).check(rows, "rewards.components[2]")
    assert "leave the rows without one out" in refused.value.remedy
    with pytest.raises(SpecCannotWork, match="1 of 3 rows have no answer"):
        Exact(ExactAnswer()).check(rows, "rewards.components[0]")
