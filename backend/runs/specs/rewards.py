"""Rewards as one closed union that composes: what scores a completion, how much it weighs, what has to hold first.

A component's score is a number, or nothing if the component could not answer (a verifier that broke, a row without the
column's value); then the whole rollout is unscored, never zero.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import Field, field_validator, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from backend.runs.specs.parts import Strict
from backend.runs.specs.refusals import refusal

# --- ensembles and steps: many scores to one ---------------------------------------------------------------------


class Mean(Strict):
    """The mean of the members' scores."""

    kind: Literal["mean"] = "mean"


class Minimum(Strict):
    """The lowest score: no member may be fooled. Coste et al. 2023, arXiv:2310.02743."""

    kind: Literal["minimum"] = "minimum"


class Cautious(Strict):
    """Mean − λ·standard deviation: where members disagree, the reward is less. Coste et al. 2023, arXiv:2310.02743."""

    kind: Literal["cautious"] = "cautious"
    penalty: float = Field(1, ge=0)
    """λ: how much disagreement costs."""


Agreement = Annotated[Mean | Minimum | Cautious, Field(discriminator="kind")]


# --- where the answer is in a completion -------------------------------------------------------------------------

Answer = Literal["whole", "answer_tag", "boxed", "last_line", "last_number", "after_marker"]
"""The whole completion; inside the last ``<answer>…</answer>``; inside the last ``\\boxed{…}``; the last line that is
not empty; the last number; or what follows the last marker (``####``, *answer*, *answer is* or ``A:``) in its sentence."""


# --- components --------------------------------------------------------------------------------------------------


class Component(Strict):
    """What every component has."""

    name: str = Field("", max_length=40, pattern=r"^[a-z0-9_]*$")
    """Its name in charts and tables; empty: its kind. Two components need two names."""
    weight: float = Field(1, allow_inf_nan=False)
    """What its score is multiplied by in the sum."""
    normalize: Literal["none", "group", "batch"] = "none"
    """Subtract the mean and divide by the standard deviation, over the completions of a prompt or over all; without spread it is 0."""
    only_if: str = ""
    """A gate: where the one of that name scored less than 1, this one's score is 0 (before it is normalized)."""


class RewardModelScore(Component):
    """What a reward model says, or several of them together. Ouyang et al. 2022, arXiv:2203.02155."""

    kind: Literal["reward_model"] = "reward_model"
    models: list[int] = Field(min_length=1, max_length=16)
    """One reward model, or an ensemble of them (the same data, different seeds)."""
    agreement: Agreement = Field(default_factory=Mean)
    """How an ensemble's scores become one."""


class ProcessScore(Component):
    """What a process reward model says of each step, reduced to one number. Lightman et al. 2023, arXiv:2305.20050."""

    kind: Literal["process_reward"] = "process_reward"
    model: int
    """The process reward model; it knows how steps are separated."""
    reduce: Literal["minimum", "product", "last"] = "minimum"
    """The worst step, the probability that all are right, or the last step's score."""


class ExactAnswer(Component):
    """1 if the answer equals the row's, 0 if not; spaces at the ends never matter."""

    kind: Literal["exact"] = "exact"
    column: str = "answer"
    """The rows' column that holds the answer."""
    answer: Answer = "whole"
    """Where the completion's answer is."""
    ignore_case: bool = True
    """Whether capital letters matter."""


class NumericAnswer(Component):
    """1 if the answer is the row's number, 0 if not."""

    kind: Literal["number"] = "number"
    column: str = "answer"
    """The rows' column that holds the number; of a text, its last number."""
    answer: Answer = "last_number"
    """Where the completion's number is."""
    tolerance: float = Field(1e-6, ge=0)
    """Largest relative difference that still counts as equal."""


class MathAnswer(Component):
    """1 if the answer is mathematically the same as the row's (1/2 and 0.5, sets, intervals), 0 if not."""

    kind: Literal["math"] = "math"
    column: str = "answer"
    """The rows' column that holds the answer, plain or in LaTeX."""
    answer: Answer = "whole"
    """Where the completion's answer is; in the whole, the last thing that reads as an answer (best in ``\\boxed{}``)."""


