"""What a recipe says while it works: one JSON line per event in ``events.jsonl``; the line's number is its sequence number.

Numbers that are not finite travel as ``"nan"``, ``"inf"`` or ``"-inf"``: JSON has no word for them, and they are what
people look for. Pydantic only: the worker imports this without the database.
"""

import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

NonFinite = Literal["nan", "inf", "-inf"]
Number = float | NonFinite


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it was said, by the worker's clock (for reading only; nothing is decided by it)."""


class Started(_Event):
    """The first step is about to be taken."""

    kind: Literal["started"] = "started"
    total_steps: int
    """Steps the run will have taken when it ends."""
    first_step: int = 0
    """The step after which this attempt goes on (0, or a checkpoint's)."""
    train_rows: int
    """Rows learned from."""
    held_out_rows: int
    """Rows only evaluated on."""
    held_out_ties: int | None = None
    """Those of them of which neither side is better (probability 1/2): no share of pairs asks them. ``None``: not said."""
    trainable_parameters: int
    """Parameters that get a gradient."""
    total_parameters: int
    """All parameters."""
    device: str
    """``cpu``, or the accelerator's name."""
    packages: dict[str, str] = Field(default_factory=dict)
    """Versions that matter for repeating the run."""


class Metrics(_Event):
    """Values logged at one step, under TRL's names."""

    kind: Literal["metrics"] = "metrics"
    step: int
    """Optimizer steps taken so far."""
    values: dict[str, Number]
    """Name → value."""


class Completion(BaseModel):
    """One text the model wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: str
    """The prompt as text."""
    completion: str
    """What the model wrote, without special tokens."""
    tokens: int
    """Its length in tokens, the end-of-turn token included if it was written."""
    ended: bool
    """Whether it ended by itself (else it was cut)."""
    rewards: dict[str, float | None] = Field(default_factory=dict)
    """Score by component; ``None`` is *could not be scored*."""


class Completions(_Event):
    """Held-out prompts completed at one step."""

    kind: Literal["completions"] = "completions"
    step: int
    """Optimizer steps taken so far."""
    samples: list[Completion]
    """The same prompts at every step, in the same order."""


class Checkpoint(_Event):
    """A complete, verified state was saved."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    """The step it was taken after."""
    folder: str
    """Folder relative to the attempt's; ``manifest.json`` inside names size and sha256 of every file."""


class Note(_Event):
    """A sentence for the run's log."""

    kind: Literal["note"] = "note"
    level: Literal["info", "warning", "error"] = "info"
    """How much it matters."""
    text: str
    """What happened."""


class Finished(_Event):
    """The recipe ended by itself."""

    kind: Literal["finished"] = "finished"
    outcome: Literal["completed", "stopped"]
    """All steps taken, or stopped on request after saving."""
    step: int
    """Steps taken."""
    model: str | None = None
    """Folder of the finished model relative to the attempt's, if all steps were taken."""


class Failed(_Event):
    """The recipe cannot go on; repeating it would fail again."""

    kind: Literal["failed"] = "failed"
    reason: str
    """What happened, in one sentence."""
    remedy: str | None = None
    """What to do about it."""
    trace: str = ""
    """The traceback, for the log."""


Event = Annotated[Started | Metrics | Completions | Checkpoint | Note | Finished | Failed, Field(discriminator="kind")]
EVENT: TypeAdapter[Any] = TypeAdapter(Event)


def encode(value: float) -> Number:
    """A number as an event carries it."""
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
