"""Odds ratio preference optimization: imitate the chosen completion and part it from the rejected, without a reference.

    −log π(chosen) per token − λ·log σ(log odds(chosen)/odds(rejected))       Hong et al. 2024, arXiv:2403.07691, Eq. 6

odds = P/(1−P) with P the geometric mean of a completion's token probabilities (Eq. 3–5). Both terms are averaged within a
completion, then over pairs, so that it does not matter how a step's rows are spread over passes and processes.

Columns in: ``prompt``, ``chosen``, ``rejected``; a tie is left out, a pair with p < 1/2 changes sides. Events out:
``rewards/{chosen,rejected,margins,accuracies}`` (λ times the mean log-probabilities), ``nll_loss``, ``log_odds_ratio``
(the mean of log σ(…)), ``log_odds_chosen`` (the mean of what is in it), ``logps/*``, ``entropy``, ``loss``, their
``eval_`` twins, and held-out completions (greedy).

Differs from the reference implementation and TRL's: they average the first term over all tokens of a batch, the prompt's
included; here it is the paper's expectation over pairs. Ours, because TRL keeps it only as an experiment.
"""

from functools import partial
from typing import TYPE_CHECKING

from torch.nn.functional import logsigmoid

from backend.runs.specs import Launch, ORPOSpec
from worker import objectives
from worker.recipes import pairs

if TYPE_CHECKING:
    from worker.report import Report, Stop


def judged(spec: ORPOSpec, chosen: pairs.Side, rejected: pairs.Side) -> pairs.Judged:
    """The loss of a batch."""
    nll = -chosen.mean  # (B,)
    log_odds = objectives.log_odds_ratio(chosen.mean, rejected.mean)  # (B,)
    return pairs.Judged(
        objectives.orpo_loss(chosen.mean, rejected.mean, nll, odds_weight=spec.odds_weight).mean(),
        spec.odds_weight * chosen.mean,
        spec.odds_weight * rejected.mean,
        {"nll_loss": nll, "log_odds_ratio": logsigmoid(log_odds), "log_odds_chosen": log_odds},
    )


def run(launch: Launch, spec: ORPOSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    pairs.carry_out(launch, partial(judged, spec), report, stop)
