"""Models that score, as others use them: one interface for reward, attribute and process reward models, and ensembles.

A trained model lies in a folder like any other; what its outputs mean is in its config and, where that cannot say it, in
``reward.json`` beside the weights (an adapter has no config of its own):

    reward             one output per text: the score
    attribute_reward   K outputs per text: score_k = offset_k + scale_k·output_k; the reward is Σ weight_k·score_k
    process_reward     two outputs per token (wrong, right), read at the last token of every step

Scores are computed in batches of similar length, padded on the right, without gradients and without dropout; neither
the batch a text is in nor the order of texts changes them by more than rounding.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, assert_never

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.runs.specs.parts import Strict
from backend.runs.specs.rewards import Agreement, Cautious, Mean, Minimum
from worker import graded, networks
from worker.encoding import Pair
from worker.report import SpecCannotWork

REWARD_FILE = "reward.json"
"""Beside the weights: what the outputs mean."""

Reduce = Literal["minimum", "product", "last"]


# --- what the outputs mean ---------------------------------------------------------------------------------------


class AttributeMeaning(Strict):
    """How one output becomes a score on the rows' own scale, and what it adds to the reward."""

    weight: float
    """What the score weighs in the reward."""
    offset: float
    """Added to the scaled output: the training rows' mean. The head has no bias that could hold it."""
    scale: float
    """The output is multiplied by it: 1 in a finished model, the training rows' deviation in a checkpoint."""


class AttributesMeaning(Strict):
    """Of an attribute reward model: its outputs, in their order."""

    kind: Literal["attribute_reward"] = "attribute_reward"
    attributes: dict[str, AttributeMeaning]

    def scores(self, outputs: Tensor) -> Tensor:
        """The rows' own scale: (B, K) from outputs (B, K)."""
        known = self.attributes.values()
        scale = torch.tensor([one.scale for one in known], dtype=outputs.dtype, device=outputs.device)  # (K,)
        offset = torch.tensor([one.offset for one in known], dtype=outputs.dtype, device=outputs.device)  # (K,)
        return offset + scale * outputs

    def reward(self, scores: Tensor) -> Tensor:
        """The weighted sum: (B,) from scores (B, K)."""
        weights = [one.weight for one in self.attributes.values()]
        return scores @ torch.tensor(weights, dtype=scores.dtype, device=scores.device)


class StepsMeaning(Strict):
    """Of a process reward model."""

    kind: Literal["process_reward"] = "process_reward"
    separator: str
    """What ends a step."""
    reduce: Reduce
    """How the steps' scores become the solution's."""


Meaning = Annotated[AttributesMeaning | StepsMeaning, Field(discriminator="kind")]
_MEANING: TypeAdapter[AttributesMeaning | StepsMeaning] = TypeAdapter(Meaning)


def write_meaning(meaning: AttributesMeaning | StepsMeaning, folder: Path) -> None:
    """Beside the weights in *folder*."""
    (folder / REWARD_FILE).write_text(meaning.model_dump_json(indent=1))


def read_meaning(folder: Path, field: str = "base_model") -> AttributesMeaning | StepsMeaning | None:
    """What *folder* says about its outputs; ``None`` for a plain reward model (or one that does not score)."""
    path = folder / REWARD_FILE
    if not path.is_file():
        return None
    try:
        return _MEANING.validate_json(path.read_bytes())
    except ValidationError as error:
        raise SpecCannotWork(
            f"{REWARD_FILE} is not what it should be: {error}", remedy="Upload the model again.", field=field
        ) from error


# --- from a model's outputs --------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], pad: int, batch_size: int = 32
) -> Iterator[tuple[int, Tensor]]:
    """The logits of each sequence with its index, in batches of similar length: (K,) of a text, (T, K) of its tokens."""
    by_length = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # the longest first: if memory is short, at once
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            longest = len(ids[batch[0]])
            logits = model(
                input_ids=torch.tensor([[*ids[i], *[pad] * (longest - len(ids[i]))] for i in batch], device=device),
                attention_mask=torch.tensor(
                    [[1] * len(ids[i]) + [0] * (longest - len(ids[i])) for i in batch], device=device
                ),  # (B, T)
                use_cache=False,
            ).logits.float()  # (B, K) or (B, T, K)
            yield from zip(batch, logits.cpu(), strict=True)
    finally:
        model.train(was_training)


