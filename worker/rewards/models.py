"""What reward models say of a completion: one, an ensemble, or one that looks at every step.

A model reads the token ids that the policy read and wrote, if both have the same words; else the text is encoded again
with the model's own. A completion that ended by itself is read to the end that the model was trained to read at (a chat
template may write more after the end token); one that was cut at the limit has no end, so it does not look finished.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import pstdev
from typing import Any

import torch

from backend.runs.specs import Launch
from backend.runs.specs.rewards import ProcessScore, RewardModelScore
from worker import networks, scoring
from worker.encoding import Encoder, Pair
from worker.report import SpecCannotWork
from worker.rewards.rollouts import Rollout, Score, Scorer


class Model:
    """A model that scores, with the words it reads."""

    def __init__(self, scorer: scoring.Scorer, words: Mapping[str, int]) -> None:
        """*words*: the policy's vocabulary."""
        self.scorer = scorer
        self._same_words = scorer.tokenizer.get_vocab() == words
        self._encoder = Encoder(scorer.tokenizer, max_length=1 << 30)

    def verdicts(self, rollouts: Sequence[Rollout]) -> list[scoring.Verdict]:
        """What it says of each."""
        return self.scorer.scores([self.read(rollout) for rollout in rollouts])

    def read(self, rollout: Rollout) -> Pair:
        """Token ids in the model's words."""
        plain = isinstance(rollout.prompt, str)
        if self._same_words:
            ids = list(rollout.completion_ids)
            return Pair(list(rollout.prompt_ids), ids if plain or not rollout.ended else ids + self._after_end)
        completion: Any = rollout.completion if plain else [{"role": "assistant", "content": rollout.completion}]
        pair = self._encoder.pairs([rollout.prompt], [completion], check_end=False)[0]
        return pair if rollout.ended else Pair(pair.prompt, self._cut(pair.completion)[0])

    @cached_property
    def _after_end(self) -> list[int]:
        """What the chat template writes after a reply's end token, such as a line break."""
        if self.scorer.tokenizer.chat_template is None:
            return []
        messages = [{"role": "user", "content": "?"}]
        pair = self._encoder.pairs([messages], [[{"role": "assistant", "content": "!"}]], check_end=False)[0]
        return self._cut(pair.completion)[1]

    def _cut(self, completion: list[int]) -> tuple[list[int], list[int]]:
        """What comes before the last end token, and what after it."""
        end = self.scorer.tokenizer.eos_token_id
        if end not in completion:
            return completion, []
        place = len(completion) - 1 - completion[::-1].index(end)
        return completion[:place], completion[place + 1 :]


def _open(
    models: Sequence[int],
    launch: Launch,
    device: torch.device | str,
    ready: Mapping[int, scoring.Scorer],
    field: str,
) -> list[Model]:
    """The models of those registry ids; one that is in *ready* is not loaded again."""
    has_own = launch.adapter_base is None or (launch.base_model / "tokenizer.json").exists()
    words = networks.load_tokenizer(launch.base_model if has_own else _base(launch)).get_vocab()
    opened = []
    for number in models:
        scorer = ready.get(number)
        if scorer is None:
            if number not in launch.models:
                raise SpecCannotWork(f"the model {number} is not there", remedy="Choose another model.", field=field)
            folder = networks.folder_of(launch.models[number], launch.folder, f"model-{number}", field=field)
            dtype = networks.working_dtype(launch.spec.weights)
            scorer = scoring.load_scorer(folder, device=device, dtype=dtype, field=field)
        opened.append(Model(scorer, words))
    return opened


def _base(launch: Launch) -> Path:
    assert launch.adapter_base is not None
    return launch.adapter_base


class RewardModels(Scorer):
    """A reward model's score, or an ensemble's agreement; of an ensemble also how far its members disagree."""

    at_once = 256

    def __init__(
        self,
        spec: RewardModelScore,
        launch: Launch,
        device: torch.device | str,
        ready: Mapping[int, scoring.Scorer],
        field: str,
    ) -> None:
        self.spec = spec
        self.members = _open(spec.models, launch, device, ready, f"{field}.models")
        self._spread: list[Score] = []

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """The members' agreement; ``None`` where any of them could not answer, or said NaN or ∞."""
        told = [[verdict.score for verdict in member.verdicts(rollouts)] for member in self.members]  # (M, N)
        scores: list[Score] = [None] * len(rollouts)
        self._spread = [None] * len(rollouts)
        for i, column in enumerate(zip(*told, strict=True)):
            members = [score for score in column if score is not None and math.isfinite(score)]
            if len(members) == len(column):
                scores[i] = scoring.agree([[score] for score in members], self.spec.agreement)[0]
                self._spread[i] = pstdev(members)
        return scores

    def extras(self) -> dict[str, list[Score]]:
        """``disagreement``: the members' standard deviation."""
        return {"disagreement": self._spread} if len(self.members) > 1 else {}


class ProcessRewardModel(Scorer):
    """The steps' scores, reduced to one."""

    at_once = 256

    def __init__(
        self,
        spec: ProcessScore,
        launch: Launch,
        device: torch.device | str,
        ready: Mapping[int, scoring.Scorer],
        field: str,
    ) -> None:
        self.spec = spec
        self.model = _open([spec.model], launch, device, ready, f"{field}.model")[0]
        if not isinstance(self.model.scorer, scoring.StepScorer):
            raise SpecCannotWork(
                "the model does not score steps",
                remedy="Choose a process reward model, or use this one as a reward model.",
                field=f"{field}.model",
            )

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Reduced as the spec says, whatever the model was trained to; ``None`` where there is no step, or one is NaN."""
        return [
            scoring.reduce_steps(verdict.steps, self.spec.reduce)
            if verdict.score is not None and all(map(math.isfinite, verdict.steps))  # min() can overlook a NaN
            else None
            for verdict in self.model.verdicts(rollouts)
        ]
