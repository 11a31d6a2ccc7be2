"""Which of a row's instructions a completion follows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from backend.runs.specs.rewards import IFEVAL_ARGUMENTS, Constraints
from worker.rewards import instructions
from worker.rewards.rollouts import Rollout, Row, Score, Scorer, refuse, value


class Instruction(NamedTuple):
    """What is asked for."""

    name: str
    arguments: Mapping[str, Any]


def asked(row: Row, column: str) -> list[Instruction]:
    """The row's instructions; raises ``ValueError`` that says what is wrong with them.

    Either a list of objects, each with its ``id`` and arguments beside it, or IFEval's two columns: a list of ids, and
    the arguments of each in ``kwargs``.
    """
    listed = value(row, column)
    if not isinstance(listed, list) or not listed:
        raise ValueError("there is no JSON list of instructions")
    names: list[Any]
    if all(isinstance(one, str) for one in listed):
        names, arguments = listed, value(row, IFEVAL_ARGUMENTS)
        if not isinstance(arguments, list) or len(arguments) != len(names):
            raise ValueError(f"each id needs its arguments in the column {IFEVAL_ARGUMENTS!r}")
    elif all(isinstance(one, dict) and "id" in one for one in listed):
        names = [one["id"] for one in listed]
        arguments = [{key: given for key, given in one.items() if key != "id"} for one in listed]
    else:
        raise ValueError("an instruction is neither an id nor an object with one")
    return [
        Instruction(name, instructions.checked(name, given or {})) for name, given in zip(names, arguments, strict=True)
    ]


class Instructions(Scorer):
    """The share of the row's instructions that the completion follows."""

    def __init__(self, spec: Constraints) -> None:
        self.spec = spec

    def check(self, rows: Sequence[Row], field: str) -> None:
        """Every row has instructions, and all of them can be checked."""
        problems: dict[int, str] = {}
        for i, row in enumerate(rows):
            try:
                asked(row, self.spec.column)
            except ValueError as error:
                problems[i] = str(error)
        refuse(
            rows,
            problems,
            what=f"have instructions in {self.spec.column!r} that cannot be checked",
            remedy=f"Leave these rows out, or use instructions that are known: {', '.join(sorted(instructions.KNOWN))}.",
            field=f"{field}.column",
        )

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Each by itself."""
        return [self._one(rollout) for rollout in rollouts]

    def _one(self, rollout: Rollout) -> Score:
        try:
            wanted = asked(rollout.row, self.spec.column)
        except ValueError:
            return None
        followed = [instructions.follows(rollout.completion, *one) for one in wanted]
        return float(all(followed)) if self.spec.all_or_nothing else sum(followed) / len(followed)