def text_outputs(model: PreTrainedModel, ids: Sequence[Sequence[int]], pad: int, batch_size: int = 32) -> Tensor:
    """The outputs at the last token of each text: (N, K), in the order of *ids*."""
    found = dict(outputs(model, ids, pad, batch_size))
    return torch.stack([found[i] for i in range(len(ids))])


def step_logits(found: Tensor) -> Tensor:
    """The logit of "this step is right" (…) from a step's two outputs (…, 2): right − wrong."""
    return found[..., 1] - found[..., 0]


def reduce_steps(chances: Sequence[float], how: Reduce) -> float:
    """One score of a solution from the chances of its steps. Lightman et al. 2023, arXiv:2305.20050, Sec. 2.6."""
    match how:
        case "minimum":
            return min(chances)
        case "product":
            return math.prod(chances)
        case "last":
            return chances[-1]
        case unknown:
            assert_never(unknown)


def agree(scores: Sequence[Sequence[float]], how: Agreement) -> list[float]:
    """One score per text from those of an ensemble's M members, each a list over texts: (M, N) → (N,).

    Mean; minimum; or mean − λ·std, with the population's standard deviation (divided by M, not M − 1: the members are
    all there are). Coste et al. 2023, arXiv:2310.02743, Eq. 2 to 4, where the variance stands for the deviation.
    """
    members = torch.tensor(scores, dtype=torch.float64)  # (M, N)
    match how:
        case Mean():
            agreed = members.mean(0)
        case Minimum():
            agreed = members.amin(0)
        case Cautious(penalty=penalty):
            agreed = members.mean(0) - penalty * members.std(0, correction=0)
        case unknown:
            assert_never(unknown)
    listed: list[float] = agreed.tolist()
    return listed


# --- scorers -----------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What a model says about one text."""

    score: float | None
    """The reward; ``None`` if it could not be scored: longer than the model's positions, or no step in it."""
    attributes: dict[str, float]
    """Score of each attribute on the rows' own scale; empty for the other kinds."""
    steps: list[float]
    """P(right) of each step; empty for the other kinds."""


class Scorer(Protocol):
    """A model that scores, loaded and ready."""

    tokenizer: PreTrainedTokenizerBase
    """Token ids are in its words."""

    def scores(self, texts: Sequence[Pair], batch_size: int = 32) -> list[Verdict]:
        """A verdict on each prompt with its completion (token ids without padding), in order."""
        ...


class _Loaded:
    """A model with its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        pad = tokenizer.pad_token_id
        assert isinstance(pad, int)  # networks.load_tokenizer gives one
        self.pad = pad
        text: Any = model.config.get_text_config()
        text.pad_token_id = pad  # by it the last token is found
        self.positions: int = getattr(text, "max_position_embeddings", None) or 1 << 30

    def _fits(self, ids: Sequence[int]) -> bool:
        return 0 < len(ids) <= self.positions


class TextScorer(_Loaded):
    """One score per text: a reward model."""

    def scores(self, texts: Sequence[Pair], batch_size: int = 32) -> list[Verdict]:
        """See :class:`Scorer`."""
        ids = [[*pair.prompt, *pair.completion] for pair in texts]
        which = [i for i, one in enumerate(ids) if self._fits(one)]
        verdicts = [Verdict(None, {}, [])] * len(texts)
        if which:
            found = text_outputs(self.model, [ids[i] for i in which], self.pad, batch_size)  # (N, K)
            for i, verdict in zip(which, self._verdicts(found), strict=True):
                verdicts[i] = verdict
        return verdicts

    def _verdicts(self, found: Tensor) -> list[Verdict]:
        return [Verdict(value, {}, []) for value in found[:, 0].tolist()]


class AttributeScorer(TextScorer):
    """A score per attribute, and their weighted sum."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, meaning: AttributesMeaning) -> None:
        super().__init__(model, tokenizer)
        self.meaning = meaning

    def _verdicts(self, found: Tensor) -> list[Verdict]:
        scores = self.meaning.scores(found)  # (N, K)
        rewards: list[float] = self.meaning.reward(scores).tolist()
        names = list(self.meaning.attributes)
        return [
            Verdict(reward, dict(zip(names, row, strict=True)), [])
            for reward, row in zip(rewards, scores.tolist(), strict=True)
        ]


