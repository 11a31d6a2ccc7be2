from pathlib import Path

import pytest

from backend.datasets.rows import Row
from backend.demo import corpus

SHAPES = [
    corpus.pretraining,
    corpus.demonstrations,
    corpus.preference_pairs,
    corpus.voted_pairs,
    corpus.thumbs,
    corpus.scored,
    corpus.stepwise,
    corpus.prompts,
    corpus.sums,
]


def asked(row: Row) -> str:
    return str(row["prompt"][0]["content"])


def topic(prompt: str) -> str:
    """What is held out: the pair of numbers, or item and problem."""
    return (
        prompt.split(", my ")[-1].removeprefix("My ") if not corpus.is_sum(prompt) else prompt.split()[-1].rstrip(".?")
    )


@pytest.mark.parametrize("make", SHAPES)
def test_the_same_seed_gives_the_same_rows(make: object) -> None:
    assert callable(make)
    assert make(50, 1, "train") == make(50, 1, "train")
    assert make(50, 1, "train") != make(50, 2, "train")


def test_what_is_held_out_is_in_no_training_row() -> None:
    train = {topic(asked(row)) for make in SHAPES for row in make(4000, 3, "train")}
    held_out = {topic(asked(row)) for make in SHAPES for row in make(500, 3, "held_out")}
    assert len(held_out) > 300
    assert not train & held_out


def test_demonstrations_are_right_and_polite() -> None:
    for row in corpus.demonstrations(300, 0):
        completion = row["completion"][0]["content"]
        assert corpus.answer_is_right(asked(row), completion) != corpus.is_polite(completion)


def test_chosen_is_better_by_the_margin_or_worked() -> None:
    for row in corpus.preference_pairs(300, 0):
        chosen, rejected = (
            corpus.candidate_quality(asked(row), row[side][0]["content"]) for side in ("chosen", "rejected")
        )
        assert chosen > rejected
        if not corpus.is_sum(asked(row)):
            assert chosen - rejected == row["margin"]


def test_candidates_differ_in_quality() -> None:
    questions = corpus.candidates(60, 0)
    assert len({question.prompt for question in questions}) == 60
    for prompt, completions in questions:
        assert len(set(completions)) == 4
        assert len({corpus.candidate_quality(prompt, text) for text in completions}) > 1
    with pytest.raises(ValueError, match="two to six"):
        corpus.candidates(1, 0, completions=7)


@pytest.mark.parametrize(
    ("prompt", "completion", "right"),
    [
        ("What is 38+47?", "Ones: 8+7=15. Tens: 3+4+1=8. Answer: 85.", True),
        ("What is 38+47?", "Answer: 75.", False),
        ("What is 38+47?", "Answer: 85. Have a nice day.", False),
        ("My bike is late.", "Answer: 85.", False),
    ],
)
def test_answers_are_checked(prompt: str, completion: str, right: bool) -> None:
    assert corpus.answer_is_right(prompt, completion) is right


def test_politeness_is_strict() -> None:
    polite = "I am sorry about your bike. I will trace the delivery right away. Have a nice day."
    assert corpus.is_polite(polite)
    for spoiled in (polite.replace("Have a nice day.", "Read the manual."), polite + " ok", polite[:-1], ""):
        assert not corpus.is_polite(spoiled)
    assert corpus.is_well_formed(polite.replace("Have a nice day.", "Read the manual."))
    assert not corpus.is_well_formed(polite[:-1])


def test_the_base_model_is_small_and_has_no_pickle() -> None:
    files = list((Path(corpus.__file__).parent / "base").iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= {f.name for f in files}
    assert sum(file.stat().st_size for file in files) < 2_000_000
    assert {file.suffix for file in files} == {".safetensors", ".json", ".jinja"}


def test_a_thumb_is_up_for_what_is_right_and_polite() -> None:
    rows = corpus.thumbs(400, 0)
    up = [row for row in rows if row["label"]]
    assert 150 < len(up) < 250
    for row in rows:
        assert (corpus.candidate_quality(asked(row), row["completion"][0]["content"]) == 3) == row["label"]


def test_votes_lean_to_the_better_side_and_some_tie() -> None:
    """Four voters at 3 to 1 prefer the worse reply with three or more votes in (1/4)⁴ + 4·(1/4)³·(3/4) = 5 % of rows."""
    rows = corpus.voted_pairs(600, 0)
    assert {row["probability"] for row in rows} == {0.5, 0.75, 1.0}
    wrong = [
        row
        for row in rows
        if row["probability"] > 0.5
        and corpus.candidate_quality(asked(row), row["chosen"][0]["content"])
        < corpus.candidate_quality(asked(row), row["rejected"][0]["content"])
    ]
    assert 0 < len(wrong) < 0.05 * len(rows)


def test_scores_say_what_the_texts_are() -> None:
    rows = corpus.scored(400, 0)
    assert len(rows) == 400
    seen: set[float] = set()
    for row in rows:
        text, scores = row["completion"][0]["content"], row["scores"]
        assert scores["detail"] == len(text.split()) / 4
        if corpus.is_sum(asked(row)):
            assert set(scores) == {"correctness", "detail"}
            assert scores["correctness"] == corpus.answer_is_right(asked(row), text)
        else:
            assert set(scores) == {"politeness", "detail"}
            assert (scores["politeness"] == 3) == corpus.is_polite(text)
            seen.add(scores["politeness"])
    assert seen == {0, 1, 2, 3}
    assert all(one["prompt"] == other["prompt"] for one, other in zip(rows[::2], rows[1::2], strict=True))


def test_steps_are_right_until_one_is_not() -> None:
    """Each step is computed again from the question; a right solution is what the model itself would write."""
    kinds: set[tuple[bool, ...]] = set()
    for row in corpus.stepwise(600, 0):
        steps, labels = row["completions"], row["labels"]
        a, b = map(int, asked(row).split()[-1].rstrip(".?").split("+"))
        whole = corpus.work_out(corpus.Sum(a, b)) if len(steps) == 3 else f"Answer: {a + b}."
        right = [step == true for step, true in zip(steps, whole.split("."), strict=False)]
        first = right.index(False) if False in right else len(right)
        assert labels == [n < first for n in range(len(right))]
        kinds.add(tuple(labels))
    assert {(True,), (False,), (True,) * 3, (False,) * 3, (True, False, False), (True, True, False)} == kinds


def test_sums_come_with_their_answer() -> None:
    for row in corpus.sums(50, 0):
        assert corpus.answer_is_right(asked(row), f"Answer: {row['answer']}.")
