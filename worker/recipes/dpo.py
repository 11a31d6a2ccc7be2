"""Direct preference optimization: a policy from pairs, without a reward model.

With the log-ratios h = log π(chosen)/π_ref(chosen) − log π(rejected)/π_ref(rejected), summed over completion tokens:

    sigmoid  −(1−ε)·log σ(β·h) − ε·log σ(−β·h) [+ w·(−log π(chosen) per token)]    Rafailov et al. 2023, Eq. 7
    IPO      (h̄ − 1/2β)², h̄ with log-ratios averaged over tokens                   Azar et al. 2023, Eq. 17

The reference π_ref is exactly the model the run starts from: loaded again for full weights, the adapter switched off
for LoRA. Columns in: ``prompt``, ``chosen``, ``rejected``. Events out: ``rewards/{chosen,rejected,margins,accuracies}``
(β times the log-ratios), ``logps/*``, ``loss``, their ``eval_`` twins, and held-out completions (greedy).

Differs from the IPO paper: averaged instead of summed log-ratios, as its authors advise. Left out: TRL's other losses.
"""

from typing import TYPE_CHECKING, Any, assert_never

import torch
from trl import DPOConfig, DPOTrainer

from backend.runs.specs import IPO, DPOSpec, FullWeights, Launch, Sigmoid
from worker import networks, rows
from worker.recipes import training
from worker.recipes.show import written

if TYPE_CHECKING:
    from worker.report import Report, Stop


class DPO(training.Frame, DPOTrainer):
    """TRL's trainer in our frame."""


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
        case IPO():
            return {"loss_type": ["ipo"]}
        case unknown:
            assert_never(unknown)


def run(launch: Launch, spec: DPOSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start)
    dtype = networks.working_dtype(spec.weights)
    model = networks.load(start, dtype=dtype)
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    networks.silence_dropout(model)
    prepared = rows.prepare(launch, tokenizer, rows.comparisons)
    trainer = DPO(
        model,
        ref_model=networks.load(start, dtype=dtype) if isinstance(spec.weights, FullWeights) else None,
        args=DPOConfig(
            **training.arguments(launch, prepared), **loss_arguments(spec), beta=spec.beta, disable_dropout=False
        ),
        train_dataset=prepared.train,
        eval_dataset=prepared.held_out,
        processing_class=tokenizer,
        peft_config=networks.lora_config(spec.weights),
    )
    training.carry_out(launch, report, stop, trainer, prepared, written(launch, trainer, prepared, stop))
