"""From many components to one reward: Σ weight · normalized(gated(score)).

1. A rollout for which any component could not answer is unscored: its total is NaN, never 0.
2. Where the component named by ``only_if`` scored less than 1, a component's score is 0. This comes before
   normalization: after it, 0 would be the mean of the group, and a malformed completion paid more than a wrong one.
3. Over the rollouts of a prompt, or over all: (score − mean)/standard deviation of the population, without those that
   have no score. Scores without spread become 0. (Normalizing each component before the sum keeps one with a wide
   range from drowning the others.)
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from types import TracebackType
from typing import TYPE_CHECKING, Self, assert_never

import numpy as np
from numpy.typing import NDArray

from backend.runs.specs import Launch
from backend.runs.specs.rewards import (
    AnyComponent,
    CodeTests,
    Constraints,
    ExactAnswer,
    JSONFormat,
    LengthTerm,
    MathAnswer,
    NumericAnswer,
    PatternFormat,
    ProcessScore,
    RepetitionTerm,
    RewardModelScore,
    Rewards,
    SoftOverlong,
    TagFormat,
)
from worker.report import SpecCannotWork, StopRequested
from worker.rewards import answers, formats, length
from worker.rewards.rollouts import Rollout, Row, Score, Scorer

if TYPE_CHECKING:
    import torch

    from worker import scoring


@dataclass(frozen=True)
class Measured:
    """What the components said of some rollouts: plain lists, so that processes can exchange them."""

    groups: list[int]
    components: dict[str, list[Score]]
    """Raw scores under each component's name."""
    extras: dict[str, list[Score]] = field(default_factory=dict)

    @staticmethod
    def joined(parts: Sequence["Measured"]) -> "Measured":
        """One after the other; a group never spans two parts."""
        groups: list[int] = []
        for number, part in enumerate(parts):  # the same number in two processes is not the same group
            groups += [group * len(parts) + number for group in part.groups]
        return Measured(
            groups,
            {name: [score for part in parts for score in part.components[name]] for name in parts[0].components},
            {name: [score for part in parts for score in part.extras[name]] for name in parts[0].extras},
        )


@dataclass(frozen=True)
class Scores:
    """The rewards of N rollouts, and how they came about."""

    total: NDArray[np.float64]
    """(N,); NaN where a rollout is unscored."""
    components: dict[str, list[Score]]
    """Raw scores: before gate, normalization and weight."""
    extras: dict[str, list[Score]]
    """Further figures of each rollout, such as how far an ensemble disagrees."""
    closed: dict[str, list[bool]]
    """Of components with a gate: for which rollouts it was closed."""

    def figures(self) -> dict[str, float]:
        """Figures for the log, each component by itself, under TRL's names."""
        said: dict[str, float] = {"rewards/unscored": float(np.isnan(self.total).mean())}
        for name, scores in self.components.items():
            answered = [score for score in scores if score is not None]
            said[f"rewards/{name}/unscored"] = 1 - len(answered) / len(scores)
            if answered:
                said[f"rewards/{name}/mean"] = fmean(answered)
                said[f"rewards/{name}/std"] = pstdev(answered)
        for name, values in self.extras.items():
            known = [value for value in values if value is not None]
            if known:
                said[f"rewards/{name}"] = fmean(known)
        for name, closed in self.closed.items():
            said[f"rewards/{name}/gated"] = sum(closed) / len(closed)
        return said


def combine(rewards: Rewards, measured: Measured) -> Scores:
    """Gates, normalization, weighted sum."""
    count = len(measured.groups)
    total = np.zeros(count)
    unscored = np.zeros(count, dtype=bool)
    closed: dict[str, list[bool]] = {}
    components = {name: [_finite(score) for score in scores] for name, scores in measured.components.items()}
    for name, component in rewards.named():
        score = np.array([math.nan if score is None else score for score in components[name]], dtype=float)
        unscored |= np.isnan(score)
        if component.only_if:
            closed[name] = [value is None or value < 1 for value in components[component.only_if]]
            score[np.array(closed[name], dtype=bool) & ~np.isnan(score)] = 0
        match component.normalize:
            case "none":
                pass
            case "group":
                score = _normalized(score, np.array(measured.groups))
            case "batch":
                score = _normalized(score, np.zeros(count))
            case unknown:
                assert_never(unknown)
        total += component.weight * np.where(unscored, 0.0, score)
    total[unscored] = math.nan
    return Scores(total, components, measured.extras, closed)


def _finite(score: Score) -> Score:
    """A model that says NaN or ∞ has not answered."""
    return score if score is not None and math.isfinite(score) else None


