"""Process reward model: is each step of a solution right? Read at the step's last token.

    Σ over labeled steps of −log σ(l) if right, −log σ(−l) if wrong, / how many are labeled;   l = output(right) − output(wrong)

Lightman et al. 2023, arXiv:2305.20050; Uesato et al. 2022, arXiv:2211.14275. Steps are joined by the separator and encoded
one by one, so that a step ends exactly where it ends; one that holds the separator is cut there into several, as whoever
scores a text will cut it (:func:`worker.graded.steps_read`). After the first wrong step labels mean little (the others follow
from it); with ``first_error_only`` they do not count. A solution's score is reduced from its steps: the worst, the
product, or the last.

Columns in: ``prompt``, ``completions`` (the steps), ``labels`` (right or wrong, for each).
Events out: ``eval_step_accuracy`` beside ``eval_step_base_rate`` (always saying what most steps are), ``eval_wrong_found``
(share of wrong steps that are seen), ``eval_first_error_accuracy`` (the first wrong step, or that there is none) and
``eval_solution_accuracy`` with their base rates, calibration of the steps, ``eval_length_accuracy`` (a limit of tokens
alone says whether the solution is right), ``eval_length_correlation``; held-out solutions with the score of every step.
A solution that was cut off before any wrong step is in no figure of whole solutions (:func:`worker.graded.solutions`).

Left out: labels from rollouts (Wang et al. 2023, arXiv:2312.08935).
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import pad as pad_tensor
from trl import RewardConfig

from backend.runs.events import Completion
from backend.runs.specs import Launch, ProcessRewardSpec
from worker import calibration, graded, networks, objectives, rows, scoring
from worker.encoding import Encoder
from worker.objectives import IGNORED
from worker.recipes import training
from worker.recipes.judging import OwnLoss, inputs, lengths, padded, told
from worker.report import SpecCannotWork
from worker.scoring import StepsMeaning

if TYPE_CHECKING:
    from worker.report import Report, Stop

_NOWHERE = -1
"""Place of a step that is only padding."""


class ProcessReward(OwnLoss):
    """Cross-entropy at the ends of steps."""

    meaning: StepsMeaning

    def losses(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Of each step (B, S), from the outputs of all tokens (B, T, 2)."""
        ends = inputs["ends"]  # (B, S)
        at_ends = logits.gather(1, ends.clamp(min=0).unsqueeze(-1).expand(-1, -1, 2))  # (B, S, 2)
        right = scoring.step_logits(at_ends)  # (B, S)
        if not self.model.training:
            held_out = self.eval_dataset
            assert isinstance(held_out, Dataset)
            widest = max(map(len, held_out["ends"]))
            room = (0, widest - ends.shape[1])
            self.keep(
                logits=pad_tensor(right.masked_fill(ends == _NOWHERE, torch.nan), room, value=torch.nan),
                labels=pad_tensor(inputs["labels"], room, value=IGNORED),
            )
        return objectives.step_losses(right, inputs["labels"])

    def figures(self, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """Of the held-out solutions."""
        held_out, learned = self.eval_dataset, self.train_dataset
        assert isinstance(held_out, Dataset)
        assert isinstance(learned, Dataset)
        logits, labels = kept["logits"], kept["labels"]  # (N, S) each
        counts = labels != IGNORED
        d, p = logits[counts], labels[counts]
        reduced = torch.tensor([self.reduced(row[~row.isnan()]) for row in logits], dtype=torch.float64)  # (N,)
        found, true = first_below((logits < 0) & counts), first_below(labels == 0)  # (N,)
        return {
            "step_accuracy": calibration.accuracy(d, p),
            "step_base_rate": _most(p),
            "wrong_found": (d[p == 0] < 0).double().mean().item(),
            "first_error_accuracy": (found == true).double().mean().item(),
            "first_error_base_rate": _most(true),
            **of_solutions(reduced, held_out, learned),
            **calibration.calibration(d, p).figures(),
            "length_correlation": calibration.pearson(reduced, lengths(held_out)),
        }

    def reduced(self, logits: Tensor) -> float:
        """The score of a solution with these steps (S,)."""
        chances: list[float] = logits.sigmoid().tolist()
        return scoring.reduce_steps(chances, self.meaning.reduce)


def of_solutions(reduced: Tensor, held_out: Dataset, learned: Dataset) -> dict[str, float]:
    """How often the scores (N,) of the held-out solutions, the most frequent verdict, and the length judge are right.

    Of those whose verdict can be known; nothing if there are none.
    """
    right, shown = (torch.tensor(side["right"][:]) for side in (held_out, learned))
    decided, example = right != IGNORED, shown != IGNORED
    if not decided.any():
        return {}
    solved = right[decided]
    told = {
        "solution_accuracy": ((reduced[decided] > 0.5) == solved.bool()).double().mean().item(),
        "solution_base_rate": _most(solved),
    }
    if example.any():
        limit = calibration.length_limit(lengths(learned)[example], shown[example])
        told["length_accuracy"] = limit.accuracy(lengths(held_out)[decided], solved)
    return told


def first_below(wrong: Tensor) -> Tensor:
    """Index of the first wrong step in each row (N, S); S if there is none."""
    steps = wrong.shape[1]
    return torch.where(wrong.any(1), wrong.long().argmax(1), steps)


def _most(values: Tensor) -> float:
    """Share of the most frequent value: what a judge gets right that always says the same."""
    _, counts = values.unique(return_counts=True)
    return float(counts.max()) / len(values)


def run(launch: Launch, spec: ProcessRewardSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)  # draws the new head
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start)
    model = networks.load_to_train(start, spec.weights, task="TOKEN_CLS", heads=2)
    if model.config.num_labels != 2:
        raise SpecCannotWork(
            f"the model has {model.config.num_labels} outputs per token, and right and wrong are two",
            remedy="Start from a language model, or from a process reward model.",
            field="base_model",
        )
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    networks.silence_dropout(model)
    encode = partial(graded.solutions, separator=spec.separator, first_error_only=spec.first_error_only)
    prepared = rows.prepare(launch, tokenizer, encode)
    model.config.id2label, model.config.label2id = {0: "wrong", 1: "right"}, {"wrong": 0, "right": 1}
    pad = int(tokenizer.pad_token_id)

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {
            **inputs(batch, pad),
            "ends": padded([row["ends"] for row in batch], _NOWHERE),  # (B, S)
            "labels": padded([row["labels"] for row in batch], IGNORED),  # (B, S)
        }

    trainer = ProcessReward(
        model,
        args=RewardConfig(**training.arguments(launch, prepared), remove_unused_columns=False),
        prepared=prepared,
        collate=collate,
        tokenizer=tokenizer,
        peft_config=networks.lora_config(spec.weights, task="TOKEN_CLS"),
    )
    trainer.meaning = StepsMeaning(separator=spec.separator, reduce=spec.reduce)
    training.carry_out(launch, report, stop, trainer, prepared, _scored(trainer, launch, prepared, encode))


