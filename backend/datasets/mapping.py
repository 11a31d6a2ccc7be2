"""From the columns of a file to TRL's: what to take, what to call it, and how conversations are written there."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.datasets.rowfile import BadRow
from backend.datasets.rows import COLUMNS, TEXTS, Row, RowType

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Names of roles as they are found in files → TRL's."""

SPEAKER = {"text": "user", "prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
"""Who says the plain text of a column when it becomes a conversation."""

NEEDED: dict[RowType, tuple[str, ...]] = {
    RowType.LANGUAGE_MODELING: (),
    RowType.PROMPT_COMPLETION: ("prompt", "completion"),
    RowType.PREFERENCE: ("chosen", "rejected"),
    RowType.UNPAIRED: ("prompt", "completion", "label"),
    RowType.PROMPT_ONLY: ("prompt",),
    RowType.STEPWISE: ("prompt", "completions", "labels"),
    RowType.SCORED: ("prompt", "completion", "scores"),
}


class Strict(BaseModel):
    """Frozen, and a misspelled key is an error with its path."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MessageKeys(Strict):
    """How a message of a conversation is written in the file."""

    role: str = "role"
    """Key that says who speaks."""
    content: str = "content"
    """Key that holds what is said."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(default_factory=dict, max_length=50)
    """Further names of roles; human, gpt, bot and the like are known."""


class Winner(Strict):
    """Pairs whose better side is told by a third column."""

    column: str
    """Column that names the better one."""
    first: str | int
    """Its value when the completion mapped to ``chosen`` is better."""
    second: str | int
    """Its value when the one mapped to ``rejected`` is better; they are swapped then. Rows with any other value are ties."""
    ties: Literal["leave_out", "half"] = "leave_out"
    """Leave ties out, or keep them with a probability of 0.5, which a loss that reads probabilities learns from."""


class Mapping(Strict):
    """How rows of a file become rows of a dataset version."""

    row_type: RowType
    """What the rows shall be."""
    columns: dict[str, str | list[str]] = Field(max_length=8)
    """TRL's column → column of the file. Dots reach inside (``input.messages``, ``instances.0.output``); several are joined by an empty line; for ``scores`` each is an attribute of its name. ``labels`` may be one boolean per step, or the index of the first wrong step (null: none)."""
    transcripts: bool = False
    """The texts are transcripts: ``\\n\\nHuman: … \\n\\nAssistant: …`` (HH-RLHF)."""
    messages: MessageKeys = Field(default_factory=MessageKeys)
    """How messages of conversations are written."""
    as_conversation: bool = False
    """Make plain texts into conversations: the prompt is said by the user, the completion by the assistant."""
    winner: Winner | None = None
    """For pairs whose better side is told by a third column."""
    ratings: bool = False
    """The labels of steps are ratings: −1 wrong, 0 neutral, 1 right (PRM800K); only −1 counts as wrong. Off, 0 is wrong."""
    keep: Literal["all", "none"] = "all"
    """Whether the other columns travel along under their own names."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """Refuse the file at the first row that does not fit, or leave such rows out and count them. A broken file is always refused."""

    @model_validator(mode="after")
    def _complete(self) -> "Mapping":
        allowed = COLUMNS[self.row_type]
        for column in self.columns:
            if column not in allowed:
                raise ValueError(f"{self.row_type} has no column {column}; it has {', '.join(allowed)}")
        missing = [column for column in NEEDED[self.row_type] if column not in self.columns]
        if missing:
            raise ValueError(f"{self.row_type} also needs {' and '.join(missing)}")
        if self.row_type is RowType.LANGUAGE_MODELING and len(self.columns) != 1:
            raise ValueError("language_modeling needs text or messages, not both")
        if self.winner and self.row_type is not RowType.PREFERENCE:
            raise ValueError("a winner is told only for preference rows")
        return self


MISSING = object()


def find(row: Row, path: str) -> Any:
    """The value at *path*, or ``MISSING``: the very key first, else inside, part by part."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def split_transcript(text: str) -> list[dict[str, str]]:
    r"""``\n\nHuman: a\n\nAssistant: b`` → two messages. Raises :class:`BadRow` if nobody speaks first."""
    parts = _TURN.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise BadRow("The text is no transcript: it does not begin with “Human:” or “Assistant:”.")
    speaks = {"Human": "user", "Assistant": "assistant"}
    return [{"role": speaks[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]


def split_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """``(prompt, chosen, rejected)`` of two whole texts or conversations.

    Conversations: the turns that both share, up to the last one that is not the assistant's; what follows, one turn or
    several, is the completion. Texts: the characters that both share, up to the last space (as TRL splits them).
    """
    n, most = 0, min(len(chosen), len(rejected)) - 1
    while n < most and chosen[n] == rejected[n]:
        n += 1
    if isinstance(chosen, str):
        if n < len(chosen) and n < len(rejected) and chosen[n] == rejected[n]:
            n += 1  # one text begins with the other
        while n > 0 and not chosen[n - 1].isspace():
            n -= 1
        if n > 0:
            n -= 1  # the space belongs to the completion
    else:
        while n > 0 and chosen[n - 1]["role"] == "assistant":
            n -= 1
    if n <= 0 or not (chosen[:n] if not isinstance(chosen, str) else chosen[:n].strip()):
        raise BadRow(
            "Chosen and rejected begin differently, so there is no prompt that both answer.",
            field="prompt",
            remedy="Map a prompt column, or leave such rows out.",
        )
    return chosen[:n], chosen[n:], rejected[n:]


def _messages(value: list[Any], column: str, keys: MessageKeys) -> list[dict[str, str]]:
    found = []
    if not value:
        raise BadRow("The conversation has no message.", field=column)
    for n, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise BadRow(f"Message {n} is not an object with {keys.role} and {keys.content}.", field=column)
        role, content = message.get(keys.role), message.get(keys.content)
        if not isinstance(role, str) or not isinstance(content, str):
            what = keys.role if not isinstance(role, str) else keys.content
            raise BadRow(
                f"Message {n} has no text under “{what}”.",
                field=column,
                remedy="Say under which keys role and content stand.",
            )
        known = keys.roles.get(role) or ROLES.get(role) or ROLES.get(role.lower())
        if known is None:
            raise BadRow(f"Message {n} is said by “{role[:40]}”, which is no known role.", field=column)
        if len(message) > 2:
            for key in ("tool_calls", "function_call"):
                if message.get(key):
                    raise BadRow(f"Message {n} has {key}, which rows cannot hold yet.", field=column)
        found.append({"role": known, "content": content})
    return found


def _label(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    if word in ("true", "1", "1.0", "yes", "good", "up", "👍"):
        return True
    if word in ("false", "0", "0.0", "-1", "no", "bad", "down", "👎"):
        return False
    raise BadRow(f"The label {str(value)[:40]!r} is neither true nor false.", field="label")


def _margin(value: Any) -> float:
    try:
        margin = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        margin = math.nan
    if not math.isfinite(margin):
        raise BadRow(f"The margin {str(value)[:40]!r} is no finite number.", field="margin")
    return margin


def _probability(value: Any) -> float:
    try:
        probability = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        probability = math.nan
    if not 0 <= probability <= 1:
        raise BadRow(f"The probability {str(value)[:40]!r} is no number from 0 to 1.", field="probability")
    return probability


def _steps(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise BadRow("The solution is no list of steps.", field="completions")
    for n, step in enumerate(value, 1):
        if not isinstance(step, str) or not step.strip():
            raise BadRow(f"Step {n} is no text.", field="completions")
    return value


def _step_labels(value: Any, steps: int, *, ratings: bool) -> list[bool]:
    """One boolean per step, from booleans (or *ratings*, of which only −1 is wrong) or the index of the first wrong one."""
    if value is None:
        return [True] * steps
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < steps:
            raise BadRow(
                f"Step {value} is said to be wrong first, and there are {steps}, counted from 0.", field="labels"
            )
        return [n < value for n in range(steps)]
    if not isinstance(value, list) or len(value) != steps:
        said = f"{len(value)} labels" if isinstance(value, list) else "no list of labels"
        raise BadRow(f"There are {said} for {steps} steps.", field="labels")
    if ratings:
        return [_rating(one) >= 0 for one in value]
    if any(type(one) is int and one == -1 for one in value):
        # whether 0 is wrong or neutral is not a question of one row: the others have no −1 that would tell
        raise BadRow("A label is −1, so these are ratings.", field="labels", remedy="Say so: then 0 is neutral.")
    return [_label(one) for one in value]


def _rating(value: Any) -> int:
    if type(value) is not int or value not in (-1, 0, 1):
        raise BadRow(f"The rating {str(value)[:40]!r} is none of −1, 0 and 1.", field="labels")
    return value


def _scores(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not value:
        raise BadRow("The scores are no object of attributes and numbers.", field="scores")
    scores = {}
    for name, score in value.items():
        if score is None:
            continue
        try:
            number = float(score) if not isinstance(score, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise BadRow(f"The score of “{str(name)[:40]}” is no finite number: {str(score)[:40]!r}.", field="scores")
        scores[name] = number
    if not scores:
        raise BadRow("No attribute has a score.", field="scores")
    return scores


def _json(text: str, column: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadRow(f"The cell holds no JSON: {text[:40]!r}.", field=column) from None


class Mapper:
    """Applies a :class:`Mapping` to one row after the other, and counts what it left out."""

    def __init__(self, mapping: Mapping, *, cells_hold_json: bool = False) -> None:
        self._mapping = mapping
        self._keep = mapping.keep == "all"
        self._cells_hold_json = cells_hold_json
        self._used = set[str]()
        for paths in mapping.columns.values():
            for path in [paths] if isinstance(paths, str) else paths:
                self._used |= {path, path.partition(".")[0]}
        if mapping.winner:
            self._used.add(mapping.winner.column)
        self.left_out = Counter[str]()
        """Why rows were left out → how many."""

    def __call__(self, raw: Row) -> Row | None:
        """The row in TRL's columns; ``None`` if it is left out. Raises :class:`BadRow`."""
        try:
            row = self._map(raw)
        except BadRow as error:
            if self._mapping.bad_rows == "refuse":
                raise
            self.left_out[error.detail] += 1
            return None
        if row is None:
            self.left_out["neither side won"] += 1
        return row

    def _map(self, raw: Row) -> Row | None:
        mapping = self._mapping
        row: Row = {}
        for column, path in mapping.columns.items():
            value = self._take(raw, column, path)
            if value is not MISSING:
                row[column] = value
        if mapping.winner and not self._put_winner_first(row, raw):
            return None
        self._agree(row)
        if mapping.row_type is RowType.LANGUAGE_MODELING:
            [(column, value)] = row.items()
            row = {"text" if isinstance(value, str) else "messages": value}
        if mapping.row_type is RowType.PREFERENCE:
            prompt = row.get("prompt")
            whole = isinstance(row["chosen"], list) and row["chosen"][0]["role"] != "assistant"
            if prompt is None or whole:
                row["prompt"], row["chosen"], row["rejected"] = split_prompt(row["chosen"], row["rejected"])
            row = {"prompt": row.pop("prompt"), **row}
        if mapping.row_type is RowType.STEPWISE:
            row["labels"] = _step_labels(row["labels"], len(row["completions"]), ratings=mapping.ratings)
        for column in ("completion", "chosen", "rejected"):
            if isinstance(row.get(column), list) and not any(m["role"] == "assistant" for m in row[column]):
                raise BadRow("The assistant says nothing in it.", field=column)
        if self._keep:
            for name, value in raw.items():
                if value is not None and name not in self._used:
                    row[name if name not in row else f"{name}_original"] = value
        return row

    def _take(self, raw: Row, column: str, path: str | list[str]) -> Any:
        if column == "scores" and isinstance(path, list):
            return _scores({one: None if (score := find(raw, one)) is MISSING else score for one in path})
        if isinstance(path, list):
            parts = [find(raw, one) for one in path]
            for one, part in zip(path, parts, strict=True):
                if part is MISSING or not isinstance(part, str | None):
                    raise BadRow(f"There is no text under “{one}”.", field=column)
            value: Any = "\n\n".join(part for part in parts if part)
        else:
            value = find(raw, path)
        if value is MISSING or value is None:
            if column == "labels" and value is None:
                return None  # the index of the first wrong step of a solution without one
            if column in ("margin", "probability") or (
                column == "prompt" and self._mapping.row_type is RowType.PREFERENCE
            ):
                return MISSING
            raise BadRow(f"There is nothing under “{path}”.", field=column)
        if column == "label":
            return _label(value)
        if column == "margin":
            return MISSING if value == "" else _margin(value)
        if column == "probability":
            return MISSING if value == "" else _probability(value)
        if column in ("completions", "labels", "scores"):
            if self._cells_hold_json and isinstance(value, str):
                value = _json(value, column)
            return _steps(value) if column == "completions" else _scores(value) if column == "scores" else value
        if isinstance(value, str):
            if self._mapping.transcripts:
                return split_transcript(value)
            if self._cells_hold_json and value.startswith('[{"'):
                try:
                    return _messages(orjson.loads(value), column, self._mapping.messages)
                except (orjson.JSONDecodeError, BadRow):
                    return value
            return value
        if isinstance(value, list):
            return _messages(value, column, self._mapping.messages)
        if isinstance(value, dict) and self._mapping.messages.content in value:
            return _messages([value], column, self._mapping.messages)
        raise BadRow(f"Under “{path}” stands neither text nor a conversation.", field=column)

    def _put_winner_first(self, row: Row, raw: Row) -> bool:
        winner = self._mapping.winner
        assert winner is not None
        said = find(raw, winner.column)
        if said is MISSING:
            raise BadRow(f"There is nothing under “{winner.column}”.", field="winner")
        if str(said) == str(winner.second):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            if "probability" in row:  # that what was mapped to chosen is better
                row["probability"] = 1 - row["probability"]
            return True
        if str(said) == str(winner.first):
            return True
        row["probability"] = 0.5
        return winner.ties == "half"

    def _agree(self, row: Row) -> None:
        """Text beside a conversation becomes one: a row is plain or conversational as a whole."""
        if self._mapping.as_conversation or any(type(row[column]) is list for column in TEXTS & row.keys()):
            for column, value in row.items():
                if isinstance(value, str) and column in SPEAKER:
                    row[column] = [{"role": SPEAKER[column], "content": value}]


def identity(row_type: RowType) -> Callable[[Row], Row]:
    """The check of rows that have TRL's columns already."""
    mappers: dict[tuple[str, ...], Mapper] = {}

    def check(raw: Row) -> Row:
        present = tuple(c for c in COLUMNS[row_type] if raw.get(c) is not None)
        mapper = mappers.get(present)
        if mapper is None:
            needed = NEEDED[row_type] or (present or ("text",))[:1]
            mapper = mappers[present] = Mapper(
                Mapping(row_type=row_type, columns={c: c for c in dict.fromkeys((*present, *needed))})
            )
        row = mapper(raw)
        assert row is not None  # nothing is left out where bad rows are refused and no winner is asked for
        return row

    return check


# --- what a file probably is -------------------------------------------------------------------------------------


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
    "chosen": ("chosen", "preferred_output", "preferred", "chosen_response", "response_chosen", "best answer"),
    "rejected": (
        "rejected",
        "non_preferred_output",
        "dispreferred",
        "rejected_response",
        "response_rejected",
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
        if all(isinstance(find(r, p), str) and _TURN.match(find(r, p)) for r in rows[:5] for p in sides.values()):
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