class StepScorer(_Loaded):
    """A score per step, and one for the solution.

    A completion is read as text and cut at the separator; each step is then encoded by itself, as in training.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        meaning: StepsMeaning,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__(model, tokenizer)
        self.separator = meaning.separator
        self.reduce: Reduce = reduce or meaning.reduce

    def scores(self, texts: Sequence[Pair], batch_size: int = 32) -> list[Verdict]:
        """See :class:`Scorer`."""
        verdicts = [Verdict(None, {}, [])] * len(texts)
        encoded = [self._encode(pair) for pair in texts]
        which = [i for i, (ids, ends) in enumerate(encoded) if ends and self._fits(ids)]
        for place, logits in outputs(self.model, [encoded[i][0] for i in which], self.pad, batch_size):
            i = which[place]
            chances: list[float] = step_logits(logits[encoded[i][1]]).sigmoid().tolist()
            verdicts[i] = Verdict(reduce_steps(chances, self.reduce), {}, chances)
        return verdicts

    def _encode(self, pair: Pair) -> tuple[list[int], list[int]]:
        text = str(self.tokenizer.decode(pair.completion, skip_special_tokens=True))
        return graded.join_steps(self.tokenizer, pair.prompt, graded.steps_of(text, self.separator), self.separator)


def load_scorer(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    reduce: Reduce | None = None,
    field: str = "base_model",
) -> Scorer:
    """The model in *folder* (full weights: see :func:`worker.networks.folder_of`) as a scorer of its kind.

    *reduce*: another way to reduce steps than the model's own. *field*: the spec's field that names the model.
    Raises :class:`SpecCannotWork` if the model does not score.
    """
    networks.check_files(folder, field=field)
    meaning = read_meaning(folder, field)
    task: networks.Task = "TOKEN_CLS" if isinstance(meaning, StepsMeaning) else "SEQ_CLS"
    if networks.task_of(folder) != task:
        raise SpecCannotWork(
            "the model does not score"
            if meaning is None
            else f"its config and its {REWARD_FILE} are of different kinds",
            remedy="Take a reward model that was trained here, or one that classifies sequences with one label.",
            field=field,
        )
    model = networks.load(folder, task=task, dtype=dtype).to(device).eval().requires_grad_(False)
    return scorer_of(
        model, model.config.num_labels, networks.load_tokenizer(folder, task=task), meaning, reduce=reduce, field=field
    )


def scorer_of(
    model: Any,
    labels: int,
    tokenizer: PreTrainedTokenizerBase,
    meaning: AttributesMeaning | StepsMeaning | None,
    *,
    reduce: Reduce | None = None,
    field: str = "base_model",
) -> Scorer:
    """*model*, which has *labels* outputs of that *meaning*, as a scorer of its kind."""
    expected = 2 if isinstance(meaning, StepsMeaning) else len(meaning.attributes) if meaning else 1
    if labels != expected:
        raise SpecCannotWork(
            f"the model has {labels} outputs, and {expected} can be read",
            remedy=f"Take a model with one output, or one whose outputs {REWARD_FILE} explains.",
            field=field,
        )
    match meaning:
        case None:
            return TextScorer(model, tokenizer)
        case AttributesMeaning():
            return AttributeScorer(model, tokenizer, meaning)
        case StepsMeaning():
            return StepScorer(model, tokenizer, meaning, reduce)
        case unknown:
            assert_never(unknown)
