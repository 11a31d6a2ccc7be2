"""Reading one value of a file: what a cell must hold to be a text, a conversation, a label, a number, a list of steps.

Each function raises :class:`BadRow` with a sentence that says what is wrong with the value.
"""

import math
import re
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from backend.datasets.rowfile import BadRow

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


class MessageKeys(BaseModel):
    """How a message of a conversation is written in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    role: str = "role"
    """Key that says who speaks."""
    content: str = "content"
    """Key that holds what is said."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(default_factory=dict, max_length=50)
    """Further names of roles; human, gpt, bot and the like are known."""


# --- conversations


_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Whether *text* begins with somebody who speaks."""
    return _TURN.match(text) is not None


def split_transcript(text: str) -> list[dict[str, str]]:
    r"""``\n\nHuman: a\n\nAssistant: b`` → two messages. Raises :class:`BadRow` if nobody speaks first."""
    parts = _TURN.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise BadRow("The text is no transcript: it does not begin with “Human:” or “Assistant:”.")
    speaks = {"Human": "user", "Assistant": "assistant"}
    return [{"role": speaks[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]


def messages(value: list[Any], column: str, keys: MessageKeys) -> list[dict[str, str]]:
    """The turns of a conversation, under TRL's names."""
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


# --- judgments and steps


def label(value: Any) -> bool:
    """Thumbs: a boolean, or a word or number that means one."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    if word in ("true", "1", "1.0", "yes", "good", "up", "👍"):
        return True
    if word in ("false", "0", "0.0", "-1", "no", "bad", "down", "👎"):
        return False
    raise BadRow(f"The label {str(value)[:40]!r} is neither true nor false.", field="label")


def margin(value: Any) -> float:
    """By how much chosen is better: any finite number."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"The margin {str(value)[:40]!r} is no finite number.", field="margin")
    return number


def probability(value: Any) -> float:
    """That chosen is the better one: a number from 0 to 1."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 1:
        raise BadRow(f"The probability {str(value)[:40]!r} is no number from 0 to 1.", field="probability")
    return number


def steps(value: Any) -> list[str]:
    """The steps of one solution: texts, none of them empty."""
    if not isinstance(value, list) or not value:
        raise BadRow("The solution is no list of steps.", field="completions")
    for n, step in enumerate(value, 1):
        if not isinstance(step, str) or not step.strip():
            raise BadRow(f"Step {n} is no text.", field="completions")
    return value


def step_labels(value: Any, steps: int, *, ratings: bool) -> list[bool]:
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
    return [label(one) for one in value]


def _rating(value: Any) -> int:
    if type(value) is not int or value not in (-1, 0, 1):
        raise BadRow(f"The rating {str(value)[:40]!r} is none of −1, 0 and 1.", field="labels")
    return value


def scores(value: Any) -> dict[str, float]:
    """A number for each attribute; attributes without one are left out."""
    if not isinstance(value, dict) or not value:
        raise BadRow("The scores are no object of attributes and numbers.", field="scores")
    found = {}
    for name, score in value.items():
        if score is None:
            continue
        try:
            number = float(score) if not isinstance(score, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise BadRow(f"The score of “{str(name)[:40]}” is no finite number: {str(score)[:40]!r}.", field="scores")
        found[name] = number
    if not found:
        raise BadRow("No attribute has a score.", field="scores")
    return found


def parsed(text: str, column: str) -> Any:
    """What the JSON in a cell of a CSV file says."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadRow(f"The cell holds no JSON: {text[:40]!r}.", field=column) from None
