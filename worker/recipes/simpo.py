"""Simple preference optimization: pairs by the mean log-probability of their tokens, without a reference.

    −log σ(β·(log π(chosen)/|chosen| − log π(rejected)/|rejected|) − γ) [+ w·(−log π(chosen) per token)]

Meng et al. 2024, arXiv:2405.14734, Eq. 6; the added likelihood is CPO's (Xu et al. 2024, arXiv:2401.08417, Eq. 5), and
without a reference it is what keeps the text well-formed. Like the first term it is averaged within a completion, then
over pairs, so that it does not matter how a step's rows are spread over passes and processes.

Columns in: ``prompt``, ``chosen``, ``rejected``; a tie is left out, a pair with p < 1/2 changes sides. Events out:
``rewards/{chosen,rejected,margins,accuracies}`` (β times the mean log-probabilities, so that γ is a margin of theirs),
``nll_loss``, ``logps/*``, ``entropy``, ``loss``, their ``eval_`` twins, and held-out completions (greedy).

Ours, because TRL keeps it only as an experiment (CPO with the loss ``simpo``).
"""

from functools import partial
from typing import TYPE_CHECKING

from backend.runs.specs import Launch, SimPOSpec
from worker import objectives
from worker.recipes import pairs

if TYPE_CHECKING:
    from worker.report import Report, Stop


def judged(spec: SimPOSpec, chosen: pairs.Side, rejected: pairs.Side) -> pairs.Judged:
    """The loss of a batch."""
    nll = -chosen.mean  # (B,)
    losses = objectives.simpo_loss(chosen.mean, rejected.mean, beta=spec.beta, gamma=spec.gamma)  # (B,)
    return pairs.Judged(
        (losses + spec.sft_weight * nll).mean(),
        spec.beta * chosen.mean,
        spec.beta * rejected.mean,
        {"nll_loss": nll},
    )


def run(launch: Launch, spec: SimPOSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    pairs.carry_out(launch, partial(judged, spec), report, stop)
