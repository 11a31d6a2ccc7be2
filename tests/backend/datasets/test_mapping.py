"""From the columns of a file to TRL's."""

import pytest

from backend.datasets.cells import split_transcript
from backend.datasets.mapping import Mapper, Mapping, split_prompt
from backend.datasets.rowfile import BadRow
from backend.datasets.rows import Row


def say(*turns: str) -> list[dict[str, str]]:
    return [{"role": "user" if n % 2 == 0 else "assistant", "content": turn} for n, turn in enumerate(turns)]


def mapped(row: Row, row_type: str, columns: dict[str, object], **more: object) -> Row | None:
    return Mapper(Mapping.model_validate({"row_type": row_type, "columns": columns, **more}))(row)


def test_a_transcript_is_split_by_who_speaks() -> None:
    text = "\n\nHuman: a\n\nb Human: c\n\nAssistant: Human: d\n\nAssistant: "
    assert split_transcript(text) == [
        {"role": "user", "content": "a\n\nb Human: c"},
        {"role": "assistant", "content": "Human: d"},
        {"role": "assistant", "content": ""},
    ]
    with pytest.raises(BadRow):
        split_transcript("no transcript")


def test_the_prompt_is_what_both_share_up_to_a_question() -> None:
    assert split_prompt(say("q", "a"), say("q", "b")) == (say("q"), say("q", "a")[1:], say("q", "b")[1:])
    # they part at a question: the answer before it belongs to both completions
    prompt, chosen, rejected = split_prompt(say("q", "a", "r", "b"), say("q", "a", "s", "c"))
    assert (prompt, [m["content"] for m in chosen], [m["content"] for m in rejected]) == (
        say("q"),
        ["a", "r", "b"],
        ["a", "s", "c"],
    )
    # the same twice: the last turn stays a completion
    assert split_prompt(say("q", "a"), say("q", "a"))[0] == say("q")
    with pytest.raises(BadRow):
        split_prompt(say("q", "a"), say("r", "a"))
    assert split_prompt("The sky is blue.", "The sky is green.") == ("The sky is", " blue.", " green.")
    with pytest.raises(BadRow):
        split_prompt("blue", "green")


def test_names_paths_parts_and_others() -> None:
    row = {
        "instruction": "sort",
        "input": "b a",
        "meta": {"answers": [{"text": "a b"}]},
        "id": 7,
        "completion": "old",
        "none": None,
    }
    found = mapped(row, "prompt_completion", {"prompt": ["instruction", "input"], "completion": "meta.answers.0.text"})
    assert found == {"prompt": "sort\n\nb a", "completion": "a b", "id": 7, "completion_original": "old"}
    assert mapped(row, "prompt_only", {"prompt": "instruction"}, keep="none") == {"prompt": "sort"}


def test_messages_under_other_names() -> None:
    row = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    keys = {"role": "from", "content": "value"}
    assert mapped(row, "language_modeling", {"messages": "conversations"}, messages=keys) == {
        "messages": say("hi", "hello")
    }


