"""Distillation from the teacher's largest logits and a tail."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.divergence import blank_invalid, kullback_leibler, soften, square
from understudy.objectives.reduction import in_float, reduce


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
    rows, count = student.shape[:-1], teacher_values.shape[-1] if teacher_values.dim() else 0
    shapes = (teacher_values.shape[:-1], indices.shape[:-1], teacher_tail.shape)
    if any(shape != rows for shape in shapes) or indices.shape[-1] != count:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)}, teacher values {tuple(teacher_values.shape)}, "
            f"indices {tuple(indices.shape)} and the teacher's tail {tuple(teacher_tail.shape)}; they must be "
            "[..., C], [..., k], [..., k] and [...]"
        )
    if student.shape[-1] < count:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)}, but {count} different classes (teacher values have "
            f"shape {tuple(teacher_values.shape)}) need at least {count} classes"
        )
    student = blank_invalid(in_float(student), weight)
    target = torch.cat([in_float(teacher_values), in_float(teacher_tail).unsqueeze(-1)], dim=-1)
    target = blank_invalid(target.detach().to(student.dtype), weight)
    log_teacher = F.log_softmax(soften(target, temperature), dim=-1)
    log_q = F.log_softmax(soften(student, temperature), dim=-1)
    merged = torch.cat([log_q.gather(-1, indices), _log_rest(log_q, indices).unsqueeze(-1)], dim=-1)
    loss = square(temperature, student) * kullback_leibler(log_teacher, merged)
    return reduce(loss, weight, reduction)


def _log_rest(log_q: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the log of the probability [...] of the classes that are not at `indices`.

    Where there are none it is 0, not -inf: the teacher gives them no probability either, so the number does not
    count, and has no gradient.
    """
    if indices.shape[-1] == log_q.shape[-1]:
        return torch.zeros_like(log_q[..., 0])
    return torch.logsumexp(log_q.scatter(-1, indices, -torch.inf), dim=-1)
