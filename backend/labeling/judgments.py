"""What an annotator can say, and what a labeling session asks: the vocabulary, plain pydantic.

On the wire an answer is given *as shown* (``point`` 1 … 7, left to right); the record holds it *as meant* (``strength``
−3 … 3, negative toward the item's first completion, positive toward its second), translated with the stored sides.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.datasets.rows import Text

TIE_POINT = 4
"""The point of the scale that stands under the line between the two completions."""


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LabelingState(StrEnum):
    """Whether a labeling session hands out assignments."""

    OPEN = "open"
    PAUSED = "paused"
    CLOSED = "closed"


class TieKind(StrEnum):
    """A tie says nothing about quality, so it is asked."""

    BOTH_GOOD = "both_good"
    BOTH_BAD = "both_bad"


class SkipReason(StrEnum):
    """Why somebody passes an item on. Never a label; the item goes to others."""

    CANNOT_VERIFY = "cannot_verify"
    OUTSIDE_EXPERTISE = "outside_expertise"
    PROMPT_UNCLEAR = "prompt_unclear"
    LANGUAGE = "language"
    BOTH_BROKEN = "both_broken"
    SENSITIVE = "sensitive"
    DUPLICATE = "duplicate"
    TECHNICAL = "technical"


SKIP_WORDS: dict[SkipReason, str] = {
    SkipReason.CANNOT_VERIFY: "I cannot check the facts",
    SkipReason.OUTSIDE_EXPERTISE: "outside what I know",
    SkipReason.PROMPT_UNCLEAR: "the prompt is unclear",
    SkipReason.LANGUAGE: "a language I do not read well",
    SkipReason.BOTH_BROKEN: "both completions are broken",
    SkipReason.SENSITIVE: "I would rather not judge this",
    SkipReason.DUPLICATE: "I have seen this one before",
    SkipReason.TECHNICAL: "it does not display properly",
}


class Flag(StrEnum):
    """Something the engineers should look at, whatever the preference."""

    HARMFUL = "harmful"
    PERSONAL_DATA = "personal_data"
    IDENTITY_LEAK = "identity_leak"
    """A completion names the model that wrote it."""
    BAD_ITEM = "bad_item"


FLAG_WORDS: dict[Flag, str] = {
    Flag.HARMFUL: "harmful",
    Flag.PERSONAL_DATA: "personal data",
    Flag.IDENTITY_LEAK: "names its model",
    Flag.BAD_ITEM: "broken item",
}


class ComparisonForm(_Closed):
    """Two completions side by side on a seven-point scale."""

    kind: Literal["comparison"] = "comparison"
    reason: Literal["optional", "required"] = "optional"
    """Whether a sentence of explanation must come with each judgment."""
    reservation_minutes: float = Field(15, gt=0, le=120)
    """How long an assignment stays yours without a sign of life; others get it afterwards."""
    undo_minutes: float = Field(10, ge=0, le=60)
    """How long a judgment can be taken back, unless it is frozen into a dataset version."""


class ItemDraft(_Closed):
    """One question to annotators: a prompt and the completions to compare."""

    prompt: Text
    """Plain text, or the conversation so far."""
    completions: Annotated[list[Text], Field(min_length=2, max_length=2)]
    """The two completions, in any order: the server draws the sides for each annotator."""
    models: list[str | None] | None = None
    """Which model wrote each completion. Stored for analysis, never shown to annotators."""
    priority: int = Field(0, ge=-1000, le=1000)
    """Higher comes first."""

    @model_validator(mode="after")
    def _models_match(self) -> "ItemDraft":
        if self.models is not None and len(self.models) != len(self.completions):
            raise ValueError("give one model per completion, or none at all")
        return self


class _Submission(_Closed):
    idempotency_key: UUID
    """The key that came with the assignment: sending it twice is sending it once."""
    reason: str = Field("", max_length=4000)
    """Why, in the annotator's words."""
    flags: list[Flag] = Field(default_factory=list, max_length=4)
    """What the engineers should look at."""
    active_ms: int | None = Field(None, ge=0, le=86_400_000)
    """Milliseconds the page had focus."""
    first_input_ms: int | None = Field(None, ge=0, le=86_400_000)
    """Milliseconds from showing the assignment to the first answer."""


