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
    factor: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss [N], and `factor` times its gradient [N, V] with respect to the student's logits.

    Args:
        loss: what to compute.
        student: logits [N, V].
        teacher: logits [N, V].
        temperature: T, a number or [N, 1].
        labels: int64 [N], those below 0 have no cross-entropy; None without one.
        factor: [N, 1].
    """
    one_softmax = labels is None or (isinstance(temperature, float) and temperature == 1)
    if loss.divergence.kind == "forward_kl" and not loss.masked and one_softmax:
        return _forward_kl(loss, student, teacher, temperature, labels, factor)
    hard = _hard(loss, student, labels, factor)
    log_p = _log_softmax(teacher, temperature, loss.masked)
    log_q = _log_softmax(student, temperature, loss.masked)
    value, gradient, _ = value_and_gradient(loss.divergence, log_p, log_q)
    gradient.mul_(factor * temperature)
    return _with_cross_entropy(loss, _times_square(value, temperature), gradient, hard)


def _forward_kl(
    loss: Loss,
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float | torch.Tensor,
    labels: torch.Tensor | None,
    factor: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `dense_rows` does in the fewest passes over the numbers; with labels at temperature 1 only.

    With t' and s' the logits less the largest of their row, and Z the sums of their exponentials, the divergence is
    sum p (t' - s') - log Z_t + log Z_s, which needs no logarithm of any p or q; and every factor of a row goes into
    the one that divides by Z.
    """
    teacher, student = _shifted(teacher, temperature), _shifted(student, temperature)
    p = teacher.exp()
    inner = teacher.sub_(student).mul_(p).sum(dim=-1, keepdim=True)
    of_p = p.sum(dim=-1, keepdim=True)
    if labels is not None:
        valid, index = (labels >= 0).unsqueeze(-1), labels.clamp(min=0).unsqueeze(-1)
        picked = student.gather(-1, index)
    q = student.exp_()
    of_q = q.sum(dim=-1, keepdim=True)
    value = inner.div_(of_p).sub_(of_p.log())
    value = _times_square(value.add_(of_q.log()).squeeze(-1), temperature)
    slope = factor * temperature
    if labels is None:
        return value, q.mul_(slope / of_q).sub_(p.mul_(slope / of_p))
    hard = valid * (loss.cross_entropy * factor)
    value += (valid * (of_q.log() - picked)).squeeze(-1).mul_(loss.cross_entropy)
    gradient = q.mul_((slope + hard) / of_q).sub_(p.mul_(slope / of_p))
    return value, gradient.scatter_add_(-1, index, -hard)


def top_k_rows(
    loss: Loss,
    student: torch.Tensor,
    teacher: TopK,
    temperature: float | torch.Tensor,
    labels: torch.Tensor | None,
    factor: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss [N] on k + 1 classes, and `factor` times its gradient [N, V] at the student's logits.

    The logit of the student's tail is the log-sum-exp over its classes; its gradient is spread over them by their
    softmax. Arguments as in `dense_rows`.
    """
    hard = _hard(loss, student, labels, factor)
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
    inner.mul_(factor * temperature)
    if has_tail:
        # A tail without any probability has no classes to spread over.
        share.mul_(inner[:, -1:] / total.clamp(min=1e-30))
        inner = inner[:, :-1]
    gradient = share.scatter_(-1, teacher.indices, inner)
    return _with_cross_entropy(loss, _times_square(value, temperature), gradient, hard)


def label_rows(
    loss: Loss, student: torch.Tensor, labels: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy with labels alone [N], times its own factor, and `factor` times its gradient [N, V].

    Arguments as in `dense_rows`.
    """
    value, gradient = _cross_entropy(student, labels, loss.cross_entropy * factor)
    return value.mul_(loss.cross_entropy), gradient


def _soften(logits: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    if isinstance(temperature, float) and temperature == 1:
        return logits
    return logits.mul_(1 / temperature)


def _shifted(logits: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """Return softened logits less the largest of their row, in their memory."""
    logits = _soften(logits, temperature)
    return logits.sub_(logits.amax(dim=-1, keepdim=True))


def _log_softmax(
    logits: torch.Tensor, temperature: float | torch.Tensor, masked: bool
) -> torch.Tensor:
    logarithms = torch.log_softmax(_soften(logits, temperature), dim=-1)
    return logarithms.clamp_(min=LOG_ZERO) if masked else logarithms


def _times_square(value: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """Multiply a value by T^2; the gradient with respect to z, not z / T, has T."""
    if isinstance(temperature, torch.Tensor):
        return temperature.squeeze(-1).square() * value
    return value if temperature == 1 else temperature**2 * value


def _hard(
    loss: Loss, logits: torch.Tensor, labels: torch.Tensor | None, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the cross-entropy [N], without its factor, and its gradient [N, V] with both factors."""
    if labels is None:
        return None
    return _cross_entropy(logits.clone(), labels, loss.cross_entropy * factor)


def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy [N] at temperature 1, and `factor` times its gradient; both 0 without a label."""
    valid = (labels >= 0).unsqueeze(-1)
    index = labels.clamp(min=0).unsqueeze(-1)
    shifted = _shifted(logits, 1.0)
    picked = shifted.gather(-1, index)
    q = shifted.exp_()
    total = q.sum(dim=-1, keepdim=True)
    value = torch.where(valid, total.log() - picked, 0.0).squeeze(-1)
    share = valid * factor
    return value, q.mul_(share / total).scatter_add_(-1, index, -share)


def _with_cross_entropy(
    loss: Loss,
    value: torch.Tensor,
    gradient: torch.Tensor,
    hard: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if hard is None:
        return value, gradient
    return value.add(hard[0], alpha=loss.cross_entropy), gradient.add_(hard[1])
