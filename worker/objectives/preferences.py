"""Losses on preferences: pairs, thumbs, scores."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def reward_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, centering: float = 0) -> Tensor:
    """−log σ(r_c − r_r − m) + λ(r_c + r_r)², mean over pairs (B,).

    Bradley & Terry 1952; margin: Touvron et al. 2023, arXiv:2307.09288, Eq. 2; centering: Eisenstein et al. 2023,
    arXiv:2312.09244.
    """
    difference = chosen - rejected - (0 if margin is None else margin)  # (B,)
    return (-logsigmoid(difference) + centering * (chosen + rejected) ** 2).mean()


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0,
) -> Tensor:
    """−(1−ε) log σ(βh) − ε log σ(−βh) with h = (log π − log π_ref)(chosen) − (log π − log π_ref)(rejected).

    Arguments are log-probabilities summed over the completion (B,); the mean over pairs is returned.
    Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; ε: Mitchell 2023, conservative DPO.
    """
    h = (chosen - ref_chosen) - (rejected - ref_rejected)  # (B,)
    return (-(1 - label_smoothing) * logsigmoid(beta * h) - label_smoothing * logsigmoid(-beta * h)).mean()


def ipo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    *,
    beta: float,
) -> Tensor:
    """(h̄ − 1/2β)², h̄ with each log-ratio divided by its completion's number of tokens; mean over pairs (B,).

    Azar et al. 2023, arXiv:2310.12036, Eq. 17, with averages instead of sums as its authors advise.
    """
    h = (chosen - ref_chosen) / chosen_tokens - (rejected - ref_rejected) / rejected_tokens  # (B,)
    return ((h - 1 / (2 * beta)) ** 2).mean()
