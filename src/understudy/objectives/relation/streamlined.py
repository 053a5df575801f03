"""Streamlined knowledge distillation: instances, and the direction of their relations."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.norms import safe_sqrt, unit
from understudy.objectives.relation.pairs import batch_rows, pair_weights
from understudy.objectives.response import kd
from understudy.objectives.shapes import divisor


@card(
    "logits",
    invariances=("scale", "sample scale"),
    widths_differ=True,
    coupled=True,
    smallest_batch=2,
)
def skd_direction(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    tikhonov: float = 0.1,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mahalanobis length of the difference of cosine matrices: mean_i sqrt(D_i^T (cov(D) + lambda I)^-1 D_i).

    Args:
        student: logits (or features) [B, C].
        teacher: logits [B, C']; detached.
        tikhonov: lambda > 0.
        weight: weights or mask [B]; a sample of weight 0 is neither a row nor a column of D.

    Returns:
        One number, the mean over valid samples. Coupled: D [B, B] is the difference of the matrices of cosines
        between the samples of a batch, and cov(D) the unbiased covariance of its rows. A split batch gives another
        value, and there is no reduction.

    The length is |L^-1 D_i| with L the Cholesky factor; where D_i = 0, as at student = teacher, its gradient is 0
    (torchdistill: NaN).

    Source: Jeong, Lee and Choi, "Streamlined Knowledge Distillation", CVPR 2026, L_DIR.

    Raises:
        ValueError: batch sizes differ, the batch has one sample, or lambda is not positive.
    """
    if not tikhonov > 0:
        raise ValueError(f"tikhonov is {tikhonov}; it must be greater than 0")
    ours, theirs, share = batch_rows(
        student, teacher, weight, needed=2, why="a covariance over the batch needs", what="logits"
    )
    ours, theirs = unit(ours), unit(theirs)
    difference = (ours @ ours.mT - theirs @ theirs.mT) * (pair_weights(share) != 0)
    total = share.sum()
    centred = difference - (share @ difference) / divisor(total)
    # Unbiased under weights of any scale; B - 1 without weights.
    freedom = divisor(total - share.square().sum() / divisor(total))
    covariance = (centred.mT * share) @ centred / freedom
    ridge = tikhonov * torch.eye(len(share), dtype=share.dtype, device=share.device)
    factor = torch.linalg.cholesky(covariance + ridge)
    whitened = torch.linalg.solve_triangular(factor, difference.mT, upper=False)
    lengths = safe_sqrt(whitened.square().sum(dim=0))
    return (share * lengths).sum() / divisor(total)


@card("logits", invariances=("shift",), masked_classes=True)
def skd_instance(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 4.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """KL(softmax(t / T) || softmax(s / T)) without the factor T^2, in nats.

    Args:
        student: logits [..., C].
        teacher: logits [..., C]; detached.
        temperature: T > 0.
        weight: weights or mask over the leading dimensions.
        reduction: "mean" over valid elements, "sum" or "none".

    It is `kd` divided by T^2, as the paper's weights suppose. Its gradient falls with T^2: prefer `kd` where the
    temperature is tuned.

    Source: Jeong, Lee and Choi, "Streamlined Knowledge Distillation", CVPR 2026, L_INS.

    Raises:
        ValueError: shapes differ, or T is not positive.
    """
    loss = kd(student, teacher, temperature=temperature, weight=weight, reduction=reduction)
    return loss / temperature**2