class ComparisonSubmission(_Submission):
    """An answer on the seven-point scale, as shown."""

    kind: Literal["comparison"] = "comparison"
    point: int = Field(ge=1, le=7)
    """1: the left is much better … 4: tie … 7: the right is much better. There is no default: unset is not a tie."""
    tie_kind: TieKind | None = None
    """Asked with point 4 and only then."""

    @model_validator(mode="after")
    def _tie_is_explained(self) -> "ComparisonSubmission":
        if (self.point == TIE_POINT) != (self.tie_kind is not None):
            raise ValueError("a tie says whether both are good or both are bad; nothing else does")
        return self

    @property
    def shown_strength(self) -> int:
        """−3 … 3: negative toward the left, positive toward the right."""
        return self.point - TIE_POINT


class SkipSubmission(_Submission):
    """No answer, with a reason."""

    kind: Literal["skip"]
    skip_reason: SkipReason
    """Why the item goes to somebody else."""


Submission = Annotated[ComparisonSubmission | SkipSubmission, Field(discriminator="kind")]


def strength_of(point: int, shown_order: list[int]) -> int:
    """Translate what was clicked into what was meant: −3 … 3, positive toward the item's second completion."""
    shown = point - TIE_POINT
    return shown if shown_order[0] == 0 else -shown


class AnnotatorCompletion(_Closed):
    """One completion as an annotator sees it: no model, no position in the record."""

    uuid: UUID
    content: Text


class GuidelinesView(_Closed):
    """The guidelines an annotator works by."""

    version: int
    text: str
    acknowledged: bool
    """False: read them (again) before the next assignment."""


class OwnProgress(_Closed):
    """How far I am; nobody else's work is in it."""

    done: int
    """Items I have judged."""
    items: int
    """Items of the session; each can be mine once."""
    undo_possible: bool
    """Whether my last judgment can be taken back now."""


class AssignmentView(_Closed):
    """One assignment, blind: everything that an annotator may know about an item."""

    uuid: UUID
    idempotency_key: UUID
    """Send it back with the judgment."""
    prompt: Text
    completions: list[AnnotatorCompletion]
    """In the order drawn for this annotator: left first."""
    reserved_seconds: float
    """The assignment is yours for at least this long; heartbeats extend it."""


class Desk(_Closed):
    """What lies before an annotator: the next assignment, or why there is none."""

    labeling_session_id: int
    name: str
    state: LabelingState
    form: ComparisonForm
    guidelines: GuidelinesView
    progress: OwnProgress
    assignment: AssignmentView | None
    """``None`` when nothing is left for me, the session is not open, or the guidelines wait to be acknowledged."""


class Receipt(_Closed):
    """What a submit answers: what was recorded, and the next assignment so that nobody waits."""

    judgment: UUID
    kind: Literal["comparison", "skip"]
    repeated: bool
    """True when this very request had been recorded before; nothing changed."""
    desk: Desk


class OwnJudgment(_Closed):
    """One line of my history, as I saw it."""

    uuid: UUID
    kind: Literal["comparison", "skip"]
    prompt: Text
    point: int | None
    tie_kind: TieKind | None
    skip_reason: SkipReason | None
    reason: str
    undone: bool
    submitted_at: str


class FreezePolicy(_Closed):
    """How judgments become preferences. The policy is data: it is stored with the version it made."""

    rule: Literal["majority", "unanimous"] = "majority"
    """majority: more than half of an item's judgments say the same direction. unanimous: all of them do."""
    ties: Literal["drop", "keep"] = "drop"
    """keep: an item whose judges say *tie* gives two rows, one each way, with margin 0; their losses are together
    smallest when the two completions score the same, which is what a tie means (and both stay in one split)."""
    minimum_judgments: int | None = Field(None, ge=1, le=20)
    """Items with fewer judgments wait; ``None``: the overlap of the labeling session."""


class FreezeCounts(_Closed):
    """What the policy does to the items; the parts add up to ``items``."""

    items: int
    kept: int
    """Items that become one preference row."""
    ties: int
    """Items judged a tie: dropped, or two rows each."""
    ties_both_good: int
    ties_both_bad: int
    no_majority: int
    """The judges disagree: dropped."""
    too_few: int
    """Judged, but by fewer than the policy asks for."""
    unjudged: int
    rows: int
    """Rows of the dataset version: kept, plus two per tie when ties are kept."""


def excerpt(text: Any) -> str:
    """What a prompt asks, for lists: plain text, or the last turn of a conversation."""
    if isinstance(text, str):
        return text
    return plain(text[-1:])


def plain(text: Any) -> str:
    """The words of a plain or conversational text, for lengths and excerpts."""
    if isinstance(text, str):
        return text
    return "\n\n".join(turn["content"] if isinstance(turn, dict) else turn.content for turn in text)
