"""What objectives on features and relations ask of shapes, and how they average over a sample."""

from __future__ import annotations

import torch

from understudy.objectives.reduction import in_float, reduce


def pair(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both in float32 or better, the teacher detached, with zeros where the weight is 0.

    Args:
        student: [B, ...].
        teacher: [B, ...].
        weight: weights or mask over leading dimensions of both; None for all ones.
    """
    return blank(in_float(student), weight), blank(in_float(teacher).detach(), weight)


def blank(features: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Put zeros where the weight is 0, so that whatever stood there (padding, NaN) reaches neither value nor gradient.

    Args:
        features: [B, ...].
        weight: weights or mask over the leading dimensions of the features.

    Raises:
        ValueError: the weight does not fit.
    """
    if weight is None:
        return features
    try:
        given = weight.reshape(weight.shape + (1,) * (features.dim() - weight.dim()))
        return features.masked_fill(given.expand_as(features) == 0, 0.0)
    except RuntimeError as error:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, which does not fit features of shape {tuple(features.shape)}"
        ) from error


def average(values: torch.Tensor, weight: torch.Tensor | None, reduction: str) -> torch.Tensor:
    """Average per-element values over all dimensions that the weight does not have, and reduce the rest.

    Args:
        values: [B, ...].
        weight: weights or mask over the leading dimensions of `values`: [B], [B, T], ... or all of them; None for
            [B] of ones.
        reduction: "mean" over valid elements, "sum" or "none" (the weight's shape).

    Raises:
        ValueError: the weight has more dimensions than the values, or does not fit them.
    """
    kept = 1 if weight is None else weight.dim()
    if not 1 <= kept <= values.dim():
        given = () if weight is None else tuple(weight.shape)
        raise ValueError(
            f"weight has shape {given} and the losses have shape {tuple(values.shape)}; a weight's dimensions "
            "must be leading dimensions of the losses"
        )
    if kept < values.dim():
        values = values.flatten(kept).mean(dim=kept)
    return reduce(values, weight, reduction)


def check_batch(
    student: torch.Tensor, teacher: torch.Tensor, what: str = "features", *, dims: int = 2
) -> None:
    """Refuse tensors with fewer than `dims` dimensions or with different batch sizes."""
    if min(student.dim(), teacher.dim()) < dims:
        raise ValueError(
            f"student {what} have shape {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)}; "
            f"both need at least {dims} dimensions, the batch first"
        )
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student {what} have shape {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)}; "
            "their first dimension, the batch, must be equal"
        )


def check_same_but(
    student: torch.Tensor, teacher: torch.Tensor, free: int, what: str = "features"
) -> None:
    """Refuse tensors whose shapes differ anywhere but in dimension `free`."""
    if student.dim() == teacher.dim() and student.dim() > max(free, -free - 1):
        ours, theirs = list(student.shape), list(teacher.shape)
        del ours[free], theirs[free]
        if ours == theirs:
            return
    raise ValueError(
        f"student {what} have shape {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)}; "
        f"they may differ in dimension {free} only"
    )


def check_samples(student: torch.Tensor, needed: int, why: str) -> None:
    """Refuse a batch that is too small for a law about several samples."""
    if student.shape[0] < needed:
        count = "1 sample" if student.shape[0] == 1 else f"{student.shape[0]} samples"
        raise ValueError(
            f"the batch has {count} (student shape {tuple(student.shape)}), but {why} at least {needed}"
        )


def check_choice(value: str, choices: tuple[str, ...], keyword: str) -> None:
    """Refuse a word that is not one of the choices."""
    if value not in choices:
        allowed = ", ".join(f"'{choice}'" for choice in choices)
        raise ValueError(f"{keyword} is '{value}'; it must be one of {allowed}")


def sample_weights(weight: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Return weights [B] in the type of `like` [B, ...]; ones when there are none.

    Raises:
        ValueError: the weight is not one number per sample.
    """
    if weight is None:
        return torch.ones(like.shape[0], dtype=like.dtype, device=like.device)
    if weight.shape != like.shape[:1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and the features {tuple(like.shape)}; "
            f"it must have one number per sample, {tuple(like.shape[:1])}"
        )
    return weight.to(like.dtype)


def divisor(count: torch.Tensor) -> torch.Tensor:
    """Return the count to divide by: 1 where there is nothing to count."""
    return torch.where(count <= 0, torch.ones_like(count), count)
