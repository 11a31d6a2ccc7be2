"""Reinforcement learning on text: divergences, advantages, clipped losses.

A completion's tokens are steps of an episode, its end the terminal state. Shapes: one row per completion, (B, T) per
token; *mask* is 1 at tokens that the policy wrote and that count, 0 at padding, wherever it is. A completion that
nobody could score has a row of zeros in its mask and leaves every mean.
"""

from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
Average = Literal["token", "completion", "constant"]
_TINY = 1e-8


# --- divergence from the reference -------------------------------------------------------------------------------


def kl_estimate(logps: Tensor, ref_logps: Tensor, estimator: Estimator) -> Tensor:
    """KL(π‖π_ref) of each token from the token that π sampled alone; same shape as *logps*.

    With ρ = log π − log π_ref: k1 = ρ, k2 = ρ²/2, k3 = e^(−ρ) − 1 + ρ. Schulman 2020, "Approximating KL Divergence".

    As a number k1 and k3 are unbiased (k3 ≥ 0 and steadier), k2 is off by a term of third order. What pulls the policy
    is another matter. In the reward, where nothing flows through it, k1 gives the gradient of the divergence; k2 and k3
    do not. As a loss k2 does, because E[ρ·∇log π] = ∇KL(π‖π_ref); k1 gives E[∇log π] = 0, no constraint at all, and k3
    gives E[(1 − π_ref/π)·∇log π] = ∇KL(π_ref‖π), another divergence with another optimum.
    ``tests/worker/objectives/test_bandit.py`` shows how far each ends from the best policy.
    """
    rho = logps - ref_logps
    match estimator:
        case "k1":
            return rho
        case "k2":
            return rho.square() / 2
        case "k3":
            return torch.expm1(-rho) + rho
        case unknown:
            assert_never(unknown)


def adaptive_beta(beta: float, kl: float, *, target: float, horizon: int, completions: int) -> float:
    """β·(1 + e·n/N) with e = clip(KL/target − 1, ±0.2): the next β. Ziegler et al. 2019, arXiv:1909.08593, Sec. 2.2.

    *kl* and *target* are nats per completion, n = *completions* since the last update, N = *horizon*; the paper's
    K_β = 0.1 is n/N. A horizon shorter than n counts as n: beyond 5 the next β would be negative, and divergence paid for.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * min(completions / horizon, 1))


# --- means over what counts --------------------------------------------------------------------------------------


def average(
    values: Tensor, mask: Tensor, over: Average = "token", *, length: int | None = None, total: Tensor | None = None
) -> Tensor:
    """One number from *values* (B, T).

    token        Σ over all tokens / number of tokens                                DAPO: arXiv:2503.14476, Eq. 12
    completion   mean over completions of the mean over their tokens                 GRPO: arXiv:2402.03300, Eq. 3
    constant     Σ over all tokens / (completions · *length*)                        Dr. GRPO: arXiv:2503.20783, Sec. 3

    *total* replaces the number of tokens, or of completions, of this batch by that of the whole optimizer step, so that
    the parts of a step add up to what the undivided step gives. Nothing to count gives 0.
    """
    kept = torch.where(mask.bool(), values, 0)  # not a product: what does not count may be NaN
    per_completion = mask.sum(1)  # (B,)
    counted = mask.sum() if over == "token" else (per_completion > 0).sum()
    divisor = (counted if total is None else total).clamp(min=1)
    match over:
        case "token":
            return kept.sum() / divisor
        case "completion":
            return (kept.sum(1) / per_completion.clamp(min=1)).sum() / divisor
        case "constant":
            if length is None:
                raise ValueError("a constant average needs its length")
            return kept.sum() / (divisor * length)
        case unknown:
            assert_never(unknown)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """(x − mean)/√(variance + 10⁻⁸) over what *mask* counts, 0 elsewhere; without *shift_mean* the mean is added back.

    The variance is the population's, as in Ziegler et al.'s code (Huang et al. 2024, arXiv:2403.17031). What is
    whitened without its mean keeps that mean: rewards that are all positive stay so.
    """
    mean = average(values, mask)
    variance = average((values - mean).square(), mask)
    whitened = (values - mean) * torch.rsqrt(variance + _TINY)
    return torch.where(mask.bool(), whitened if shift_mean else whitened + mean, 0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(return − value)/Var(return): 1 is a perfect prediction, 0 no better than a constant; may be negative."""

    def variance(x: Tensor) -> Tensor:
        return average((x - average(x, mask)).square(), mask)

    return 1 - variance(returns - values) / (variance(returns) + _TINY)


# --- advantages --------------------------------------------------------------------------------------------------


class Estimated(NamedTuple):
    """What GAE says of every token; 0 where the mask is."""

    advantages: Tensor
    """How much better the token was than the value predicted: (B, T)."""
    returns: Tensor
    """What the value should have predicted, advantage + value: (B, T)."""


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Estimated:
    """Â_t = δ_t + γλ·Â_{t+1} with δ_t = r_t + γ·V_{t+1} − V_t. Schulman et al. 2015, arXiv:1506.02438, Eq. 16.

    *rewards*, *values*, *mask*: (B, T), V_t being the value of the text before token t. After the last token that
    counts V and Â are 0: a completion that was cut is as terminal as one that ended, for the limit is part of the
    task. Tokens that do not count are skipped, as if they were not there.
    """
    kept = mask.bool()
    advantages = torch.zeros_like(values)
    ahead = torch.zeros_like(values[:, 0])  # Â of the next token that counts: (B,)
    value_ahead = torch.zeros_like(ahead)
    for t in reversed(range(values.size(1))):
        surprise = rewards[:, t] + gamma * value_ahead - values[:, t]
        ahead = torch.where(kept[:, t], surprise + gamma * lam * ahead, ahead)
        value_ahead = torch.where(kept[:, t], values[:, t], value_ahead)
        advantages[:, t] = torch.where(kept[:, t], ahead, 0)
    return Estimated(advantages, torch.where(kept, advantages + values, 0))


