"""DIST: correlation of the softened probabilities instead of their divergence."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import logit_pair, soften
from understudy.objectives.norms import length
from understudy.objectives.shapes import divisor, sample_weights


@card("logits", invariances=("shift",), coupled=True, temperature_power=2)
def dist(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    epsilon: float = 1e-8,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """T^2 * [beta * (1 - mean over samples of r_i) + gamma * (1 - mean over classes of r_c)].

    With the probabilities softmax(z / T) of student and teacher as [B, C] matrices, r_i is the Pearson correlation
    of their rows and r_c that of their columns.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; detached.
        beta: weight of the relations between classes (rows).
        gamma: weight of the relations between samples (columns).
        temperature: T > 0.
        epsilon: least length of a centred vector; a shorter one counts as this long. A constant row or column, as all
            are in a batch of one sample or with one class, correlates with nothing (r = 0).
        weight: weights or mask [B]; the means over samples, inside r_c too, are weighted.

    Returns:
        One number. Coupled: columns are compared over the batch, so a split batch gives another value, and there is
        no reduction.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022; epsilon as in
    torchdistill (the authors add it to the product of the lengths, so that student = teacher is not quite 0).

    Raises:
        ValueError: shapes differ or are not [B, C], T is not positive, or the weight does not fit.
    """
    if student.dim() != 2:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)} and teacher logits {tuple(teacher.shape)}; "
            "both must be [B, C]"
        )
    student, teacher = logit_pair(student, teacher, weight)
    share = sample_weights(weight, student).unsqueeze(1)
    total = share.sum()
    q, p = soften(student, temperature).softmax(dim=1), soften(teacher, temperature).softmax(dim=1)
    rows = _correlation(q - q.mean(dim=1, keepdim=True), p - p.mean(dim=1, keepdim=True), epsilon)
    q, p = (share.sqrt() * (each - (share * each).sum(dim=0) / divisor(total)) for each in (q, p))
    columns = _correlation(q.mT, p.mT, epsilon)
    between_classes = 1 - (share.squeeze(1) * rows).sum() / divisor(total)
    loss = beta * between_classes + gamma * (1 - columns.mean())
    return temperature * temperature * torch.where(total > 0, loss, 0.0)


def _correlation(ours: torch.Tensor, theirs: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return the cosine of centred vectors over the last dimension."""
    lengths = length(ours).clamp_min(epsilon) * length(theirs).clamp_min(epsilon)
    return (ours * theirs).sum(dim=-1) / lengths
