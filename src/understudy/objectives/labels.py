"""What objectives on logits ask of labels."""

from __future__ import annotations

import torch

from understudy.objectives.divergence import fit


def one_class(student: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class of each row and which rows have one.

    Args:
        student: logits [..., C]; only their shape counts.
        labels: int64 [...] with -1 for "no label", or float [..., C], of which the largest entry of a row is its
            class (the first of equals) and rows of sum 0 have no label.

    Returns:
        Classes int64 [...], 0 where there is none, and validity [...] in float32 or better.

    Raises:
        ValueError: shapes do not fit.
    """
    expected = student.shape if labels.is_floating_point() else student.shape[:-1]
    if labels.shape != expected:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)} and labels {tuple(labels.shape)}; "
            f"labels must have shape {tuple(expected)}"
        )
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    if labels.is_floating_point():
        return labels.argmax(dim=-1), (labels.sum(dim=-1) > 0.5).to(dtype)
    return labels.clamp_min(0), (labels >= 0).to(dtype)


def labelled_weight(valid: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the weight of each row, 0 where it has no label.

    Raises:
        ValueError: the weight does not fit.
    """
    return valid if weight is None else valid * fit(weight, valid.shape).to(valid.dtype)


def pick(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the value [...] of each row's class, out of values [..., C]."""
    return values.gather(-1, classes.unsqueeze(-1)).squeeze(-1)


def check_others(student: torch.Tensor) -> None:
    """Refuse logits with fewer than two classes: beside the label there must be another."""
    if student.shape[-1] < 2:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)}; this objective needs at least 2 classes"
        )


def without_class(logits: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [..., C] with each row's class at -inf, and whether any class is left [...].

    A row of which nothing is left (all other classes are masked as well) becomes zeros, so that its softmax is
    defined.
    """
    left = logits.scatter(-1, classes.unsqueeze(-1), -torch.inf)
    any_left = (left > -torch.inf).any(dim=-1)
    return left.masked_fill(~any_left.unsqueeze(-1), 0.0), any_left
