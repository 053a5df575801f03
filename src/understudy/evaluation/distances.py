"""How far the distributions of two models lie apart, token by token, summed up over batches of any size.

A vocabulary may be large and a text long, so the numbers are sums: of a batch, of several added together, of rows
worked on a few at a time. Nothing of the size of all logits is ever kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from understudy.errors import DataError
from understudy.objectives.divergence import (
    cross_entropy_between,
    kullback_leibler,
    log_mixture,
)

ROWS = 64
"""Rows that are worked on at a time: ten arrays of 77 MB each at 150 000 classes, in float64."""


@dataclass(frozen=True)
class Distances:
    """Sums over tokens (or samples) of distances between two distributions.

    Attributes:
        weight: sum of the weights, float64 [].
        sums: name -> weighted sum, float64 []. They stay on the device of the logits until `means` is called.
    """

    weight: torch.Tensor
    sums: dict[str, torch.Tensor]

    def __add__(self, other: Distances) -> Distances:
        """Return the sums over both.

        Raises:
            DataError: the two measure different things.
        """
        if self.sums.keys() != other.sums.keys():
            raise DataError(
                f"Distances of {sorted(self.sums)} and of {sorted(other.sums)} cannot be added."
            )
        sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        return Distances(self.weight + other.weight, sums)

    def means(self) -> dict[str, float]:
        """Return the means over all tokens.

        Raises:
            DataError: there is no token.
        """
        count = float(self.weight)
        if count == 0:
            raise DataError("There are no tokens on which to compare student and teacher.")
        return {name: float(value) / count for name, value in self.sums.items()}


def distances(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    top: tuple[int, ...] = (1, 5),
    temperature: float = 1.0,
    rows: int = ROWS,
) -> Distances:
    """Compare the distributions p (teacher) and q (student) of every token, in float64.

    - `forward_kl`: KL(p || q), `reverse_kl`: KL(q || p), `jensen_shannon`: with equal shares; all in nats.
    - `total_variation`: 1/2 sum |p - q|, in [0, 1].
    - `top_K` for each K: share of the teacher's K likeliest classes that are among the student's K; `top_1` is
      agreement.
    - `student_entropy`, `teacher_entropy`: in nats. A student that is too sure of itself has the smaller one.

    Args:
        student: logits [..., C].
        teacher: logits [..., C]. Vocabularies that differ in size only by padding have to be cut before.
        weight: mask or weights [...]; whatever stands at tokens of weight 0 counts nothing.
        top: values of K.
        temperature: T > 0 of both; no factor T^2, since these are distances and not losses.
        rows: tokens that are worked on at a time.

    Raises:
        DataError: shapes do not fit, a K is not in [1, C], or T is not positive.
    """
    if student.shape != teacher.shape or student.dim() < 2:
        raise DataError(
            f"The student's logits have shape {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}; both "
            "must be [..., classes]."
        )
    if not temperature > 0:
        raise DataError(f"temperature is {temperature}; it must be greater than 0.")
    if any(not 1 <= count <= student.shape[-1] for count in top):
        raise DataError(f"top is {top}; with {student.shape[-1]} classes each must lie between.")
    if weight is None:
        weight = torch.ones(student.shape[:-1], dtype=torch.float64, device=student.device)
    if weight.shape != student.shape[:-1]:
        raise DataError(
            f"The weight has shape {tuple(weight.shape)}; it must be that of the tokens, {tuple(student.shape[:-1])}."
        )
    flat = weight.detach().flatten().double()
    total = Distances(torch.zeros_like(flat[:0].sum()), {})
    parts = zip(
        student.detach().flatten(0, -2).split(rows),
        teacher.detach().flatten(0, -2).split(rows),
        flat.split(rows),
        strict=True,
    )
    for ours, theirs, shares in parts:
        found = _measure(ours.double() / temperature, theirs.double() / temperature, shares, top)
        total = found if not total.sums else total + found
    return total


def embedding_similarity(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Return the mean cosine of two models' embeddings of the same texts, in [-1, 1].

    The embeddings are those that one third model gives to what the two have written: closeness of meaning, where `bleu`
    sees words.

    Args:
        student: [N, D].
        teacher: [N, D], of the same items in the same order.

    Raises:
        DataError: shapes differ, or there is no item.
    """
    if student.shape != teacher.shape or student.dim() != 2 or len(student) == 0:
        raise DataError(
            f"The student's embeddings have shape {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}; "
            "both must be [items, width]."
        )
    cosines = functional.cosine_similarity(student.double(), teacher.double(), dim=1)
    return float(cosines.mean())


def _measure(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, top: tuple[int, ...]
) -> Distances:
    nothing = (weight == 0).unsqueeze(-1)
    student, teacher = student.masked_fill(nothing, 0.0), teacher.masked_fill(nothing, 0.0)
    log_q, log_p = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    log_m = log_mixture(log_p, log_q, 0.5)
    each = {
        "forward_kl": kullback_leibler(log_p, log_q),
        "reverse_kl": kullback_leibler(log_q, log_p),
        "jensen_shannon": (kullback_leibler(log_p, log_m) + kullback_leibler(log_q, log_m)) / 2,
        "total_variation": (log_p.exp() - log_q.exp()).abs().sum(dim=-1) / 2,
        "student_entropy": cross_entropy_between(log_q, log_q),
        "teacher_entropy": cross_entropy_between(log_p, log_p),
    }
    for count in top:
        ours, theirs = (logits.topk(count, dim=-1).indices for logits in (student, teacher))
        both = (ours.unsqueeze(-1) == theirs.unsqueeze(-2)).sum(dim=(-1, -2))
        each[f"top_{count}"] = both.double() / count
    return Distances(weight.sum(), {name: (weight * value).sum() for name, value in each.items()})
