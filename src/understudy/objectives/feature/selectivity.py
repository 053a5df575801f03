"""Neuron selectivity transfer: the distribution of channels as patterns over positions."""

from __future__ import annotations

from typing import Literal

import torch

from understudy.objectives.card import card
from understudy.objectives.feature.gram import gram_products
from understudy.objectives.norms import floor_at_zero, unit
from understudy.objectives.reduction import reduce
from understudy.objectives.shapes import check_choice, check_same_but, pair


@card("maps", invariances=("scale", "sample scale", "channel permutation"), widths_differ=True)
def nst(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    kernel: Literal["polynomial", "linear", "gaussian"] = "polynomial",
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Squared maximum mean discrepancy between the channels of two maps, each channel a unit vector over the positions.

    Equation: mean_ij k(t_i, t_j) + mean_ij k(s_i, s_j) - 2 mean_ij k(s_i, t_j), per sample.

    Args:
        student: [B, C_s, H, W] (or [B, C_s, ...]).
        teacher: [B, C_t, H, W]; detached.
        kernel: "polynomial", (x.y)^2; "linear", x.y; "gaussian", exp(-|x - y|^2 / (2 sigma^2)) with sigma^2 the
            mean squared distance between a student's and a teacher's channel, which is part of the function and
            differentiated with it.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    A dead channel (all zeros) stays zero and gets no gradient. No [C, C, H W] tensor is made: the polynomial kernel
    needs Gram matrices over channels or over positions, whichever are smaller, and the linear one only the mean
    channels.

    Source: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017. The
    published weight 50 (mdistiller, RepDistiller) goes with the polynomial kernel.

    Raises:
        ValueError: batch or spatial sizes differ, or the kernel is unknown.
    """
    check_choice(kernel, ("polynomial", "linear", "gaussian"), "kernel")
    check_same_but(student, teacher, 1, "feature maps")
    student, teacher = pair(student, teacher, weight)
    ours, theirs = unit(student.flatten(2)), unit(teacher.flatten(2))
    if kernel == "linear":
        values = (ours.mean(dim=1) - theirs.mean(dim=1)).square().sum(dim=1)
    elif kernel == "polynomial":
        # (x.y)^2 summed over pairs of channels is the inner product of the Gram matrices over positions.
        own, cross, other = gram_products(
            ours.mT / ours.shape[1] ** 0.5, theirs.mT / theirs.shape[1] ** 0.5
        )
        values = floor_at_zero(own + other - 2 * cross)
    else:
        values = _gaussian(ours, theirs)
    return reduce(values, weight, reduction)


def _gaussian(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    crossing = _squared_distances(ours, theirs)
    spread = crossing.mean(dim=(1, 2), keepdim=True)
    spread = 2 * torch.where(spread <= 0, torch.ones_like(spread), spread)

    def mean(distances: torch.Tensor) -> torch.Tensor:
        return torch.exp(-distances / spread).mean(dim=(1, 2))

    own, other = _squared_distances(ours, ours), _squared_distances(theirs, theirs)
    return floor_at_zero(mean(own) + mean(other) - 2 * mean(crossing))


def _squared_distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    squares = one.square().sum(dim=2).unsqueeze(2) + other.square().sum(dim=2).unsqueeze(1)
    return (squares - 2 * one @ other.mT).clamp_min(0)
