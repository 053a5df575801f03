"""Targets over the sub-classes of the classes."""

from __future__ import annotations

import torch

from understudy.objectives.reduction import in_float


def subclass_logits(
    logits: torch.Tensor,
    coordinates: torch.Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
) -> torch.Tensor:
    """Return a teacher's logits over sub-classes, which split its classes and leave their probabilities as they are.

    softmax(result / T)[c * S + s] = softmax(logits / T)[c] * softmax(coordinates[c] / beta)[s]. It is made for `kd`
    with the same T, against a student with C * S outputs.

    Args:
        logits: the teacher's, [..., C].
        coordinates: where a sample lies along the S directions of each class, [..., C, S].
        temperature: T > 0, of the classes.
        beta: temperature of the split, > 0.

    Returns:
        [..., C * S] in float32 or better, without a gradient; the S sub-classes of a class side by side.

    Source: Loo et al., "Linear Projections of Teacher Embeddings for Few-Class Distillation", 2024 (arXiv 2409.20449).

    Raises:
        ValueError: shapes do not fit, or a temperature is not positive.
    """
    if coordinates.dim() != logits.dim() + 1 or coordinates.shape[:-1] != logits.shape:
        raise ValueError(
            f"coordinates must be [..., C, S] for logits [..., C]; got {tuple(coordinates.shape)} for "
            f"{tuple(logits.shape)}"
        )
    for name, value in (("temperature", temperature), ("beta", beta)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be greater than 0")
    with torch.no_grad():
        classes = torch.log_softmax(in_float(logits) / temperature, dim=-1)
        split = torch.log_softmax(in_float(coordinates) / beta, dim=-1)
        return temperature * (classes.unsqueeze(-1) + split).flatten(-2)
