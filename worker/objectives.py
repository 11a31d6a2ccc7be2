"""The mathematics of alignment as pure functions: what TRL computes for us, in a form that can be read and checked.

TRL runs the training loops; these are the oracle its losses are tested against (``tests/worker/test_objectives.py``),
and so an alarm at each of its upgrades. B is batch, T tokens, V vocabulary. Log-probabilities are natural.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

IGNORED = -100
"""Label of a token that does not count."""


def token_logps(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log π(token | before) of every token that counts (0 elsewhere), and which ones count: both (B, T-1).

    *logits* (B, T, V) at position t predict the token at t+1, so the first token has no probability.
    """
    targets = labels[:, 1:]  # (B, T-1)
    counts = targets != IGNORED
    logps = logits[:, :-1].log_softmax(-1)  # (B, T-1, V)
    picked = logps.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, T-1)
    return torch.where(counts, picked, torch.zeros_like(picked)), counts


def sft_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """−(1/N) Σ log π(token | before), over the N tokens of the batch that count."""
    logps, counts = token_logps(logits, labels)
    return -logps.sum() / counts.sum()


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
