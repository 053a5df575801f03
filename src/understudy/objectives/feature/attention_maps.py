"""Attention transfer: where a feature map is active."""

from __future__ import annotations

from typing import Literal

import torch

from understudy.objectives.card import card
from understudy.objectives.norms import check_power, length, unit
from understudy.objectives.reduction import reduce
from understudy.objectives.shapes import check_choice, check_same_but, pair


@card("maps", invariances=("scale", "sample scale", "channel permutation"), widths_differ=True)
def attention_transfer(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    form: Literal["code", "paper"] = "code",
    power: float = 2.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Distance between unit attention maps q = Q / |Q|_2, where Q is the mean over channels of |F|^p at every position.

    Args:
        student: [B, C_s, H, W] (or [B, C_s, ...]).
        teacher: [B, C_t, H, W]; detached.
        form: "code": mean over positions of (q_s - q_t)^2. "paper": |q_s - q_t|_2.
        power: p, at least 1.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    The two forms differ by a square and a factor H W. The published weight 1000 goes with
    "code", which the authors' code and later benchmarks use.

    A map of zeros has no attention: q is zero and gets no gradient; "paper" has gradient 0 where the maps agree.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, equation 2 and the authors'
    code.

    Raises:
        ValueError: batch or spatial sizes differ, the power is below 1, or the form is unknown.
    """
    check_choice(form, ("code", "paper"), "form")
    check_power(power)
    check_same_but(student, teacher, 1, "feature maps")
    student, teacher = pair(student, teacher, weight)
    difference = _attention(student, power) - _attention(teacher, power)
    if form == "paper":
        return reduce(length(difference), weight, reduction)
    return reduce(difference.square().mean(dim=1), weight, reduction)


def _attention(features: torch.Tensor, power: float) -> torch.Tensor:
    magnitudes = features.square() if power == 2 else features.abs() ** power
    return unit(magnitudes.mean(dim=1).flatten(1))
