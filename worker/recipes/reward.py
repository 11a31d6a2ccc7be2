"""Reward model: a score r for a prompt with its completion, learned from comparisons.

    −p·log σ(r(chosen) − r(rejected) − margin) − (1−p)·log σ(margin − r(chosen) + r(rejected)) + λ·(r(chosen) + r(rejected))²

Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155; margin: Touvron et al. 2023, arXiv:2307.09288, Eq. 2;
centering: Eisenstein et al. 2023, arXiv:2312.09244. p is 1, or the share of annotators who preferred *chosen*: then a tie
(1/2) pulls both scores together. The score is read at the last token by a new linear head.

Columns in: ``prompt``, ``chosen``, ``rejected``, and ``margin`` and ``probability`` if asked for. Identical texts are left
out; so are ties, unless probabilities are learned from.
Events out: ``accuracy`` (ties are not asked, equal scores are half right), ``margin`` (the mean of r(chosen) − r(rejected)),
``mean_reward``, their ``eval_`` twins, calibration, the judge by length (:mod:`worker.calibration`), ``length_correlation``,
and held-out pairs, chosen first, each text with its score.

A step's loss is the mean over its passes of the means over their pairs, as in TRL: where an epoch ends in a smaller pass,
its pairs weigh more. An ensemble is several runs with several seeds; their scores become one in :mod:`worker.scoring`.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from backend.runs.events import Completion
from backend.runs.specs import Launch, RewardSpec
from worker import calibration, networks, objectives, rows, scoring
from worker.recipes import training
from worker.recipes.judging import Judge, lengths, told
from worker.recipes.reckoning import Compared
from worker.report import SpecCannotWork

if TYPE_CHECKING:
    from worker.report import Report, Stop


class Pairs(DataCollatorForPreference):
    """TRL's batches, with the probability that chosen is better."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Chosen texts, then rejected ones (2B, T)."""
        batch: dict[str, Any] = super().torch_call(examples)
        if "probability" in examples[0]:
            batch["probability"] = torch.tensor([example["probability"] for example in examples])  # (B,)
        return batch


class Reward(Judge, Compared, RewardTrainer):
    """TRL's trainer in our frame; its loss is replaced where there are probabilities."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["chosen_ids", "rejected_ids", "margin", "probability"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, or ours with probabilities; a held-out batch's scores are kept."""
        probability = inputs.pop("probability", None)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        chosen, rejected = outputs.logits.squeeze(-1).float().chunk(2)  # (B,) each
        if probability is not None:
            centering = self.args.center_rewards_coefficient or 0
            loss = objectives.reward_loss(chosen, rejected, inputs.get("margin"), centering, probability)
        if not model.training:
            self.keep(chosen=chosen, rejected=rejected)
            self.weigh(loss, len(chosen))
        elif probability is not None:
            every = self.accelerator.gather  # for_metrics would cut each pass of an epoch's last step
            right = calibration.accuracy(every((chosen - rejected).detach()), every(probability))
            self._metrics["train"]["accuracy"][-1] = right  # TRL asks ties, too
        return (loss, outputs) if return_outputs else loss

    def figures(self, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """Of the held-out pairs."""
        chosen, rejected = kept["chosen"], kept["rejected"]
        held_out = self.eval_dataset
        assert isinstance(held_out, Dataset)
        difference, p = chosen - rejected, self.probabilities(held_out)
        scores = torch.cat([chosen, rejected])
        texts = torch.cat([lengths(held_out, "chosen_ids"), lengths(held_out, "rejected_ids")])
        return {
            "accuracy": calibration.accuracy(difference, p),
            "margin": difference.mean().item(),
            "mean_reward": scores.mean().item(),
            "min_reward": scores.min().item(),
            "max_reward": scores.max().item(),
            **calibration.calibration(difference, p).figures(),
            **super().figures(kept),
            "length_correlation": calibration.pearson(scores, texts),
        }


def run(launch: Launch, spec: RewardSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)  # draws the new head
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start, task="SEQ_CLS")
    model = networks.load_to_train(start, spec.weights, task="SEQ_CLS")
    if model.config.num_labels != 1:
        raise SpecCannotWork(
            f"the model has {model.config.num_labels} outputs, and one score per text is learned",
            remedy="Start from a language model or a reward model with one output.",
            field="base_model",
        )
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    networks.silence_dropout(model)
    encode = partial(rows.scored_pairs, use_margin=spec.use_margin, use_probability=spec.use_probability)
    prepared = rows.prepare(launch, tokenizer, encode)
    trainer = Reward(
        model,
        args=RewardConfig(
            **training.arguments(launch, prepared),
            center_rewards_coefficient=spec.centering or None,
            disable_dropout=False,
        ),
        data_collator=Pairs(pad_token_id=int(tokenizer.pad_token_id)),
        train_dataset=prepared.train,
        eval_dataset=prepared.held_out,
        processing_class=tokenizer,
        peft_config=networks.lora_config(spec.weights, task="SEQ_CLS"),
    )
    training.carry_out(launch, report, stop, trainer, prepared, _scored(trainer, launch, prepared))


def _scored(trainer: Reward, launch: Launch, prepared: rows.Prepared) -> training.Show:
    """The first held-out pairs with their scores: as many texts as the spec asks completions for."""
    tokenizer: Any = trainer.processing_class
    encoder = rows.Encoder(tokenizer, launch.spec.max_length)
    texts = [
        (rows.readable(row["prompt"]), rows.readable(row[side]), encoder.pairs([row["prompt"]], [row[side]])[0])
        for row in prepared.examples[: launch.spec.evaluation.completions // 2]
        for side in ("chosen", "rejected")
    ]
    ids = [(pair.prompt + pair.completion)[: launch.spec.max_length] for _, _, pair in texts]

    def show() -> list[Completion]:
        if not texts:
            return []
        model = trainer.accelerator.unwrap_model(trainer.model)
        scores = scoring.text_outputs(model, ids, tokenizer.pad_token_id, trainer.args.per_device_eval_batch_size)
        return [
            Completion(
                prompt=prompt,
                completion=completion,
                tokens=len(pair.completion),
                ended=row[-1] == tokenizer.eos_token_id,
                rewards={"score": told(value)},
            )
            for (prompt, completion, pair), row, value in zip(texts, ids, scores[:, 0].tolist(), strict=True)
        ]

    return show
