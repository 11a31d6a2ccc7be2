"""The mathematics of alignment as pure functions: what the trainers compute, in a form that can be read and checked.

TRL runs most training loops; these are the oracle its losses are tested against (``tests/worker/objectives``), and so an
alarm at each of its upgrades; where TRL has no such loss, they are the loss. B is batch, T tokens, V vocabulary, G
completions per prompt. Log-probabilities are natural. ``likelihood``: of text; ``preferences``: of pairs and thumbs;
``grades``: of scores and steps; ``reinforcement``: advantages, divergences, clipped losses.
"""

from worker.objectives.grades import attribute_losses, step_losses
from worker.objectives.likelihood import IGNORED, sft_loss, token_logps
from worker.objectives.preferences import (
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    log_odds_ratio,
    log_ratios,
    orpo_loss,
    reward_loss,
    robust_loss,
    simpo_loss,
    soft,
)

__all__ = [
    "IGNORED",
    "attribute_losses",
    "dpo_loss",
    "hinge_loss",
    "ipo_loss",
    "kto_loss",
    "kto_reference_point",
    "log_odds_ratio",
    "log_ratios",
    "orpo_loss",
    "reward_loss",
    "robust_loss",
    "sft_loss",
    "simpo_loss",
    "soft",
    "step_losses",
    "token_logps",
]
