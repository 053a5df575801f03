"""The one way in which objectives average: over valid elements."""

from __future__ import annotations

import torch


def reduce(loss: torch.Tensor, weight: torch.Tensor | None, reduction: str) -> torch.Tensor:
    """Reduce per-element losses.

    Args:
        loss: one value per element, any shape.
        weight: weights or a mask, broadcastable to `loss`; None for all ones.
        reduction: "mean" (sum of w * l over sum of w; 0 when no element is valid), "sum" or "none".

    An element of weight 0 contributes nothing, even where its loss is not finite.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is '{reduction}'; it must be 'mean', 'sum' or 'none'")
    if weight is None:
        if reduction == "none":
            return loss
        return loss.sum() if reduction == "sum" else loss.mean()
    weight = weight.to(loss.dtype)
    try:
        weight = weight.expand_as(loss)
    except RuntimeError as error:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, which does not fit losses of shape {tuple(loss.shape)}"
        ) from error
    weighted = loss.masked_fill(weight == 0, 0.0) * weight
    if reduction == "none":
        return weighted
    total = weighted.sum()
    if reduction == "sum":
        return total
    count = weight.sum()
    return total / (count + (count == 0))


def in_float(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32 or better."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def same_shape(student: torch.Tensor, teacher: torch.Tensor, what: str = "logits") -> None:
    """Refuse tensors whose shapes differ, naming both."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {what} have shape {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)}; "
            "they must be equal"
        )
