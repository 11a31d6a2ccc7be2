"""Whether a completion has the form that was asked for: tags, JSON, a regular expression."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import regex
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from referencing import Registry

from backend.runs.specs.rewards import JSONFormat, PatternFormat, TagFormat
from worker.rewards.rollouts import Rollout, Score, Scorer

_SECONDS = 0.5
"""Longest time a regular expression may take on one completion; a backtracking one could take years."""

_FENCE = re.compile(r"```[\w-]*[ \t]*\n")


# --- tags --------------------------------------------------------------------------------------------------------


def tagged(text: str, tags: Sequence[str]) -> bool:
    """Whether *text* is ``<a>…</a><b>…</b>`` of *tags*: each once, in order, only spaces between, the last not empty."""
    rest = text.strip()
    for number, tag in enumerate(tags):
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1 or not rest.startswith(opening):
            return False
        inside, _, rest = rest[len(opening) :].partition(closing)
        if any(f"<{other}>" in inside or f"</{other}>" in inside for other in tags):
            return False
        if number == len(tags) - 1 and not inside.strip():
            return False
        rest = rest.lstrip()
    return not rest


class Tags(Scorer):
    """1 if the completion is its tags and nothing else."""

    def __init__(self, spec: TagFormat) -> None:
        self.spec = spec

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Each by itself."""
        return [float(tagged(rollout.completion, self.spec.tags)) for rollout in rollouts]


# --- JSON --------------------------------------------------------------------------------------------------------


def parsed(text: str) -> Any:
    """The JSON in *text*, bare or as its only fenced block. Raises ``ValueError``, also for NaN and for a key twice."""
    text = text.strip()
    opening = _FENCE.match(text)
    if opening and text.endswith("```"):
        text = text[opening.end() : -len("```")]
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_no_twice)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands twice")
    return members


def _timed_pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    """JSON Schema's ``pattern`` with a limit of time: the text is the policy's."""
    if isinstance(instance, str) and not regex.search(pattern, instance, timeout=_SECONDS):
        yield ValidationError("does not match")


_Validator = extend(Draft202012Validator, {"pattern": _timed_pattern})


class JSON(Scorer):
    """1 if the completion is JSON that fits the schema."""

    def __init__(self, spec: JSONFormat) -> None:
        self._validator = _Validator(json.loads(spec.json_schema), registry=Registry())  # an empty one fetches nothing

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Each by itself; a schema whose pattern runs out of time has not answered."""
        return [self._one(rollout.completion) for rollout in rollouts]

    def _one(self, text: str) -> Score:
        try:
            return float(self._validator.is_valid(parsed(text)))
        except (ValueError, RecursionError):
            return 0.0
        except TimeoutError:
            return None


# --- regular expressions -----------------------------------------------------------------------------------------


class Pattern(Scorer):
    """1 if the regular expression matches."""

    def __init__(self, spec: PatternFormat) -> None:
        compiled = regex.compile(spec.pattern)
        self._match = compiled.fullmatch if spec.whole else compiled.search

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Each by itself; one that runs out of time has no answer."""
        return [self._one(rollout.completion) for rollout in rollouts]

    def _one(self, text: str) -> Score:
        try:
            return float(self._match(text, timeout=_SECONDS) is not None)
        except TimeoutError:
            return None
