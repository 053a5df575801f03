"""Distillation from the teacher's largest logits and a tail."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.divergence import (
    blank_invalid,
    fit,
    kullback_leibler,
    log_mixture,
    soften,
    square,
)
from understudy.objectives.reduction import in_float, reduce
from understudy.objectives.shapes import check_choice

_DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")


@card(
    "logits",
    needs=("teacher_values: real B 3", "indices: classes B 3", "teacher_tail: real B"),
    teacher=False,
    invariances=("shift",),
    smallest_classes=3,
    temperature_power=2,
)
def kd_top_k(
    student: torch.Tensor,
    teacher_values: torch.Tensor,
    indices: torch.Tensor,
    teacher_tail: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 4.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """`kd` on k + 1 classes: the k that the teacher finds likeliest and one for all others together, in nats.

    With p = softmax([values, tail] / T) over the k + 1 and q the student's probabilities of the same, those of the
    other C - k classes added up: T^2 * KL(p || q). Nothing is approximated: this is the divergence of the two
    distributions after the classes of the tail are merged. It is at most `kd`, and equals it where k = C or where
    student and teacher share out the tail alike. Its gradient spreads the teacher's tail as the student does, where
    renormalising the k would tell the student that the tail is impossible.

    Args:
        student: logits [..., C].
        teacher_values: the teacher's k largest logits [..., k]; detached. A number may be added to those and to the
            tail of a sample.
        indices: int64 [..., k], which classes they are, each once.
        teacher_tail: [...], T * log sum exp(t / T) over the teacher's other logits t at this very T; -inf when there
            are none. Detached.
        temperature: T > 0, a number or a tensor that broadcasts over the leading dimensions [...].
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over valid elements, "sum" or "none" ([...]).

    Source: Hinton, Vinyals and Dean, 2015, section 2, for the loss and its T^2; that merging classes never makes a
    divergence larger is the data processing inequality (Cover and Thomas, "Elements of Information Theory", section
    2.8). That k renormalised probabilities give a biased gradient: Anshumann et al., "Sparse Logit Sampling", ACL 2025.

    Raises:
        ValueError: shapes do not fit, there are fewer classes than k, or T is not positive.
    """
    _check(student, teacher_values, indices, teacher_tail)
    student = blank_invalid(in_float(student), weight)
    target = torch.cat([in_float(teacher_values), in_float(teacher_tail).unsqueeze(-1)], dim=-1)
    target = blank_invalid(target.detach().to(student.dtype), weight)
    log_teacher = F.log_softmax(soften(target, temperature), dim=-1)
    log_q = F.log_softmax(soften(student, temperature), dim=-1)
    loss = square(temperature, student) * kullback_leibler(log_teacher, _with_rest(log_q, indices))
    return reduce(loss, weight, reduction)


@card(
    "logits",
    needs=("teacher_values: real B 3", "indices: classes B 3", "teacher_tail: real B"),
    teacher=False,
    invariances=("shift",),
    smallest_classes=3,
    temperature_power=2,
)
def top_k_divergence(
    student: torch.Tensor,
    teacher_values: torch.Tensor,
    indices: torch.Tensor,
    teacher_tail: torch.Tensor | None = None,
    *,
    divergence: str = "reverse_kl",
    beta: float = 0.5,
    missing: str = "tail",
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 times a divergence from what is known of the teacher: its k likeliest classes, in nats.

    Student and teacher are compared as distributions over k + 1 classes, the last being all others together, for which
    the student's probability is exact. No divergence becomes larger by that, and none can be lowered by moving
    probability to classes that nobody looks at.

    Args:
        student: logits [..., C].
        teacher_values: of the teacher's k likeliest classes [..., k]: log-probabilities, or logits where there is a
            tail. Detached.
        indices: int64 [..., k], which classes they are, each once.
        teacher_tail: [...], T * log sum exp(t / T) over the teacher's other logits at this very T, as for `kd_top_k`;
            -inf when there are none. None: the values are log-probabilities at temperature 1, and the others have what
            is left of 1, as one class. At another T that is not what the teacher's tail would be, which nobody knows.
            Detached.
        divergence: "forward_kl" KL(p || q), "reverse_kl" KL(q || p), "jensen_shannon" or "total_variation", teacher p
            and student q.
        beta: the teacher's share in the mixture of "jensen_shannon", in (0, 1); see `jensen_shannon`.
        missing: "tail" as above; "zero" scales the teacher's k probabilities up to a sum of 1, so that the student is
            told that no other class is possible. The latter has no reverse divergence.
        temperature: T > 0, a number or a tensor that broadcasts over the leading dimensions [...].
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over valid elements, "sum" or "none" ([...]).

    With all classes given (k = C) it is the divergence of the whole distributions.

    Source: DistiLLM and GKD for the divergences; "zero" and the tail without `teacher_tail` are what DistillKit calls
    "zero" and "symmetric_uniform". The reverse divergence on top k is one of the forms of Xu et al., "KDRL", 2025.

    Raises:
        ValueError: shapes do not fit, there are fewer classes than k, or a keyword is out of its range.
    """
    check_choice(divergence, _DIVERGENCES, "divergence")
    check_choice(missing, ("tail", "zero"), "missing")
    if missing == "zero" and divergence == "reverse_kl":
        raise ValueError(
            "the reverse divergence from a teacher without a tail is infinite; take missing='tail'"
        )
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}; it must lie between 0 and 1")
    _check(student, teacher_values, indices, teacher_tail)
    student = blank_invalid(in_float(student), weight)
    values = blank_invalid(in_float(teacher_values).detach().to(student.dtype), weight)
    log_q = F.log_softmax(soften(student, temperature), dim=-1)
    if indices.shape[-1] == student.shape[-1]:
        log_p, log_q = F.log_softmax(soften(values, temperature), dim=-1), log_q.gather(-1, indices)
    else:
        tail = _tail(values, teacher_tail, missing, weight)
        target = torch.cat([values, tail.unsqueeze(-1)], dim=-1)
        log_p, log_q = (
            F.log_softmax(soften(target, temperature), dim=-1),
            _with_rest(log_q, indices),
        )
    return reduce(
        square(temperature, student) * _diverge(log_p, log_q, divergence, beta), weight, reduction
    )


