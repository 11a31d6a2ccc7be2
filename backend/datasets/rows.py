"""The seven row types of a dataset version: TRL's columns, exactly, plain or conversational.

Pydantic only: the worker imports this without the database.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class RowType(StrEnum):
    """What a row is made of, and so which methods can use it."""

    LANGUAGE_MODELING = "language_modeling"
    """``text``, or ``messages`` when conversational."""
    PROMPT_COMPLETION = "prompt_completion"
    """``prompt`` and ``completion``: demonstrations."""
    PREFERENCE = "preference"
    """``prompt``, ``chosen`` and ``rejected``; optionally ``margin``, and ``probability`` that chosen is the better one."""
    UNPAIRED = "unpaired"
    """``prompt``, ``completion`` and a boolean ``label``: thumbs."""
    PROMPT_ONLY = "prompt_only"
    """``prompt``: something to complete."""
    STEPWISE = "stepwise"
    """``prompt``, ``completions`` (the steps of one solution) and ``labels`` (a boolean for each step)."""
    SCORED = "scored"
    """``prompt``, ``completion`` and ``scores``: a number for each attribute."""


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""
    content: str
    """What is said."""


Text = str | Annotated[list[Message], Field(min_length=1)]
"""Plain text, or a conversation."""

COLUMNS: dict[RowType, tuple[str, ...]] = {
    RowType.LANGUAGE_MODELING: ("text", "messages"),
    RowType.PROMPT_COMPLETION: ("prompt", "completion"),
    RowType.PREFERENCE: ("prompt", "chosen", "rejected", "margin", "probability"),
    RowType.UNPAIRED: ("prompt", "completion", "label"),
    RowType.PROMPT_ONLY: ("prompt",),
    RowType.STEPWISE: ("prompt", "completions", "labels"),
    RowType.SCORED: ("prompt", "completion", "scores"),
}
"""TRL's columns of each type; any other column of a row travels along under its own name."""

TEXTS = frozenset({"text", "messages", "prompt", "completion", "chosen", "rejected"})
"""Columns that hold a text or a conversation."""

Row = dict[str, Any]