def group_advantages(rewards: Tensor, group_size: int, scale: Literal["group", "batch", "none"] = "group") -> Tensor:
    """(r − mean of the group) / standard deviation, of completions (B,), each prompt's G side by side.

    The deviation (with G − 1 below the line) is the group's, Shao et al. 2024, arXiv:2402.03300, Sec. 4.1.2, or the
    batch's, or there is none: Dr. GRPO, Liu et al. 2025, arXiv:2503.20783. Unscored completions (NaN) do not count in
    means and deviations, and stay NaN.
    """
    groups = rewards.view(-1, group_size)  # (prompts, G)
    centered = groups - groups.nanmean(1, keepdim=True)
    match scale:
        case "group":
            deviation = _deviation(groups, 1)
        case "batch":
            deviation = _deviation(groups.reshape(1, -1), 1)
        case "none":
            return centered.view(-1)
        case unknown:
            assert_never(unknown)
    return (centered / (deviation + 1e-4)).view(-1)  # TRL's summand: a group without spread gives 0


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """The reward minus the mean of the prompt's other completions; completions (B,), each prompt's G side by side.

    Ahmadian et al. 2024, arXiv:2402.14740. It is G/(G−1)·(r − mean): no completion is its own baseline, which
    makes it unbiased. Unscored completions (NaN) stay NaN; a completion left alone has nothing to compare with: 0.
    """
    groups = rewards.view(-1, group_size)  # (prompts, G)
    scored = (~groups.isnan()).sum(1, keepdim=True)  # (prompts, 1)
    centered = groups - groups.nanmean(1, keepdim=True)
    return (centered * scored / (scored - 1).clamp(min=1)).view(-1)


def batch_baseline(rewards: Tensor) -> Tensor:
    """(r − mean over the batch) / standard deviation of the batch, for completions (B,): REINFORCE with a baseline.

    Williams 1992; Hu 2025, arXiv:2501.03262. Unscored completions (NaN) do not count, and stay NaN.
    """
    return (rewards - rewards.nanmean()) / (_deviation(rewards, 0) + 1e-4)


def _deviation(values: Tensor, dim: int) -> Tensor:
    """Standard deviation with n − 1 below the line over what is not NaN; of fewer than two values 0."""
    count = (~values.isnan()).sum(dim, keepdim=True)
    squares = (values - values.nanmean(dim, keepdim=True)).square().nansum(dim, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt()


# --- losses ------------------------------------------------------------------------------------------------------


def importance(logps: Tensor, old_logps: Tensor, mask: Tensor, ratio: Literal["token", "sequence"] = "token") -> Tensor:
    """π/π_old of every token (B, T), or its geometric mean over the completion at each of its tokens.

    The mean is GSPO: Zheng et al. 2025, arXiv:2507.18071, Eq. 7.
    """
    change = torch.where(mask.bool(), logps - old_logps, 0)
    if ratio == "sequence":
        change = (change.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).expand_as(change)
    return change.exp()


class Clipped(NamedTuple):
    """A loss per token, and where the clip cut its gradient."""

    losses: Tensor
    """(B, T)."""
    clipped: Tensor
    """Whether the clip bounds the token, so that nothing pushes it: (B, T)."""


def clipped_losses(ratios: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> Clipped:
    """−min(w·Â, clip(w, 1 − ε_low, 1 + ε_high)·Â) of every token. Schulman et al. 2017, arXiv:1707.06347, Eq. 7.

    *advantages* are per token (B, T) or per completion (B, 1). A good token is pushed up to 1 + ε_high and a bad one
    down to 1 − ε_low; one that already moved the wrong way is pushed back without bound. ε_high > ε_low is DAPO's
    clip-higher: Yu et al. 2025, arXiv:2503.14476, Eq. 10.
    """
    free = ratios * advantages
    bounded = ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    return Clipped(-torch.min(free, bounded), bounded < free)


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio: Literal["token", "sequence"] = "token",
    over: Average = "token",
    length: int | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """:func:`clipped_losses` of :func:`importance`, as :func:`average` takes the mean."""
    ratios = importance(logps, old_logps, mask, ratio)
    losses = clipped_losses(ratios, advantages, clip_low=clip_low, clip_high=clip_high).losses
    return average(losses, mask, over, length=length, total=total)


def clipped_value_losses(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Clipped:
    """½·max((V − R)², (clip(V, V_old ± ε) − R)²) of every token: (B, T).

    A value learns nothing more once it went ε towards its return, but is pulled back from the other side. Not in the
    paper of PPO, but in its code, with the ½: Engstrom et al. 2020, arXiv:2005.12729, Sec. 3.
    """
    free = (values - returns).square()
    bounded = (torch.clamp(values, old_values - clip, old_values + clip) - returns).square()
    return Clipped(torch.max(free, bounded) / 2, bounded > free)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float, total: Tensor | None = None
) -> Tensor:
    """:func:`clipped_value_losses`, mean over tokens."""
    return average(clipped_value_losses(values, old_values, returns, clip=clip).losses, mask, total=total)
