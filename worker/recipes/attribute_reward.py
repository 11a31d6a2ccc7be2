"""Attribute scores: one output per attribute, the reward their weighted sum.

    Σ over known scores of (r_k − (s_k − μ_k)/σ_k)² / how many are known,      reward = Σ weight_k · (μ_k + σ_k·r_k)

Wang et al. 2024, arXiv:2406.12845 (regression on attributes, weighted afterwards); Wang et al. 2023, arXiv:2311.09528.
μ_k and σ_k are the training rows', so that attributes on different scales weigh the same in the loss. In the finished
model σ_k is folded into the head; μ_k is written beside it, because the head has no bias (:mod:`worker.scoring`).

Columns in: ``prompt``, ``completion``, ``scores`` (attribute → number; one that is missing is not learned from).
Events out: for each attribute ``eval_mse/…``, ``eval_baseline_mse/…`` (always saying μ_k), ``eval_pearson/…``,
``eval_spearman/…``; of the reward on pairs of one prompt ``eval_pair_accuracy``, calibration and the judge by length;
``eval_length_correlation``; held-out texts with their scores.

Left out: gating that weighs attributes by the prompt.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig

from backend.runs.events import Completion, Note
from backend.runs.specs import AttributeRewardSpec, Launch
from worker import calibration, graded, heads, networks, objectives, rows, scoring, splitting
from worker.encoding import Encoder, Pair
from worker.objectives import IGNORED
from worker.recipes import training
from worker.recipes.judging import OwnLoss, inputs, lengths, told
from worker.report import SpecCannotWork
from worker.scoring import AttributeMeaning, AttributesMeaning

if TYPE_CHECKING:
    from worker.report import Report, Stop

_OF_A_PROMPT = 32
"""At most so many texts of a prompt are compared with each other: pairs grow with their square."""


class AttributeReward(OwnLoss):
    """Regression on standardized scores."""

    meaning: AttributesMeaning

    def losses(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Of each text and attribute (B, K)."""
        known = self.meaning.attributes.values()
        mean = logits.new_tensor([one.offset for one in known])  # (K,)
        deviation = logits.new_tensor([one.scale for one in known])  # (K,)
        if not self.model.training:
            self.keep(outputs=logits)
        return objectives.attribute_losses(logits, (inputs["scores"] - mean) / deviation)

    def figures(self, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """Of the held-out texts."""
        held_out, learned = self.eval_dataset, self.train_dataset
        assert isinstance(held_out, Dataset)
        assert isinstance(learned, Dataset)
        predicted, target = self.meaning.scores(kept["outputs"]), scores(held_out)  # (N, K)
        told: dict[str, float] = {}
        for index, (name, one) in enumerate(self.meaning.attributes.items()):
            known = ~target[:, index].isnan()
            mine, theirs = predicted[known, index], target[known, index]
            told[f"mse/{name}"] = (mine - theirs).square().mean().item()
            told[f"baseline_mse/{name}"] = (one.offset - theirs).square().mean().item()
            told[f"pearson/{name}"] = calibration.pearson(mine, theirs)
            told[f"spearman/{name}"] = calibration.spearman(mine, theirs)
        told["length_correlation"] = calibration.pearson(self.meaning.reward(predicted), lengths(held_out))
        first, second = comparable(held_out, self.meaning)
        if first:
            asked = torch.where(target.isnan(), 0.0, predicted)  # of what the rows say nothing, nothing is added
            difference = self.meaning.reward(asked[first] - asked[second])
            better = self.better(held_out, first, second)
            told["pair_accuracy"] = calibration.accuracy(difference, better)
            told |= calibration.calibration(difference, better).figures()
            told |= self._length_judge(learned).figures(lengths(held_out)[first] - lengths(held_out)[second], better)
        return told

    def better(self, data: Dataset, first: list[int], second: list[int]) -> Tensor:
        """1 where the rows' own scores prefer the first text of a pair, else 0."""
        rewards = self.meaning.reward(scores(data).nan_to_num())
        return (rewards[first] > rewards[second]).double()

    def _length_judge(self, learned: Dataset) -> calibration.ByLength:
        if self._judge is None:
            first, second = comparable(learned, self.meaning)
            tokens = lengths(learned)
            self._judge = calibration.ByLength(0.0)  # of no pairs nothing can be learned
            if first:
                self._judge = calibration.by_length(tokens[first] - tokens[second], self.better(learned, first, second))
        return self._judge

    _judge: calibration.ByLength | None = None

    def write_model(self, folder: Path) -> None:
        """See :class:`worker.recipes.training.Frame`; what is saved speaks the rows' own scale."""
        scale_head(self.accelerator.unwrap_model(self.model), [one.scale for one in self.meaning.attributes.values()])
        self.meaning = AttributesMeaning(
            attributes={name: one.model_copy(update={"scale": 1.0}) for name, one in self.meaning.attributes.items()}
        )
        super().write_model(folder)


@torch.no_grad()
def scale_head(model: Any, factors: list[float]) -> None:
    """Multiply each output (K) by its factor, through the weights."""
    weight = heads.head_of(model).weight  # (K, hidden)
    weight.mul_(weight.new_tensor(factors).unsqueeze(-1))


def scores(data: Dataset) -> Tensor:
    """On the rows' own scale (N, K); not a number where the rows say nothing."""
    return torch.tensor(data["scores"][:], dtype=torch.float64)


def comparable(data: Dataset, meaning: AttributesMeaning) -> tuple[list[int], list[int]]:
    """Pairs of texts of one prompt with scores of the same attributes whose rewards differ: indices of both sides."""
    known = scores(data)  # (N, K)
    rewards: list[float] = meaning.reward(known.nan_to_num()).tolist()
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (key, missing) in enumerate(zip(data["prompt_key"], known.isnan().tolist(), strict=True)):
        alike[key, *missing].append(index)
    pairs = [
        (i, j) for texts in alike.values() for i, j in combinations(texts[:_OF_A_PROMPT], 2) if rewards[i] != rewards[j]
    ]
    return [i for i, _ in pairs], [j for _, j in pairs]


def run(launch: Launch, spec: AttributeRewardSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)  # draws the new head
    names = sorted(spec.attributes)  # a database keeps no order of keys
    _check_attributes(launch, names)
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start, task="SEQ_CLS")
    model = networks.load_to_train(start, spec.weights, task="SEQ_CLS", heads=len(names))
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    networks.silence_dropout(model)
    prepared = rows.prepare(launch, tokenizer, partial(graded.attribute_scores, attributes=names))
    meaning = _standardized(prepared.train, names, spec)
    _take_over(model, start, meaning)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    pad = int(tokenizer.pad_token_id)

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        known = torch.tensor([row["scores"] for row in batch])  # (B, K)
        return {**inputs(batch, pad), "scores": known, "labels": known.isnan().long() * IGNORED}

    trainer = AttributeReward(
        model,
        args=RewardConfig(**training.arguments(launch, prepared), remove_unused_columns=False),
        prepared=prepared,
        collate=collate,
        tokenizer=tokenizer,
        peft_config=networks.lora_config(spec.weights, task="SEQ_CLS"),
    )
    trainer.meaning = meaning
    if not comparable(prepared.held_out, meaning)[0]:
        text = "No two held-out texts of one prompt have different rewards: neither pairs nor calibration are reported."
        report.say(Note(level="warning", text=text))
    training.carry_out(launch, report, stop, trainer, prepared, _scored(trainer, launch, prepared))