def _scored(trainer: ProcessReward, launch: Launch, prepared: rows.Prepared, encode: rows.Encode) -> training.Show:
    """The first held-out solutions with the score of every step."""
    tokenizer: Any = trainer.processing_class
    encoder = Encoder(tokenizer, launch.spec.max_length)
    shown = []
    for row in prepared.examples[: launch.spec.evaluation.completions]:
        columns = encode(encoder, [row])
        if columns["ends"]:
            whole, _ = graded.steps_read(row["completions"], row["labels"], trainer.meaning.separator)
            ended = len(columns["ends"][0]) == len(whole)
            shown.append((row, columns["input_ids"][0], columns["ends"][0], columns["prompt_tokens"][0], ended))

    def show() -> list[Completion]:
        model = trainer.accelerator.unwrap_model(trainer.model)
        batch_size = trainer.args.per_device_eval_batch_size
        found = dict(scoring.outputs(model, [ids for _, ids, *_ in shown], tokenizer.pad_token_id, batch_size))
        samples = []
        for index, (row, ids, ends, prompt_tokens, ended) in enumerate(shown):
            logits = scoring.step_logits(found[index][ends])  # (S,)
            steps = {f"step {n}": told(chance) for n, chance in enumerate(logits.sigmoid().tolist(), 1)}
            samples.append(
                Completion(
                    prompt=rows.readable(row["prompt"]),
                    completion=trainer.meaning.separator.join(row["completions"]),
                    tokens=len(ids) - prompt_tokens,
                    ended=ended,
                    rewards={"score": told(trainer.reduced(logits))} | steps,
                )
            )
        return samples

    return show