def _tail(
    values: torch.Tensor,
    teacher_tail: torch.Tensor | None,
    missing: str,
    weight: torch.Tensor | None,
) -> torch.Tensor:
    """Return the logit [...] of all classes that are not among the k."""
    if missing == "zero":
        return torch.full_like(values[..., 0], -torch.inf)
    if teacher_tail is None:
        return torch.log1p(-values.exp().sum(dim=-1).clamp(max=1.0))
    tail = in_float(teacher_tail).detach().to(values.dtype)
    return tail if weight is None else tail.masked_fill(fit(weight, tail.shape) == 0, 0.0)


def _diverge(
    log_p: torch.Tensor, log_q: torch.Tensor, divergence: str, beta: float
) -> torch.Tensor:
    """Return a divergence [...] of two distributions [..., k + 1]."""
    if divergence == "forward_kl":
        return kullback_leibler(log_p, log_q)
    if divergence == "reverse_kl":
        return kullback_leibler(log_q, log_p)
    if divergence == "total_variation":
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(dim=-1)
    log_m = log_mixture(log_p, log_q, beta)
    return beta * kullback_leibler(log_p, log_m) + (1 - beta) * kullback_leibler(log_q, log_m)


def _check(
    student: torch.Tensor,
    teacher_values: torch.Tensor,
    indices: torch.Tensor,
    teacher_tail: torch.Tensor | None,
) -> None:
    """Refuse shapes that do not fit."""
    rows, count = student.shape[:-1], teacher_values.shape[-1] if teacher_values.dim() else 0
    shapes = [teacher_values.shape[:-1], indices.shape[:-1]]
    tail = ""
    if teacher_tail is not None:
        shapes.append(teacher_tail.shape)
        tail = f" and the teacher's tail {tuple(teacher_tail.shape)}"
    if any(shape != rows for shape in shapes) or indices.shape[-1] != count:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)}, teacher values {tuple(teacher_values.shape)}, "
            f"indices {tuple(indices.shape)}{tail}; they must be [..., C], [..., k], [..., k]"
            f"{' and [...]' if tail else ''}"
        )
    if student.shape[-1] < count:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)}, but {count} different classes (teacher values have "
            f"shape {tuple(teacher_values.shape)}) need at least {count} classes"
        )


def _with_rest(log_q: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return log q of the classes at `indices` and of all others together [..., k + 1]."""
    return torch.cat([log_q.gather(-1, indices), _log_rest(log_q, indices).unsqueeze(-1)], dim=-1)


def _log_rest(log_q: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the log of the probability [...] of the classes that are not at `indices`.

    Where there are none it is 0, not -inf: the teacher gives them no probability either, so the number does not
    count, and has no gradient.
    """
    if indices.shape[-1] == log_q.shape[-1]:
        return torch.zeros_like(log_q[..., 0])
    return torch.logsumexp(log_q.scatter(-1, indices, -torch.inf), dim=-1)
