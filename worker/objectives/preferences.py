"""Losses on preferences: pairs, thumbs, scores.

Of pairs, most are functions of h = log π(chosen)/π_ref(chosen) − log π(rejected)/π_ref(rejected), :func:`log_ratios`.
They return one loss for each pair, (B,); the mean is the caller's.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# --- reward models -----------------------------------------------------------------------------------------------


def reward_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    centering: float = 0,
    probability: Tensor | None = None,
) -> Tensor:
    """−p log σ(r_c − r_r − m) − (1−p) log σ(r_r − r_c + m) + λ(r_c + r_r)², mean over pairs (B,); p is 1 if not given.

    Bradley & Terry 1952; margin: Touvron et al. 2023, arXiv:2307.09288, Eq. 2; centering: Eisenstein et al. 2023,
    arXiv:2312.09244. The cross-entropy is least where σ(r_c − r_r − m) = p: without a margin a tie (p = 1/2) pulls the
    two scores together.
    """
    difference = chosen - rejected - (0 if margin is None else margin)  # (B,)
    losses = -logsigmoid(difference)
    if probability is not None:
        losses = soft(lambda d: -logsigmoid(d), difference, probability)
    return (losses + centering * (chosen + rejected) ** 2).mean()


# --- pairs, with a reference -------------------------------------------------------------------------------------


def log_ratios(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """The difference h = (log π − log π_ref)(chosen) − (log π − log π_ref)(rejected), summed over tokens; all (B,)."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo_loss(h: Tensor, *, beta: float, label_smoothing: float = 0) -> Tensor:
    """−(1−ε) log σ(βh) − ε log σ(−βh), (B,).

    Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; ε: Mitchell 2023, conservative DPO.
    """
    return -(1 - label_smoothing) * logsigmoid(beta * h) - label_smoothing * logsigmoid(-beta * h)


def ipo_loss(h: Tensor, *, beta: float) -> Tensor:
    """(h − 1/2β)², (B,), *h* with each log-ratio divided by its completion's number of tokens.

    Azar et al. 2023, arXiv:2310.12036, Eq. 17, with averages instead of sums as its authors advise.
    """
    return (h - 1 / (2 * beta)) ** 2


def hinge_loss(h: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 − βh), (B,): once βh is 1 a pair pushes no more.

    Zhao et al. 2023, arXiv:2305.10425, with δ = 1, on log-ratios as in Liu et al. 2023, arXiv:2309.06657.
    """
    return torch.relu(1 - beta * h)


def robust_loss(h: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """((1−ε)·L(h) − ε·L(−h)) / (1−2ε) with L(h) = −log σ(βh), (B,).

    Chowdhury et al. 2024, arXiv:2403.00409. Its mean over labels that are flipped with probability ε is the
    loss without flips: (1−ε)·robust(h) + ε·robust(−h) = L(h). Far on the right side it is negative.
    """
    kept, flipped = -logsigmoid(beta * h), -logsigmoid(-beta * h)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def soft(loss: Callable[[Tensor], Tensor], h: Tensor, probability: Tensor) -> Tensor:
    """p·L(h) + (1−p)·L(−h), (B,): a pair counts as p of what it says and 1−p of the opposite.

    For the sigmoid this is the cross-entropy of p and σ(βh), least where βh = logit p (Mitchell 2023; the soft labels of
    Furuta et al. 2024, arXiv:2409.06691); for IPO it is least where h = (2p−1)/2β. A tie, p = 1/2, pulls h to zero.
    """
    return probability * loss(h) + (1 - probability) * loss(-h)


# --- thumbs ------------------------------------------------------------------------------------------------------


def kto_reference_point(mismatched: Tensor) -> Tensor:
    """z_ref = max(0, mean of log π(y'|x)/π_ref(y'|x)), *mismatched* (B,) taken where y' answers another prompt than x.

    Ethayarajh et al. 2024, arXiv:2402.01306, Sec. 4.1: a biased, cheap estimate of KL(π ‖ π_ref) that nothing is
    learned through.
    """
    return mismatched.detach().mean().clamp(min=0)


def kto_loss(
    log_ratio: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1,
    undesirable_weight: float = 1,
) -> Tensor:
    """λ_D·(1 − σ(β(r − z))) for a thumb up, λ_U·(1 − σ(β(z − r))) for a thumb down; r is *log_ratio*, all (B,).

    Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8; λ_y itself, a constant, is left in so that the loss is not
    negative. Far from z on either side the gradient vanishes: what is hopeless or settled is left alone.
    """
    away = beta * (log_ratio - reference_point)  # (B,)
    up = desirable_weight * (1 - torch.sigmoid(away))
    down = undesirable_weight * (1 - torch.sigmoid(-away))
    return torch.where(desirable, up, down)


# --- pairs, without a reference ----------------------------------------------------------------------------------

_CERTAIN = -1e-6
"""A mean log-probability above this counts as this: the odds of certainty are infinite."""


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The log of odds(chosen)/odds(rejected), odds = P/(1−P) and P the geometric mean of token probabilities, (B,).

    Arguments are mean log-probabilities, as in the reference implementation: Hong et al. 2024, arXiv:2403.07691, Eq. 3–5.
    """
    return _log_odds(chosen) - _log_odds(rejected)


def _log_odds(logp: Tensor) -> Tensor:
    """The log of P/(1−P)."""
    logp = logp.float().clamp(max=_CERTAIN)
    return logp - torch.log(-torch.expm1(logp))


def orpo_loss(chosen: Tensor, rejected: Tensor, nll: Tensor, *, odds_weight: float) -> Tensor:
    """L_SFT − λ·log σ(log odds ratio), (B,); *nll* is L_SFT, (B,).

    Hong et al. 2024, arXiv:2403.07691, Eq. 6. Mean log-probabilities (B,) as in :func:`log_odds_ratio`.
    """
    return nll - odds_weight * logsigmoid(log_odds_ratio(chosen, rejected))


def simpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """−log σ(β·(chosen − rejected) − γ), (B,), of mean log-probabilities.

    Meng et al. 2024, arXiv:2405.14734, Eq. 6.
    """
    return -logsigmoid(beta * (chosen - rejected) - gamma)