def test_a_text_prompt_beside_whole_conversations() -> None:
    row = {"prompt": "hi", "chosen": say("hi", "hello"), "rejected": say("hi", "go")}
    found = mapped(row, "preference", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"})
    assert found == {"prompt": say("hi"), "chosen": say("hi", "hello")[1:], "rejected": say("hi", "go")[1:]}


def test_the_winner_is_told_by_a_column_and_ties_are_left_out() -> None:
    columns = {"prompt": "p", "chosen": "a", "rejected": "b"}
    mapper = Mapper(
        Mapping.model_validate(
            {"row_type": "preference", "columns": columns, "winner": {"column": "w", "first": 0, "second": 1}}
        )
    )
    rows = [mapper({"p": "q", "a": "left", "b": "right", "w": w}) for w in (0, 1, 2)]
    assert rows[:2] == [
        {"prompt": "q", "chosen": "left", "rejected": "right"},
        {"prompt": "q", "chosen": "right", "rejected": "left"},
    ]
    assert rows[2] is None
    assert mapper.left_out == {"neither side won": 1}


@pytest.mark.parametrize(
    ("value", "means"),
    [(True, True), ("false", False), (1, True), ("0", False), (1.0, True), ("Yes", True), ("👎", False)],
)
def test_labels(value: object, means: bool) -> None:
    columns = {"prompt": "p", "completion": "c", "label": "l"}
    assert mapped({"p": "a", "c": "b", "l": value}, "unpaired", columns) == {
        "prompt": "a",
        "completion": "b",
        "label": means,
    }


@pytest.mark.parametrize("value", ["maybe", 2, [], {}])
def test_labels_that_say_nothing(value: object) -> None:
    with pytest.raises(BadRow):
        mapped({"p": "a", "c": "b", "l": value}, "unpaired", {"prompt": "p", "completion": "c", "label": "l"})


@pytest.mark.parametrize(("value", "means"), [(1, 1.0), ("0.5", 0.5), ("", None), (None, None)])
def test_margins(value: object, means: float | None) -> None:
    columns = {c: c for c in ("prompt", "chosen", "rejected", "margin")}
    row = mapped({"prompt": "p", "chosen": "a", "rejected": "b", "margin": value}, "preference", columns)
    assert row is not None
    assert row.get("margin") == means


def test_plain_texts_can_become_conversations() -> None:
    row = mapped(
        {"prompt": "hi", "completion": "hello"},
        "prompt_completion",
        {"prompt": "prompt", "completion": "completion"},
        as_conversation=True,
    )
    assert row == {"prompt": say("hi"), "completion": say("", "hello")[1:]}


# --- probabilities, steps, scores ---------------------------------------------------------------------------------


def test_ties_can_be_kept_as_a_coin() -> None:
    columns = {"prompt": "q", "chosen": "a", "rejected": "b"}
    winner = {"column": "w", "first": 0, "second": 1, "ties": "half"}
    rows = [{"q": "q", "a": "x", "b": "y", "w": w} for w in (0, 1, 2)]
    first, second, tie = (mapped(row, "preference", columns, winner=winner) for row in rows)
    assert first == {"prompt": "q", "chosen": "x", "rejected": "y"}
    assert second == {"prompt": "q", "chosen": "y", "rejected": "x"}
    assert tie == {"prompt": "q", "chosen": "x", "rejected": "y", "probability": 0.5}


def test_a_pair_that_is_swapped_takes_its_probability_along() -> None:
    columns = {"prompt": "q", "chosen": "a", "rejected": "b", "probability": "p"}
    winner = {"column": "w", "first": "a", "second": "b"}
    rows: list[Row] = [{"q": "q", "a": "x", "b": "y", "p": p, "w": w} for p, w in ((0.75, "a"), (0.25, "b"))]
    first, second = (mapped(row, "preference", columns, winner=winner) for row in rows)
    assert first == {"prompt": "q", "chosen": "x", "rejected": "y", "probability": 0.75}
    assert second == {"prompt": "q", "chosen": "y", "rejected": "x", "probability": 0.75}


@pytest.mark.parametrize("value", [-0.1, 1.5, "likely", True, float("nan")])
def test_a_probability_lies_between_0_and_1(value: object) -> None:
    columns = {"prompt": "q", "chosen": "a", "rejected": "b", "probability": "p"}
    good = mapped({"q": "q", "a": "x", "b": "y", "p": "0.75"}, "preference", columns)
    assert good is not None
    assert good["probability"] == 0.75
    with pytest.raises(BadRow, match="probability"):
        mapped({"q": "q", "a": "x", "b": "y", "p": value}, "preference", columns)


STEPS = {"prompt": "input", "completions": "steps", "labels": "wrong"}


@pytest.mark.parametrize(
    ("wrong", "labels"),
    [
        (1, [True, False, False]),  # the index of the first wrong step
        (0, [False, False, False]),
        (None, [True, True, True]),
        ([True, False, True], [True, False, True]),
    ],
)
def test_steps_are_labeled_one_by_one_or_by_the_first_mistake(wrong: object, labels: list[bool]) -> None:
    row = mapped({"input": "1+1+1", "steps": ["1+1=2", "2+1=4", "so 4"], "wrong": wrong}, "stepwise", STEPS)
    assert row == {"prompt": "1+1+1", "completions": ["1+1=2", "2+1=4", "so 4"], "labels": labels}


def test_zero_is_neutral_in_every_row_of_ratings_and_in_none_without() -> None:
    """PRM800K: a solution without a bad step has no −1 that would tell what its 0 means."""
    rows: list[Row] = [{"input": "q", "steps": ["a", "b", "c"], "wrong": w} for w in ([1, 0, -1], [1, 0, 1])]
    with pytest.raises(BadRow, match="these are ratings"):
        mapped(rows[0], "stepwise", STEPS)
    assert [row["labels"] for raw in rows if (row := mapped(raw, "stepwise", STEPS, ratings=True))] == [
        [True, True, False],
        [True, True, True],
    ]
    assert (mapped(rows[1], "stepwise", STEPS) or {})["labels"] == [True, False, True]
    with pytest.raises(BadRow, match="none of −1, 0 and 1"):
        mapped({**rows[0], "wrong": [1, 2, 0]}, "stepwise", STEPS, ratings=True)


@pytest.mark.parametrize(
    ("steps", "wrong", "says"),
    [
        ([], None, "no list of steps"),
        (["a", 2], None, "Step 2 is no text"),
        (["a", " "], None, "Step 2 is no text"),
        (["a", "b"], 2, "counted from 0"),
        (["a", "b"], [True], "1 labels for 2 steps"),
        (["a", "b"], "x", "no list of labels"),
    ],
)
def test_steps_that_do_not_fit_are_named(steps: object, wrong: object, says: str) -> None:
    with pytest.raises(BadRow, match=says):
        mapped({"input": "q", "steps": steps, "wrong": wrong}, "stepwise", STEPS)


def test_scores_come_as_an_object_or_as_columns() -> None:
    said = {"prompt": "q", "completion": "c"}
    inside = mapped(
        {"q": "q", "c": "c", "s": {"clear": 2, "kind": None}},
        "scored",
        {"prompt": "q", "completion": "c", "scores": "s"},
    )
    assert inside == said | {"scores": {"clear": 2.0}}
    beside = mapped(
        {"q": "q", "c": "c", "clear": "2.5", "kind": 1},
        "scored",
        {"prompt": "q", "completion": "c", "scores": ["clear", "kind"]},
    )
    assert beside == said | {"scores": {"clear": 2.5, "kind": 1.0}}
    for bad in ({}, {"clear": "good"}, {"clear": True}, {"clear": None}, 3):
        with pytest.raises(BadRow):
            mapped({"q": "q", "c": "c", "s": bad}, "scored", {"prompt": "q", "completion": "c", "scores": "s"})
