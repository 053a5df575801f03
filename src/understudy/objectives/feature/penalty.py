"""A norm of the student's own features."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.norms import length
from understudy.objectives.reduction import in_float, reduce
from understudy.objectives.shapes import blank


@card("maps", teacher=False)
def norm_penalty(
    student: torch.Tensor,
    *,
    power: float = 1.0,
    official: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Norm |z|_p of each sample's features, for bottlenecks that are to be compressed.

    Args:
        student: features [B, ...].
        power: p, at least 1.
        official: True for torchdistill's value: one norm of the whole batch, which grows with the batch.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]). With `official` it must be "mean" and there are
            no weights.

    Source: torchdistill's `RegularizationLoss`. Deviation: a norm per sample, averaged, so that splitting a batch
    does not change the gradient.

    Raises:
        ValueError: p is below 1, or `official` is combined with weights or a reduction.
    """
    if official:
        if weight is not None or reduction != "mean":
            raise ValueError(
                "with official=True there is one norm for the batch: no weight and no reduction"
            )
        return length(in_float(student).flatten(), power)
    return reduce(length(blank(in_float(student), weight).flatten(1), power), weight, reduction)
