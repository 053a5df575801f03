"""Value and gradient with respect to the logits, for a few rows that fit into the cache.

Every function takes logits in float32 or better, one row for a token, and may overwrite them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from understudy.objectives.vocabulary.closed_form import Divergence, value_and_gradient

# Stands for log 0: finite, so that 0 * log 0 is 0 and the difference of two of them is too.
LOG_ZERO = -1e30


@dataclass(frozen=True, slots=True)
class Loss:
    """What is computed for each token.

    Attributes:
        divergence: of teacher and student, both softened.
        cross_entropy: factor of the cross-entropy at temperature 1 that is added; 0 for none.
        masked: whether logits may be -inf.
    """

    divergence: Divergence
    cross_entropy: float = 0.0
    masked: bool = False


@dataclass(frozen=True, slots=True)
class TopK:
    """Rows of a top-k target: values [N, k], indices [N, k] and tail [N]."""

    values: torch.Tensor
    indices: torch.Tensor
    tail: torch.Tensor


def dense_rows(
    loss: Loss,
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float | torch.Tensor,
    labels: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss [N] and its gradient [N, V] with respect to the student's logits.

    Args:
        loss: what to compute.
        student: logits [N, V].
        teacher: logits [N, V].
        temperature: T, a number or [N, 1].
        labels: int64 [N], those below 0 have no cross-entropy; None without one.
    """
    hard = None if labels is None else _cross_entropy(student, labels)
    log_p = _log_softmax(teacher, temperature, loss.masked)
    log_q = _log_softmax(student, temperature, loss.masked)
    value, gradient, _ = value_and_gradient(loss.divergence, log_p, log_q)
    value, gradient = _times_square(value, gradient, temperature)
    return _with_cross_entropy(loss, value, gradient, hard)


def top_k_rows(
    loss: Loss,
    student: torch.Tensor,
    teacher: TopK,
    temperature: float | torch.Tensor,
    labels: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss [N] on k + 1 classes and its gradient [N, V] with respect to the student's logits.

    The logit of the student's tail is the log-sum-exp over its classes; its gradient is spread over them by their
    softmax. Arguments as in `dense_rows`.
    """
    hard = None if labels is None else _cross_entropy(student, labels)
    softened = _soften(student, temperature)
    merged, target = softened.gather(-1, teacher.indices), teacher.values
    has_tail = teacher.indices.shape[-1] < student.shape[-1]
    if has_tail:
        target = torch.cat([target, teacher.tail.unsqueeze(-1)], dim=-1)
        rest = softened.scatter_(-1, teacher.indices, -torch.inf)
        # The largest may be -inf where every class of the tail is masked.
        largest = rest.amax(dim=-1, keepdim=True).clamp_(min=LOG_ZERO)
        share = rest.sub_(largest).exp_()
        total = share.sum(dim=-1, keepdim=True)
        merged = torch.cat([merged, largest + total.log()], dim=-1)
    else:
        share = softened
    log_p = _log_softmax(target, temperature, True)
    log_q = torch.log_softmax(merged, dim=-1).clamp_(min=LOG_ZERO)
    value, inner, _ = value_and_gradient(loss.divergence, log_p, log_q)
    value, inner = _times_square(value, inner, temperature)
    if has_tail:
        # A tail without any probability has no classes to spread over.
        share.mul_(inner[:, -1:] / total.clamp(min=1e-30))
        inner = inner[:, :-1]
    gradient = share.scatter_(-1, teacher.indices, inner)
    return _with_cross_entropy(loss, value, gradient, hard)


def label_rows(
    loss: Loss, student: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy with labels alone [N], times its factor, and its gradient [N, V].

    Arguments as in `dense_rows`.
    """
    value, gradient = _cross_entropy(student, labels)
    return value.mul_(loss.cross_entropy), gradient.mul_(loss.cross_entropy)


def _soften(logits: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    if isinstance(temperature, float) and temperature == 1:
        return logits
    return logits.mul_(1 / temperature)


def _log_softmax(
    logits: torch.Tensor, temperature: float | torch.Tensor, masked: bool
) -> torch.Tensor:
    logarithms = torch.log_softmax(_soften(logits, temperature), dim=-1)
    return logarithms.clamp_(min=LOG_ZERO) if masked else logarithms


def _times_square(
    value: torch.Tensor, gradient: torch.Tensor, temperature: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiply by T^2; the gradient with respect to z, not z / T, takes one T away."""
    if isinstance(temperature, torch.Tensor):
        return temperature.squeeze(-1).square() * value, gradient.mul_(temperature)
    if temperature == 1:
        return value, gradient
    return temperature**2 * value, gradient.mul_(temperature)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy [N] at temperature 1 and its gradient; both 0 where there is no label."""
    valid = (labels >= 0).unsqueeze(-1)
    index = labels.clamp(min=0).unsqueeze(-1)
    logarithms = torch.log_softmax(logits, dim=-1)
    value = torch.where(valid, -logarithms.gather(-1, index), 0.0).squeeze(-1)
    share = valid.to(logits.dtype)
    gradient = logarithms.exp_().mul_(share).scatter_add_(-1, index, -share)
    return value, gradient


def _with_cross_entropy(
    loss: Loss,
    value: torch.Tensor,
    gradient: torch.Tensor,
    hard: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if hard is None:
        return value, gradient
    return (
        value.add(hard[0], alpha=loss.cross_entropy),
        gradient.add_(hard[1], alpha=loss.cross_entropy),
    )