def _normalized(scores: NDArray[np.float64], groups: NDArray[np.generic]) -> NDArray[np.float64]:
    """(score − mean)/population standard deviation within each group; NaN stays NaN and is in no statistic."""
    out = scores.copy()
    for group in np.unique(groups):
        mine = (groups == group) & ~np.isnan(scores)
        members = scores[mine]
        if not len(members):
            continue
        # exactly equal scores may have a deviation of 1e-17: compare the scores
        spread = members.std() if members.min() < members.max() else 0.0
        out[mine] = (members - members.mean()) / spread if spread > 0 else 0.0
    return out


class Composition:
    """The components of a run at work. Use it as a context manager: some of them start processes."""

    def __init__(
        self,
        rewards: Rewards,
        launch: Launch,
        *,
        max_new_tokens: int,
        device: "torch.device | str" = "cpu",
        scorers: "Mapping[int, scoring.Scorer] | None" = None,
    ) -> None:
        """*max_new_tokens*: the longest completion that is sampled; *device*: where reward models score; *scorers*: models
        that are in memory already, by their registry id.
        """
        self.rewards = rewards
        self._scorers: dict[str, Scorer] = {}
        make = _maker(launch, max_new_tokens, device, scorers or {})
        try:
            for index, (name, component) in enumerate(rewards.named()):
                self._scorers[name] = make(component, f"rewards.components[{index}]")
        except BaseException:
            self.close()
            raise

    def notes(self) -> list[str]:
        """Sentences for the run's log, before its first step; each once."""
        return list(dict.fromkeys(note for scorer in self._scorers.values() for note in scorer.notes()))

    def warnings(self) -> list[str]:
        """Sentences for the run's log that have become true since they were last asked for."""
        return [warning for scorer in self._scorers.values() for warning in scorer.warnings()]

    def check(self, rows: Iterable[Row]) -> None:
        """Raise :class:`SpecCannotWork` with the component's field if *rows* can never be scored."""
        rows = list(rows)
        present = {column for row in rows for column, content in row.items() if content is not None}
        for column, asker in self.rewards.columns().items():
            if column not in present:
                raise SpecCannotWork(
                    f"the rows have no {column!r}; they have {', '.join(sorted(present)) or 'nothing'}",
                    remedy="Name one of the rows' columns, or import the rows again with it.",
                    field=asker,
                )
        for index, scorer in enumerate(self._scorers.values()):
            scorer.check(rows, f"rewards.components[{index}]")

    def measure(self, rollouts: Sequence[Rollout], *, stopped: Callable[[], bool] = lambda: False) -> Measured:
        """What every component says. Raises :class:`StopRequested` soon after *stopped* becomes true."""
        measured = Measured([rollout.group for rollout in rollouts], {})
        for name, scorer in self._scorers.items():
            scores = measured.components.setdefault(name, [])
            for start in range(0, len(rollouts), scorer.at_once):
                if stopped():
                    raise StopRequested
                scores += scorer.score(rollouts[start : start + scorer.at_once])
                for figure, values in scorer.extras().items():
                    measured.extras.setdefault(f"{name}/{figure}", []).extend(values)
        return measured

    def combine(self, measured: Measured) -> Scores:
        """Gates, normalization and weights, over everything in *measured*."""
        return combine(self.rewards, measured)

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """The rewards of *rollouts*."""
        return self.combine(self.measure(rollouts))

    def close(self) -> None:
        """End the processes that verifiers started."""
        for scorer in self._scorers.values():
            scorer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _maker(
    launch: Launch, max_new_tokens: int, device: "torch.device | str", scorers: "Mapping[int, scoring.Scorer]"
) -> Callable[[AnyComponent, str], Scorer]:
    def make(component: AnyComponent, field: str) -> Scorer:
        match component:
            case ExactAnswer():
                return answers.Exact(component)
            case NumericAnswer():
                return answers.Number(component)
            case LengthTerm():
                return length.Length(component)
            case SoftOverlong():
                return length.Overlong(component, max_new_tokens)
            case RepetitionTerm():
                return length.Repetition(component)
            case TagFormat():
                return formats.Tags(component)
            case JSONFormat():
                return formats.JSON(component)
            case PatternFormat():
                return formats.Pattern(component)
            case MathAnswer():  # imported where they are needed: what is not asked for is not loaded
                from worker.rewards.mathematics import Mathematics

                return Mathematics(component)
            case Constraints():
                from worker.rewards.constraints import Instructions

                return Instructions(component)
            case CodeTests():
                from worker.rewards.programs import Programs

                return Programs(component, field)
            case RewardModelScore():
                from worker.rewards.models import RewardModels

                return RewardModels(component, launch, device, scorers, field)
            case ProcessScore():
                from worker.rewards.models import ProcessRewardModel

                return ProcessRewardModel(component, launch, device, scorers, field)
            case unknown:
                assert_never(unknown)

    return make
