"""Distances between a sample's features scaled to length one: factor and knowledge transfer."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.norms import check_power, length, unit
from understudy.objectives.reduction import reduce, same_shape
from understudy.objectives.shapes import pair


@card("maps", invariances=("scale", "sample scale"))
def factor_transfer(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    power: float = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Distance between unit factors, f = F / |F|_2 over a whole sample: |f_s - f_t|_p.

    Args:
        student: the translator's factors [B, ...].
        teacher: the paraphraser's factors, the same shape; detached.
        power: p. With p = 1 the absolute differences are averaged over a sample's elements (the published weight
            1000 goes with that); any other p gives the norm itself.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    A zero factor stays zero and gets no gradient (torchdistill: NaN).

    Source: Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS
    2018, and the authors' code for p = 1.

    Raises:
        ValueError: shapes differ, or p is below 1.
    """
    return _unit_distance(student, teacher, 2.0, power, weight, reduction)


@card("maps", invariances=("scale", "sample scale"))
def knowledge_translation(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    power: float = 1.0,
    norm_power: float = 2.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Knowledge translation (KTAAD): |F_s / |F_s|_q - F_t / |F_t|_q|_p over a whole sample.

    Args:
        student: the feature adapter's output [B, ...].
        teacher: the teacher's autoencoder code, the same shape; detached.
        power: p. With p = 1 the absolute differences are averaged over a sample's elements; any other p gives the
            norm itself.
        norm_power: q.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    A zero sample stays zero and gets no gradient (torchdistill: NaN).

    Source: He et al., "Knowledge Adaptation for Efficient Semantic Segmentation", CVPR 2019; the mean for p = 1 is
    torchdistill's. The relational half of the method is `affinity`.

    Raises:
        ValueError: shapes differ, or p or q is below 1.
    """
    return _unit_distance(student, teacher, norm_power, power, weight, reduction)


def _unit_distance(
    student: torch.Tensor,
    teacher: torch.Tensor,
    norm_power: float,
    power: float,
    weight: torch.Tensor | None,
    reduction: str,
) -> torch.Tensor:
    check_power(power)
    same_shape(student, teacher, "factors")
    student, teacher = pair(student, teacher, weight)
    ours, theirs = unit(student.flatten(1), norm_power), unit(teacher.flatten(1), norm_power)
    if power == 1:
        return reduce((ours - theirs).abs().mean(dim=1), weight, reduction)
    return reduce(length(ours - theirs, power), weight, reduction)
