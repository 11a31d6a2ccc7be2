"""What a file probably is: mappings that fit its first rows, from the names of its columns and what they hold."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from backend.datasets.cells import is_transcript
from backend.datasets.mapping import MISSING, Mapper, Mapping, find
from backend.datasets.rowfile import BadRow
from backend.datasets.rows import Row, RowType


class Suggestion(NamedTuple):
    """A mapping that fits the first rows, with a name for people."""

    name: str
    mapping: Mapping


_ALIASES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue"),
    "prompt": ("prompt", "instruction", "question", "query", "problem", "input.messages", "source", "context", "input"),
    "completion": (
        "completion",
        "response",
        "output",
        "answer",
        "solution",
        "canonical_solution",
        "code",
        "best answer",
        "system_output",
        "instances.0.output",
    ),
    "chosen": (
        "chosen",
        "preferred_output",
        "preferred",
        "chosen_response",
        "response_chosen",
        "chosen_instruction",
        "best answer",
    ),
    "rejected": (
        "rejected",
        "non_preferred_output",
        "dispreferred",
        "rejected_response",
        "response_rejected",
        "rejected_instruction",
        "best incorrect answer",
    ),
    "label": ("label", "thumbs", "is_good", "good"),
    "margin": ("margin",),
    "probability": ("probability", "soft_label"),
    "completions": ("completions", "steps"),
    "labels": ("labels", "mistake_index", "step_labels"),
    "scores": ("scores", "ratings", "attributes"),
    "text": ("text",),
}
_MOST_NAMES, _LONGEST_NAME = 8, 40
"""A column that has no more different values than this, each no longer, names groups of rows: no prompt."""
_SIDES = [
    ("output_1", "output_2"),
    ("response 1", "response 2"),
    ("response_1", "response_2"),
    ("response_a", "response_b"),
    ("answer_a", "answer_b"),
    ("completion_a", "completion_b"),
    ("response1", "response2"),
]
_WINNERS = ("winner", "label", "preference", "preferred", "choice")
_VALUES: list[tuple[str, str]] = [
    ("0", "1"),
    ("1", "2"),
    ("a", "b"),
    ("A", "B"),
    ("model_a", "model_b"),
    ("response_a", "response_b"),
]
_CONTEXT = (("instruction", "input"), ("instruction", "instances.0.input"), ("body", "question"), ("Body", "Question"))


def suggest(rows: list[Row]) -> list[Suggestion]:
    """Mappings that fit *rows* (the first of a file), the likeliest first; empty if nothing is recognized."""
    if not rows:
        return []
    first = rows[0]
    by_name = {name.lower(): name for name in first}

    def path(column: str) -> str | None:
        for alias in _ALIASES[column]:
            if alias in by_name:
                if column == "prompt" and alias != "prompt" and _names_groups(rows, by_name[alias]):
                    continue
                return by_name[alias]
            if "." in alias and find(first, alias) is not MISSING:
                return alias
        return None

    at = {column: path(column) for column in _ALIASES}
    prompt: str | list[str] | None = at["prompt"]
    for pair in _CONTEXT:
        if prompt != "prompt" and all(isinstance(find(first, one), str) for one in pair):
            prompt = list(pair)
    tries: list[tuple[str, dict[str, Any]]] = []

    def propose(name: str, row_type: RowType, columns: dict[str, Any], **more: Any) -> None:
        given = {column: place for column, place in columns.items() if place is not None}
        keys = _message_keys(rows, given.values())
        tries.append((name, {"row_type": row_type, "columns": given, **({"messages": keys} if keys else {}), **more}))

    if at["chosen"] and at["rejected"]:
        sides = {"chosen": at["chosen"], "rejected": at["rejected"]}
        if all(isinstance(find(r, p), str) and is_transcript(find(r, p)) for r in rows[:5] for p in sides.values()):
            propose("HH transcripts", RowType.PREFERENCE, sides, transcripts=True)
        propose(
            "Preference pairs",
            RowType.PREFERENCE,
            {"prompt": prompt, **sides, "margin": at["margin"], "probability": at["probability"]},
        )
    for left, right in _SIDES:
        if left in by_name and right in by_name:
            columns = {"prompt": prompt, "chosen": by_name[left], "rejected": by_name[right]}
            for column in (by_name[word] for word in _WINNERS if word in by_name):
                said = {str(find(row, column)) for row in rows}
                # 0 and 1 come first: beside them a 2 is a tie, while 1 and 2 alone name the sides
                for one, two in _VALUES:
                    if {one, two} <= said:
                        winner = {"column": column, "first": one, "second": two}
                        propose("Pairs with a winner", RowType.PREFERENCE, columns, winner=winner)
                        break
    if prompt and at["completions"] and at["labels"]:
        steps = {"prompt": prompt, "completions": at["completions"], "labels": at["labels"]}
        if any(isinstance(labels := find(row, at["labels"]), list) and -1 in labels for row in rows):
            propose("Steps with ratings", RowType.STEPWISE, steps, ratings=True)
        propose("Steps with labels", RowType.STEPWISE, steps)
    if prompt and at["completion"] and at["scores"]:
        scored = {"prompt": prompt, "completion": at["completion"], "scores": at["scores"]}
        propose("Completions with scores", RowType.SCORED, scored)
    if prompt and at["completion"] and at["label"] and not isinstance(find(first, at["label"]), str | dict | list):
        propose(
            "Prompts and completions with thumbs",
            RowType.UNPAIRED,
            {"prompt": prompt, "completion": at["completion"], "label": at["label"]},
        )
    if at["messages"]:
        propose("Conversations", RowType.LANGUAGE_MODELING, {"messages": at["messages"]})
    if prompt and at["completion"]:
        propose(
            "Prompts and completions", RowType.PROMPT_COMPLETION, {"prompt": prompt, "completion": at["completion"]}
        )
    elif at["text"] and at["completion"]:
        propose(
            "Prompts and completions", RowType.PROMPT_COMPLETION, {"prompt": at["text"], "completion": at["completion"]}
        )
    if at["text"]:
        propose("Plain text", RowType.LANGUAGE_MODELING, {"text": at["text"]})
    if prompt:
        propose("Prompts only", RowType.PROMPT_ONLY, {"prompt": prompt})
    return [
        Suggestion(name, mapping) for name, fields in tries if _fits(mapping := Mapping.model_validate(fields), rows)
    ]


def _names_groups(rows: list[Row], name: str) -> bool:
    """Whether the column says where rows come from or of what kind they are: few short values, each many times."""
    values = [row.get(name) for row in rows]
    texts = {value for value in values if isinstance(value, str)}
    few = 0 < len(texts) <= _MOST_NAMES and len(texts) * 5 <= len(rows)
    return few and all(value is None or (isinstance(value, str) and len(value) <= _LONGEST_NAME) for value in values)


def _message_keys(rows: list[Row], paths: Iterable[str | list[str]]) -> dict[str, str] | None:
    for place in paths:
        value = find(rows[0], place) if isinstance(place, str) else None
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for role, content in (("role", "content"), ("from", "value"), ("speaker", "text"), ("role", "text")):
                if role in value[0] and content in value[0]:
                    return {"role": role, "content": content}
    return None


def _fits(mapping: Mapping, rows: list[Row]) -> bool:
    """Whether most of the first rows can be read so."""
    mapper, fitting = Mapper(mapping, cells_hold_json=True), 0
    for row in rows:
        try:
            mapper(row)
            fitting += 1
        except BadRow:
            pass
    return fitting * 2 > len(rows)
