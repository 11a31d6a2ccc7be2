"""Direct preference optimization: a policy from pairs, without a reward model.

With the log-ratios h = log π(chosen)/π_ref(chosen) − log π(rejected)/π_ref(rejected), summed over completion tokens:

    sigmoid  L(h) = −(1−ε)·log σ(β·h) − ε·log σ(−β·h) [+ w·(−log π(chosen) per token)]    Rafailov et al. 2023, Eq. 7
    IPO      (h̄ − 1/2β)², h̄ with log-ratios averaged over tokens                          Azar et al. 2023, Eq. 17
    hinge    max(0, 1 − β·h)                                                              Zhao et al. 2023
    robust   ((1−ε)·L(h) − ε·L(−h))/(1−2ε)                                                Chowdhury et al. 2024

Probabilities: with *use probability* a row counts as p of its pair and 1−p of the pair turned round, for every loss
and for the likelihood too: p·L(h) + (1−p)·L(−h). Ties: p = 1/2 pulls h to zero; without *use probability* they are
left out, and a pair with p < 1/2 changes sides. Pairs with identical completions are left out. All of it is said. Margins
in the rows are not read.

The reference π_ref is exactly the model the run starts from: beside every step, loaded again for full weights and the
adapter switched off for an adapter; or before the first step, once for every row, which saves the second copy and its
pass. A resumed run computes it again from the same start.

Columns in: ``prompt``, ``chosen``, ``rejected``, and ``probability`` if asked for. Events out:
``rewards/{chosen,rejected,margins,accuracies}`` (β times the log-ratios), ``logps/*``, ``loss``, their ``eval_`` twins,
what length alone says (``eval_length_accuracy``, ``eval_longer_accuracy``), and held-out completions (greedy). Accuracy
does not ask ties; with p < 1/2 the rejected side is the better one.

A step's loss is the mean over its passes of the means over their pairs, as in TRL: where an epoch ends in a smaller pass,
its pairs weigh more. Differs from the IPO paper: averaged instead of summed log-ratios, as its authors advise. Left out:
TRL's other losses.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

import torch
import torch.distributed as group
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from backend.runs.specs import IPO, DPOSpec, FullWeights, Hinge, Launch, Robust, Sigmoid
from worker import networks, objectives, ranks, rows
from worker.recipes import pairs, training
from worker.recipes.reckoning import Compared
from worker.recipes.show import written

if TYPE_CHECKING:
    from worker.report import Report, Stop


class DPO(Compared, DPOTrainer):
    """TRL's trainer in our frame; held-out figures are means over pairs."""

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)
        if not self.model.training:
            self.weigh(loss, len(inputs["input_ids"]) / 2)
        return loss

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Each process computes its share of the rows, and all get all of them.

        Ours, because TRL's leaves a trace in the random state (rows would come in another order than with the reference
        beside), and hands the numbers on in a file that the other processes do not find.
        """
        mine = list(range(ranks.rank(), len(dataset), ranks.world()))
        known: dict[int, tuple[float, float]] = {}
        for at in range(0, len(mine), batch_size):
            share = mine[at : at + batch_size]
            batch = self._prepare_inputs(self.data_collator([dataset[row] for row in share]))
            sides = self.compute_ref_log_probs(self.model, batch)
            known |= dict(zip(share, zip(*(side.tolist() for side in sides), strict=True), strict=True))
        shares: list[Any] = [known]
        if ranks.world() > 1:
            shares = [None] * ranks.world()
            group.all_gather_object(shares, known)
        known = {row: values for share in shares for row, values in share.items()}
        for column, side in (("ref_chosen_logps", 0), ("ref_rejected_logps", 1)):
            dataset = dataset.add_column(column, [known[row][side] for row in range(len(dataset))])
        return dataset


class SoftDPO(DPO):
    """The same with a probability for every row; the loss is ours."""

    _signature_columns: list[str]

    def __init__(self, *args: Any, spec: DPOSpec, processing_class: Any, **more: Any) -> None:
        self._spec = spec
        collator = _WithProbability(pad_token_id=processing_class.pad_token_id)
        super().__init__(*args, data_collator=collator, processing_class=processing_class, **more)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "probability"]

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """TRL's; it would hand the probabilities to the model."""
        known = {name: values for name, values in inputs.items() if name != "probability"}
        chosen, rejected = super().compute_ref_log_probs(model, known)
        return chosen, rejected

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Tensor:
        sides = pairs.passed(model, inputs)
        if self.precompute_ref_logps:
            references = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            references = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        judged = soft_judged(self._spec, sides.chosen, sides.rejected, *references, inputs["probability"])
        pairs.tell(self, inputs, sides, judged)
        return judged.loss