def _check_attributes(launch: Launch, names: list[str]) -> None:
    """Raises :class:`SpecCannotWork` if a row never has a score of one of *names*."""
    found: set[str] = set()
    for text in splitting.read(launch.rows, launch.row_type)["scores"]:
        found.update(name for name, score in json.loads(text).items() if score is not None)
    for name in names:
        if name not in found:
            raise SpecCannotWork(
                f"no row has a score of {name!r}; there are scores of {', '.join(sorted(found)) or 'nothing'}",
                remedy="Name attributes of the rows, or use a dataset with this one.",
                field="attributes",
            )


def _standardized(learned: Dataset, names: list[str], spec: AttributeRewardSpec) -> AttributesMeaning:
    """The training rows' mean and deviation (population) as what outputs mean while they are learned."""
    known = scores(learned)  # (N, K)
    attributes = {}
    for index, name in enumerate(names):
        values = known[:, index][~known[:, index].isnan()]
        if len(values) == 0:
            raise SpecCannotWork(
                f"no row to learn from has a score of {name!r}",
                remedy="Leave it out, or use a dataset with more scores of it.",
                field="attributes",
            )
        deviation = values.std(correction=0).item()
        attributes[name] = AttributeMeaning(
            weight=spec.attributes[name], offset=values.mean().item(), scale=deviation if deviation > 0 else 1.0
        )
    return AttributesMeaning(attributes=attributes)


def _take_over(model: Any, start: Path, meaning: AttributesMeaning) -> None:
    """Go on from the head of a model that scores the same attributes, in the new rows' units."""
    if networks.task_of(start) == "CAUSAL_LM":
        return  # a language model: the head is new
    known = scoring.read_meaning(start)
    if not isinstance(known, AttributesMeaning) or list(known.attributes) != list(meaning.attributes):
        had = ", ".join(known.attributes) if isinstance(known, AttributesMeaning) else "one score per text"
        raise SpecCannotWork(
            f"the model has learned {had}, and {', '.join(meaning.attributes)} shall be learned",
            remedy="Start from a language model, or from a model of the same attributes.",
            field="base_model",
        )
    pairs = zip(known.attributes.values(), meaning.attributes.values(), strict=True)
    scale_head(model, [old.scale / new.scale for old, new in pairs])


def _scored(trainer: AttributeReward, launch: Launch, prepared: rows.Prepared) -> training.Show:
    """The first held-out texts with their scores, as many as the spec asks for."""
    tokenizer: Any = trainer.processing_class
    limit = launch.spec.max_length
    encoder = Encoder(tokenizer, limit)
    texts = prepared.examples[: launch.spec.evaluation.completions]
    pairs = [encoder.pairs([row["prompt"]], [row["completion"]])[0] for row in texts]
    cut = [Pair(pair.prompt[:limit], pair.completion[: max(0, limit - len(pair.prompt))]) for pair in pairs]

    def show() -> list[Completion]:
        if not texts:
            return []
        model = trainer.accelerator.unwrap_model(trainer.model)
        scorer = scoring.AttributeScorer(model, tokenizer, trainer.meaning)
        return [
            Completion(
                prompt=rows.readable(row["prompt"]),
                completion=rows.readable(row["completion"]),
                tokens=len(pair.completion),
                ended=pair.completion[-1:] == [tokenizer.eos_token_id]
                or len(pair.completion) < limit - len(pair.prompt),
                rewards={"score": told(verdict.score)} | {n: told(v) for n, v in verdict.attributes.items()},
            )
            for row, pair, verdict in zip(texts, cut, scorer.scores(cut), strict=True)
        ]

    return show
