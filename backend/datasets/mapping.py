"""From the columns of a file to TRL's: what to take, what to call it, and how a row is put together from it."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.datasets import cells
from backend.datasets.cells import MessageKeys
from backend.datasets.rowfile import BadRow
from backend.datasets.rows import COLUMNS, TEXTS, Row, RowType

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
            row["labels"] = cells.step_labels(row["labels"], len(row["completions"]), ratings=mapping.ratings)
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
            return cells.scores({one: None if (score := find(raw, one)) is MISSING else score for one in path})
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
            return cells.label(value)
        if column == "margin":
            return MISSING if value == "" else cells.margin(value)
        if column == "probability":
            return MISSING if value == "" else cells.probability(value)
        if column in ("completions", "labels", "scores"):
            if self._cells_hold_json and isinstance(value, str):
                value = cells.parsed(value, column)
            return (
                cells.steps(value) if column == "completions" else cells.scores(value) if column == "scores" else value
            )
        if isinstance(value, str):
            if self._mapping.transcripts:
                return cells.split_transcript(value)
            if self._cells_hold_json and value.startswith('[{"'):
                try:
                    return cells.messages(orjson.loads(value), column, self._mapping.messages)
                except (orjson.JSONDecodeError, BadRow):
                    return value
            return value
        if isinstance(value, list):
            return cells.messages(value, column, self._mapping.messages)
        if isinstance(value, dict) and self._mapping.messages.content in value:
            return cells.messages([value], column, self._mapping.messages)
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
