import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from backend.runs.specs.rewards import MathAnswer
from worker.report import SpecCannotWork
from worker.rewards import mathematics
from worker.rewards.mathematics import Judges, Mathematics
from worker.rewards.rollouts import Rollout

TOWER = r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}}"
"""A number of more digits than there are atoms: parsing it never ends (math-verify's issue 65)."""


@pytest.fixture(scope="module")
def mathematician():
    scorers = {where: Mathematics(MathAnswer(answer=where)) for where in ("whole", "boxed", "answer_tag")}
    judges = Judges(seconds=1, processes=1)
    for scorer in scorers.values():
        scorer._judges = judges
    yield scorers
    judges.close()


@pytest.mark.parametrize(
    ("gold", "completion", "score"),
    [
        ("1/2", r"so \boxed{0.5}", 1),
        (r"\frac{1}{2}", r"so $\frac{2}{4}$", 1),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", 0),
        (r"3\sqrt{13}", r"\boxed{\sqrt{117}}", 1),
        (r"3\sqrt{13}", r"3\sqrt{13}", 1),
        ("3", r"3\sqrt{13}", 0),
        (r"\{1,2\}", r"\boxed{\{2, 1\}}", 1),
        ("(1,2)", r"\boxed{(2,1)}", 0),
        ("[0, 1)", r"\boxed{[0, 1)}", 1),
        ("[0, 1)", r"\boxed{[0, 1]}", 0),
        ("x^2+2x+1", r"\boxed{(x+1)^2}", 1),
        ("2k+2", r"\boxed{2}", 0),
        ("p - q", "p - q", 1),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", 1),
        (r"\text{Evelyn}", r"\boxed{\text{Carla}}", 0),
        ("1,000", r"\boxed{1000}", 1),
        ("18", "The answer is 18.", 1),
        ("9*2=18\n#### 18", "The answer is 18.", 1),
        (r"Hence \boxed{7} follows.", "The answer is 7.", 1),
        (42, "The answer is 42", 1),
        ("5", r"\boxed{5, 6}", 0),  # who names two answers has none
        ("5", r"\boxed{5 \text{ or } 6}", 0),
        ("5", "$5$ or $6$", 0),
        ("42", "I do not know", 0),
        (r"\$36", r"\boxed{\$36}", 1),
        ("$36", r"\boxed{36}", 1),
        ("She has $<<9*2=18>>18.\nA: 18", "A: 18", 1),  # dollars that mark no mathematics
        ("42", "", 0),
        (None, "The answer is 42", None),
    ],
)
def test_equivalence(mathematician, gold, completion, score):
    assert mathematician["whole"].score([Rollout(prompt="?", completion=completion, row={"answer": gold})]) == [score]


def test_only_the_place_that_was_asked_for_is_read(mathematician):
    row = {"answer": r"\frac{1}{2}"}
    rollout = Rollout(prompt="?", completion=r"\boxed{3} <answer>\frac12</answer>", row=row)
    assert mathematician["boxed"].score([rollout]) == [0]
    assert mathematician["answer_tag"].score([rollout]) == [1]
    assert mathematician["answer_tag"].score([Rollout(prompt="?", completion="0.5", row=row)]) == [0]


def test_what_never_ends_has_no_answer_and_the_next_one_has(mathematician):
    start = time.monotonic()
    rollouts = [
        Rollout(prompt="?", completion=text, row={"answer": "1"}) for text in (TOWER, r"\boxed{1}", "9**9**9**9**9")
    ]
    # processor seconds: on a busy machine they take longer
    assert mathematician["boxed"].score(rollouts) == [None, 1, 0]
    assert time.monotonic() - start < 60


def test_it_works_off_the_main_thread_where_alarms_do_not(mathematician):
    rollouts = [Rollout(prompt="?", completion=TOWER, row={"answer": "1"})]
    with ThreadPoolExecutor(1) as elsewhere:
        assert elsewhere.submit(mathematician["boxed"].score, rollouts).result() == [None]


def test_rows_whose_answer_is_no_mathematics_are_refused(mathematician):
    rows = [{"answer": "1/2"}, {"answer": " "}, {"answer": None}]
    with pytest.raises(
        SpecCannotWork, match=r"c\[1\]\.column: 2 of 3 rows have no answer in 'answer' .* row 2: it is empty"
    ):
        mathematician["whole"].check(rows, "c[1]")
    mathematician["whole"].check(rows[:1], "c[1]")


def test_a_worker_without_math_verify_is_refused_with_the_remedy(monkeypatch, tmp_path):
    broken = tmp_path / "equivalence.py"
    broken.write_text("import no_such_module")
    monkeypatch.setattr(mathematics, "_SERVER", broken)
    with pytest.raises(SpecCannotWork, match="math-verify does not start") as refused:
        Judges(processes=1).ask([["read", "$1$"]])
    assert "Install" in refused.value.remedy


def test_nothing_is_left_running():
    judges = Judges(processes=2)
    assert judges.ask([["same", "$1$", "$1$"], ["same", "$1$", "$2$"]]) == [True, False]
    running = [judges._idle.get(), judges._idle.get()]
    for judge in running:
        judges._idle.put(judge)
    judges.close()
    for judge in running:
        if judge is not None:
            with pytest.raises(ProcessLookupError):
                os.kill(judge.pid, 0)
