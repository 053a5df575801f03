"""Affinity between the positions of a feature map."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.feature.gram import gram_products
from understudy.objectives.norms import safe_sqrt, unit
from understudy.objectives.reduction import reduce
from understudy.objectives.shapes import pair


@card("maps", invariances=("scale", "sample scale", "channel permutation"), widths_differ=True)
def affinity(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    official: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Affinity distillation: |A_s - A_t|_F / (H W) per sample, A_ij the cosine between positions i and j.

    Args:
        student: [B, C_s, H, W] (or [B, C, positions]).
        teacher: [B, C_t, H, W]; detached. Positions must be equal; channels too with `official`.
        official: True for torchdistill's value: affinities channel by channel, A^c = f^c f^c^T / (H W) for the unit
            vector f^c of channel c over the positions, and the sum over channels of |A^c_s - A^c_t|_F.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    No (H W) x (H W) matrix is made when there are more positions than channels, and none at all with `official`,
    where each norm has the closed form |f f^T - g g^T|_F^2 = (|f - g|^2 |f + g|^2 + (|f|^2 - |g|^2)^2) / 2. A
    position (channel) that is all zeros has no affinities and gets no gradient; neither do equal maps.

    Source: He et al., "Knowledge Adaptation for Efficient Semantic Segmentation", CVPR 2019. The division by the
    number of positions, torchdistill's, makes the value independent of the map's size.

    Raises:
        ValueError: batch or spatial sizes differ, or channels with `official`.
    """
    same = student.dim() > 2 and student.shape[2:] == teacher.shape[2:]
    if not same or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student feature maps have shape {tuple(student.shape)} and teacher feature maps {tuple(teacher.shape)}; "
            "both must be [B, C, positions ...] with equal batches and positions"
        )
    if official and student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"student feature maps have shape {tuple(student.shape)} and teacher feature maps {tuple(teacher.shape)}; "
            "with official=True their channels must be equal"
        )
    ours, theirs = (side.flatten(2) for side in pair(student, teacher, weight))
    if official:
        return reduce(_by_channel(ours, theirs), weight, reduction)
    own, cross, other = gram_products(unit(ours.mT), unit(theirs.mT))
    return reduce(safe_sqrt(own + other - 2 * cross) / ours.shape[2], weight, reduction)


def _by_channel(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    f, g = unit(ours), unit(theirs)
    apart = (f - g).square().sum(dim=2) * (f + g).square().sum(dim=2)
    # Lengths are 1, or 0 for a dead channel: constants.
    lengths = (f.detach().square().sum(dim=2) - g.square().sum(dim=2)).square()
    return safe_sqrt((apart + lengths) / 2).sum(dim=1) / ours.shape[2]