class _WithProbability(DataCollatorForPreference):
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["probability"] = torch.tensor([example["probability"] for example in examples])  # (B,)
        return batch


def soft_judged(
    spec: DPOSpec,
    chosen: pairs.Side,
    rejected: pairs.Side,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    probability: Tensor,
) -> pairs.Judged:
    """The spec's loss with each pair as p of itself and 1−p of itself turned round: p·L(h) + (1−p)·L(−h).

    Of the likelihood too: Σ (p·log π(chosen) + (1−p)·log π(rejected)) per token counted the same way.
    """
    ratios = chosen.logps - ref_chosen, rejected.logps - ref_rejected  # (B,) each
    h = ratios[0] - ratios[1]
    likelihood = 0.0
    match spec.loss:
        case Sigmoid(label_smoothing=flipped, sft_weight=likelihood):
            losses = objectives.soft(
                partial(objectives.dpo_loss, beta=spec.beta, label_smoothing=flipped), h, probability
            )
        case Robust(label_smoothing=flipped):
            losses = objectives.soft(
                partial(objectives.robust_loss, beta=spec.beta, label_smoothing=flipped), h, probability
            )
        case Hinge():
            losses = objectives.soft(partial(objectives.hinge_loss, beta=spec.beta), h, probability)
        case IPO():
            h = ratios[0] / chosen.tokens - ratios[1] / rejected.tokens
            losses = objectives.soft(partial(objectives.ipo_loss, beta=spec.beta), h, probability)
        case unknown:
            assert_never(unknown)
    loss = losses.mean()
    if likelihood:
        said = (probability * chosen.logps + (1 - probability) * rejected.logps).sum()
        tokens = (probability * chosen.tokens + (1 - probability) * rejected.tokens).sum()
        loss = loss - likelihood * said / tokens
    return pairs.Judged(loss, spec.beta * ratios[0], spec.beta * ratios[1])


def loss_arguments(spec: DPOSpec) -> dict[str, Any]:
    """The spec's loss in TRL's words: a weighted sum of its losses.

    TRL's ``sigmoid`` ignores ``label_smoothing``; its ``robust`` loss does not. With L = −log σ(βh) and
    L' = −log σ(−βh), robust is ((1−ε)L − εL')/(1−2ε), so (1−ε)L + εL' = 2(1−ε)·sigmoid − (1−2ε)·robust.
    """
    match spec.loss:
        case Sigmoid(label_smoothing=flipped, sft_weight=likelihood):
            weights = {"sigmoid": 2 * (1 - flipped), "robust": 2 * flipped - 1} if flipped else {"sigmoid": 1.0}
            if likelihood:
                weights["sft"] = likelihood
            return {
                "loss_type": list(weights),
                "loss_weights": list(weights.values()),
                "label_smoothing": flipped,
            }
        case Robust(label_smoothing=flipped):
            return {"loss_type": ["robust"], "label_smoothing": flipped}
        case Hinge():
            return {"loss_type": ["hinge"]}
        case IPO():
            return {"loss_type": ["ipo"]}
        case unknown:
            assert_never(unknown)


def run(launch: Launch, spec: DPOSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start)
    model = networks.load_to_train(start, spec.weights)
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    networks.silence_dropout(model)
    prepared = rows.prepare(launch, tokenizer, partial(rows.comparisons, use_probability=spec.use_probability))
    beside = spec.reference == "beside"
    trainer = (partial(SoftDPO, spec=spec) if spec.use_probability else DPO)(
        model,
        ref_model=networks.load(start) if beside and isinstance(spec.weights, FullWeights) else None,
        args=DPOConfig(
            **training.arguments(launch, prepared),
            **loss_arguments(spec),
            beta=spec.beta,
            disable_dropout=False,
            precompute_ref_log_probs=not beside,
        ),
        train_dataset=prepared.train,
        eval_dataset=prepared.held_out,
        processing_class=tokenizer,
        peft_config=networks.lora_config(spec.weights),
    )
    training.carry_out(launch, report, stop, trainer, prepared, written(launch, trainer, prepared, stop))