class CodeTests(Component):
    """Share of hidden tests that the completion's program passes, run in the sandbox. Chen et al. 2021, arXiv:2107.03374."""

    kind: Literal["code"] = "code"
    column: str = "tests"
    """The rows' column with the tests: a JSON list of calls with expected results, or Python assertions."""
    setup: str = ""
    """The rows' column with Python that assertions need before they run, such as MBPP's `test_setup_code`; empty: there is none."""
    all_or_nothing: bool = True
    """1 only if every test passes; off, the share of passed tests."""
    seconds: float = Field(4, gt=0, le=60)
    """Longest time a program may run."""


class TagFormat(Component):
    """1 if the completion is `<think>…</think><answer>…</answer>` and nothing else. DeepSeek-AI 2025, arXiv:2501.12948."""

    kind: Literal["tags"] = "tags"
    tags: list[str] = Field(default_factory=lambda: ["think", "answer"], min_length=1, max_length=8)
    """The tags, in their order."""

    @field_validator("tags")
    @classmethod
    def _names(cls, tags: list[str]) -> list[str]:
        for tag in tags:
            if not re.fullmatch(r"[A-Za-z][\w-]{0,39}", tag):
                raise ValueError(f"{tag!r} is no tag; write its name without brackets, such as think")
        if len(set(tags)) != len(tags):
            raise ValueError("a tag stands twice; each may occur once")
        return tags


class JSONFormat(Component):
    """1 if the completion (or its fenced block) is JSON that fits a schema, 0 if not."""

    kind: Literal["json"] = "json"
    json_schema: str = Field("{}", max_length=20_000)
    """JSON Schema (2020-12); ``{}`` accepts any JSON."""

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, text: str) -> str:
        try:
            schema = json.loads(text)
            Draft202012Validator.check_schema(schema)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON: {error}") from error
        except SchemaError as error:
            raise ValueError(f"it is no JSON Schema: at {error.json_path}, {error.message}") from error
        within = Registry[Any]().with_resource("", DRAFT202012.create_resource(schema)).resolver()
        for keyword, value in _keywords(schema):
            match keyword, value:
                case "pattern", str(pattern):
                    _check_pattern(pattern)
                case "patternProperties", _:  # its patterns would run on the policy's keys without a limit of time
                    raise ValueError("patternProperties is not checked here; name the properties, or use propertyNames")
                case (("$ref" | "$dynamicRef"), str(target)):
                    try:
                        within.lookup(target)
                    except Unresolvable as error:
                        raise ValueError(f"{keyword} {target!r} is not in the schema; nothing is fetched") from error
        return text


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a schema with its value, at any depth."""
    waiting = [schema]
    while waiting:
        match waiting.pop():
            case dict() as one:
                yield from one.items()
                waiting += one.values()
            case list() as several:
                waiting += several


_MOST_REPEATS = 100_000
_COUNTED = re.compile(r"\{\s*(\d+)\s*(?:,[\s\d]*)?\}")  # spaces may be there where (?x) is on


def _check_pattern(pattern: str) -> None:
    """Raises ``ValueError`` if *pattern* is no regular expression, or one that is not compiled in reasonable memory."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error.msg} at position {error.pos}") from error
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression that can be compiled: {error}") from error
    # what must repeat is written out when it is compiled, before any limit of time holds
    if math.prod(max(1, int(least)) for least in _COUNTED.findall(pattern)) > _MOST_REPEATS:
        raise ValueError(f"it repeats something more than {_MOST_REPEATS:,} times, which takes too much memory")


class PatternFormat(Component):
    """1 if a regular expression matches the completion, 0 if not."""

    kind: Literal["pattern"] = "pattern"
    pattern: str = Field(min_length=1, max_length=1000)
    """The regular expression (Python's; linear-time matching is not guaranteed, so it has a time limit)."""
    whole: bool = True
    """Match the whole completion; off, anywhere in it."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        _check_pattern(pattern)
        return pattern


IFEVAL_IDS, IFEVAL_ARGUMENTS = "instruction_id_list", "kwargs"
"""IFEval's own two columns: the ids, and the arguments of each."""


