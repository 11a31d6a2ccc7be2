"""What is scored, and what every component has in common."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.report import SpecCannotWork

Row = Mapping[str, Any]

Score = float | None
"""What a component says of a completion; ``None``: it could not answer."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A completion that the policy wrote, with what it was asked."""

    prompt: str | Sequence[Mapping[str, str]]
    """As the dataset has it: text, or messages."""
    completion: str
    """As people read it, without the tokens that end it."""
    prompt_ids: Sequence[int] = ()
    """As the policy read it, without padding."""
    completion_ids: Sequence[int] = ()
    """As it was sampled: the end token is there if it was written, no padding."""
    ended: bool = True
    """Whether it ended by itself; else it was cut at the limit."""
    group: int = 0
    """The same for completions of one prompt in one rollout, and only for them."""
    row: Row = field(default_factory=dict)
    """The dataset's row, with the columns that verifiers compare with."""


class Scorer:
    """One component at work. Scores are pure: the same rollouts, the same scores."""

    at_once: int = 1024
    """Rollouts between two looks at whether somebody asked the recipe to stop."""

    def check(self, rows: Sequence[Row], field: str) -> None:
        """Raise :class:`SpecCannotWork` if *rows* can never be scored; *field* is the component's place in the spec."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score for each rollout."""
        raise NotImplementedError

    def extras(self) -> dict[str, list[Score]]:
        """Further figures of the rollouts scored last."""
        return {}

    def notes(self) -> list[str]:
        """Sentences for the run's log, before its first step."""
        return []

    def warnings(self) -> list[str]:
        """Sentences for the run's log that have become true since they were last asked for."""
        return []

    def close(self) -> None:
        """End what was started."""


def value(row: Row, column: str) -> Any:
    """The column's value, ``None`` if there is none; a text with a JSON list or object is read as JSON."""
    content = row.get(column)
    if isinstance(content, str) and content.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(content)
        except ValueError:
            return content
    return content


def refuse(rows: Sequence[Row], problems: Mapping[int, str], *, what: str, remedy: str, field: str) -> None:
    """Raise :class:`SpecCannotWork` that says how many rows have a problem, and which one the first has."""
    if problems:
        first = min(problems)
        raise SpecCannotWork(
            f"{len(problems)} of {len(rows)} rows {what}; row {first + 1}: {problems[first]}",
            remedy=remedy,
            field=field,
        )
