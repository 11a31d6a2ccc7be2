"""What a file is taken for, from its first rows."""

from backend.datasets.mapping import Mapper
from backend.datasets.recognition import suggest
from backend.datasets.rows import Row, RowType

HI = [{"role": "user", "content": "hi"}]
HELLO = [{"role": "assistant", "content": "hello"}]
GO_AWAY = [{"role": "assistant", "content": "go away"}]


def test_openai_preference_rows_are_recognized() -> None:
    row = {
        "input": {"messages": HI, "tools": []},
        "preferred_output": HELLO,
        "non_preferred_output": GO_AWAY,
    }
    found = Mapper(suggest([row])[0].mapping)(row)
    assert found == {"prompt": HI, "chosen": HELLO, "rejected": GO_AWAY}


def test_the_keys_of_messages_are_told_by_the_first_one() -> None:
    row = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    assert suggest([row])[0].mapping.messages.role == "from"


def test_zero_and_one_are_the_sides_when_two_is_a_tie() -> None:
    rows = [{"prompt": "q", "response 1": "a", "response 2": "b", "label": n % 3} for n in range(9)]
    winner = suggest(rows)[0].mapping.winner
    assert winner is not None
    assert (winner.first, winner.second) == ("0", "1")


def test_one_minus_one_makes_the_labels_of_all_steps_ratings() -> None:
    named: list[Row] = [{"prompt": "q", "steps": ["a", "b"], "labels": w} for w in ([0, 1], [1, -1])]
    assert suggest(named)[0].mapping.ratings
    assert not suggest(named[:1])[0].mapping.ratings


def test_files_with_steps_and_scores_are_recognized() -> None:
    steps = [{"input": "q", "steps": ["a", "b"], "target": "1", "mistake_index": None}]
    assert suggest(steps)[0].mapping.row_type is RowType.STEPWISE
    scored = [{"source": "q", "system_output": "c", "scores": {"clear": 1.5}}]
    assert suggest(scored)[0].mapping.row_type is RowType.SCORED


def test_nothing_is_guessed_where_nothing_is_known() -> None:
    assert suggest([{"a": 1, "b": "x"}]) == []
    assert [s.mapping.row_type for s in suggest([{"text": "once upon a time"}])] == [RowType.LANGUAGE_MODELING]


def test_a_column_that_names_groups_of_rows_is_no_prompt() -> None:
    rows: list[Row] = [
        {
            "source": ("harmless", "honest")[n % 2],
            "chosen_instruction": f"Judge this. {n}? Yes.",
            "rejected_instruction": f"Judge this. {n}? No.",
        }
        for n in range(20)
    ]
    (pairs,) = suggest(rows)
    assert pairs.mapping.columns == {"chosen": "chosen_instruction", "rejected": "rejected_instruction"}
    assert (Mapper(pairs.mapping)(rows[3]) or {})["prompt"] == "Judge this. 3?"


def test_few_long_or_seldom_repeated_texts_are_prompts() -> None:
    for rows in (
        [{"source": "Summarize this for me, " + "please, " * 5, "output": str(n)} for n in range(20)],
        [{"source": f"{n // 2} + 1?", "output": str(n)} for n in range(8)],
        [{"prompt": "Tell a joke.", "output": str(n)} for n in range(20)],
    ):
        assert suggest(rows)[0].mapping.row_type is RowType.PROMPT_COMPLETION
