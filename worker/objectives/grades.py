"""Losses on grades: scores of attributes, right and wrong steps."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from worker.objectives.likelihood import IGNORED


def attribute_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """(r_k − s_k)² for each text and attribute (B, K), 0 where the score is not known (not a number).

    *targets* are standardized, so that attributes on different scales weigh the same. Wang et al. 2024, arXiv:2406.12845,
    Sec. 3.1 (regression on attributes); Wang et al. 2023, arXiv:2311.09528.
    """
    known = ~targets.isnan()
    return torch.where(known, outputs - targets.nan_to_num(), 0.0).square()


def step_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """−log σ(l) of a right step, −log σ(−l) of a wrong one, for each step (B, S); 0 where the label is ignored.

    Lightman et al. 2023, arXiv:2305.20050, Sec. 2.6: the step's last token says whether the step is right.
    """
    counts = labels != IGNORED
    losses = binary_cross_entropy_with_logits(logits, (labels == 1).to(logits.dtype), reduction="none")
    return torch.where(counts, losses, 0.0)
