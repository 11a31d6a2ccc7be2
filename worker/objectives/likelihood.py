"""Log-probabilities of text, and the loss of imitation."""

import torch
from torch import Tensor

IGNORED = -100
"""Label of what does not count: a token, a step, a score that is not known."""


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
