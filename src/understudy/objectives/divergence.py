"""Pieces in log space that the objectives on logits share: softening, divergences, and keeping invalid rows out."""

from __future__ import annotations

import math

import torch

from understudy.objectives.reduction import in_float, same_shape


def logit_pair(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return student and teacher logits [..., C] in float32 or better, the teacher detached, rows of weight 0 blanked.

    Raises:
        ValueError: shapes differ, or the weight does not fit the leading dimensions.
    """
    same_shape(student, teacher)
    student, teacher = in_float(student), in_float(teacher).detach()
    return blank_invalid(student, weight), blank_invalid(teacher, weight)


def blank_invalid(logits: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Put zeros where the weight is 0, so that whatever stood there (padding, NaN) reaches neither value nor gradient.

    Args:
        logits: [..., C].
        weight: weights or mask over the leading dimensions [...]; None for all ones.

    Raises:
        ValueError: the weight does not fit.
    """
    if weight is None:
        return logits
    return logits.masked_fill((fit(weight, logits.shape[:-1]) == 0).unsqueeze(-1), 0.0)


def fit(weight: torch.Tensor, rows: torch.Size) -> torch.Tensor:
    """Expand a weight to the shape of the losses.

    It must have their dimensions, each as long or of length 1, so that weights of samples cannot pass for weights of
    tokens where there are as many of both.

    Raises:
        ValueError: it does not fit.
    """
    fits = weight.dim() in (0, len(rows)) and all(
        given in (1, wanted) for given, wanted in zip(weight.shape, rows, strict=False)
    )
    if not fits:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, which does not fit losses of shape {tuple(rows)}"
        )
    return weight.expand(rows)


def soften(logits: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """Divide logits [..., C] by T > 0, a number or a tensor that broadcasts over the leading dimensions [...].

    Raises:
        ValueError: T is a number and not positive.
    """
    if isinstance(temperature, torch.Tensor):
        return logits / temperature.to(logits.dtype).unsqueeze(-1)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")
    return logits / temperature


def log_probabilities(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log softmax(student / T) and log softmax(teacher / T)."""
    return (
        soften(student, temperature).log_softmax(dim=-1),
        soften(teacher, temperature).log_softmax(dim=-1),
    )


def square(temperature: float | torch.Tensor, like: torch.Tensor) -> float | torch.Tensor:
    """Return T^2, a tensor in the type of `like`. The factor keeps the size of the gradient when T changes."""
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.to(like.dtype)
    return temperature * temperature


def kullback_leibler(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) over the last dimension, in nats; classes with log p = -inf count nothing."""
    gap = (log_p - log_q).masked_fill(log_p.isneginf(), 0.0)
    return (log_p.exp() * gap).sum(dim=-1)


def cross_entropy_between(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return -sum p log q over the last dimension, in nats; classes with log p = -inf count nothing."""
    possible = log_p > -torch.inf
    return -(log_p.exp() * torch.where(possible, log_q, 0.0)).sum(dim=-1)


def log_mixture(log_p: torch.Tensor, log_q: torch.Tensor, share: float) -> torch.Tensor:
    """Return log(share * p + (1 - share) * q), share in [0, 1]; -inf where neither is possible."""
    if share == 0:
        return log_q
    if share == 1:
        return log_p
    impossible = (log_p == -torch.inf) & (log_q == -torch.inf)
    # The gradient of logaddexp at twice -inf is not a number.
    p, q = log_p.masked_fill(impossible, 0.0), log_q.masked_fill(impossible, 0.0)
    mixture = torch.logaddexp(p + math.log(share), q + math.log1p(-share))
    return mixture.masked_fill(impossible, -torch.inf)