class Constraints(Component):
    """Share of the row's checkable instructions that the completion follows (IFEval). Zhou et al. 2023, arXiv:2311.07911."""

    kind: Literal["constraints"] = "constraints"
    column: str = "constraints"
    """The rows' column with a JSON list of instructions: ``[{"id": "length_constraints:number_words", "relation": "at least", "num_words": 20}]``; or ``instruction_id_list`` as IFEval has it, the arguments in ``kwargs``."""
    all_or_nothing: bool = True
    """1 only if every instruction is followed; off, the share."""


class LengthTerm(Component):
    """−(tokens beyond the target)/target, at most −1 below or above: what keeps answers from growing."""

    kind: Literal["length"] = "length"
    target: int = Field(256, ge=1)
    """Tokens that cost nothing."""
    shorter_too: bool = False
    """Completions shorter than the target cost as well."""


class SoftOverlong(Component):
    """0 up to *limit − buffer* tokens, falling to −1 at the limit. DAPO: Yu et al. 2025, arXiv:2503.14476, Eq. 13."""

    kind: Literal["overlong"] = "overlong"
    buffer: int = Field(32, ge=1)
    """Tokens before the limit in which the punishment grows; the limit is the longest completion that is sampled."""


class RepetitionTerm(Component):
    """−share of n-grams that were there before: what keeps answers from circling."""

    kind: Literal["repetition"] = "repetition"
    ngram: int = Field(3, ge=1, le=20)
    """n: words per n-gram."""


AnyComponent = (
    RewardModelScore
    | ProcessScore
    | ExactAnswer
    | NumericAnswer
    | MathAnswer
    | CodeTests
    | TagFormat
    | JSONFormat
    | PatternFormat
    | Constraints
    | LengthTerm
    | SoftOverlong
    | RepetitionTerm
)


_NEVER_ONE = ProcessScore | LengthTerm | SoftOverlong | RepetitionTerm
"""Their scores stay below 1: as a gate each would be closed for ever."""


class Rewards(Strict):
    """Σ weight · score over the components: the reward of a completion."""

    components: list[Annotated[AnyComponent, Field(discriminator="kind")]] = Field(min_length=1, max_length=16)
    """What scores a completion."""

    @model_validator(mode="after")
    def _names_and_gates(self) -> Self:
        kinds = dict(self.named())
        names = [name for name, _ in self.named()]
        for index, (name, component) in enumerate(self.named()):
            if name in names[:index]:
                raise refusal(
                    f"components[{index}].name", f"two components are called {name}; give one of them another name"
                )
            if not component.only_if or component.only_if in names[:index]:
                continue
            said = f"{name} waits for {component.only_if!r}, which is no component; there are {', '.join(names)}"
            if component.only_if in names:
                said = f"{name} waits for {component.only_if}, which must come before it"
            raise refusal(f"components[{index}].only_if", said)
        for index, (name, component) in enumerate(self.named()):
            if component.only_if and isinstance(kinds[component.only_if], _NEVER_ONE):
                raise refusal(
                    f"components[{index}].only_if",
                    f"{name} waits for {component.only_if} to score 1, which it never does; wait for a verifier or a format",
                )
        return self

    def named(self) -> Iterator[tuple[str, AnyComponent]]:
        """Every component with the name it is logged under."""
        for component in self.components:
            yield component.name or component.kind, component

    def other_models(self) -> list[int]:
        """Registry ids of the models that score, each once, in order."""
        ids: list[int] = []
        for component in self.components:
            match component:
                case RewardModelScore(models=models):
                    ids += models
                case ProcessScore(model=model):
                    ids.append(model)
        return list(dict.fromkeys(ids))

    def columns(self) -> dict[str, str]:
        """Columns that rows must have, each with the field that asks for it."""
        columns: dict[str, str] = {}
        for index, component in enumerate(self.components):
            if isinstance(component, ExactAnswer | NumericAnswer | MathAnswer | CodeTests | Constraints):
                field = f"rewards.components[{index}].column"
                columns.setdefault(component.column, field)
                if isinstance(component, Constraints) and component.column == IFEVAL_IDS:
                    columns.setdefault(IFEVAL_ARGUMENTS, field)
                if isinstance(component, CodeTests) and component.setup:
                    columns.setdefault(component.setup, f"rewards.components[{index}].setup")
        return columns
