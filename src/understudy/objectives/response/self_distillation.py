"""Distillation without a teacher network: targets from the labels, from the student itself, from its own average."""

from __future__ import annotations

from typing import Literal

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import (
    blank_invalid,
    kullback_leibler,
    log_probabilities,
    soften,
    square,
)
from understudy.objectives.labels import check_others, labelled_weight, one_class
from understudy.objectives.reduction import in_float, reduce
from understudy.objectives.shapes import check_choice, divisor, pair


@card(
    "logits",
    needs=("labels",),
    teacher=False,
    minimum=None,
    invariances=("shift",),
    smallest_classes=2,
)
def label_smoothing_teacher(
    student: torch.Tensor,
    labels: torch.Tensor,
    *,
    correct: float = 0.99,
    temperature: float = 20.0,
    official: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Distillation from a made-up teacher, equally sure of every label (Tf-KD, regularised), in nats.

    The teacher u gives `correct` to the label and shares the rest equally: T^2 * KL(softmax(log u / T) || softmax(s
    / T)), `kd` with the logits log u.

    Args:
        student: logits [..., C], C at least 2.
        labels: classes [...] with -1 for "no label", or soft labels [..., C], of which only the largest counts.
        correct: the teacher's probability of the label, in (0, 1); the paper has 0.9 or more.
        temperature: T > 0; the paper has 20 or more.
        official: the authors' code instead: KL(softmax(u / T) || softmax(s)) / C. It takes probabilities for logits,
            which leaves hardly more than plain label smoothing, softens the teacher's side only, and averages over
            classes too.
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over labelled valid elements, "sum" or "none" ([...]).

    Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, section 4
    (Tf-KD_reg), which is added with 0.1 to 0.9 of the cross-entropy. Tf-KD_self is `kd` with a trained copy of the
    student as the teacher.

    Raises:
        ValueError: shapes do not fit, there is one class only, or a number is out of its range.
    """
    if not 0 < correct < 1:
        raise ValueError(f"correct is {correct}; it must lie between 0 and 1")
    check_others(student)
    classes, valid = one_class(student, labels)
    weight = labelled_weight(valid, weight)
    student = blank_invalid(in_float(student), weight)
    count = student.shape[-1]
    teacher = torch.full_like(student, (1 - correct) / (count - 1), requires_grad=False)
    teacher = teacher.scatter(-1, classes.unsqueeze(-1), correct)
    if official:
        _, target = log_probabilities(student, teacher, temperature)
        divergence = kullback_leibler(target, student.log_softmax(dim=-1))
        return reduce(divergence / count, weight, reduction)
    log_student, target = log_probabilities(student, teacher.log(), temperature)
    return reduce(
        square(temperature, student) * kullback_leibler(target, log_student), weight, reduction
    )


@card(
    "logits",
    needs=("weak: real B C", "labels"),
    teacher=False,
    minimum=None,
    invariances=("shift",),
    coupled=True,
    smallest_classes=2,
    held_constant=True,
)
def uskd(
    student: torch.Tensor,
    weak: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.1,
    mu: float = 0.005,
    rank: Literal["official", "softmax"] = "official",
    official: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Universal self-distillation: alpha * target + beta * others + mu * weak, in nats; no temperature.

    With p = softmax(s) and labels y of value v (1, or two shares under mixup):

    - target: -sum_k P_k log p_{y_k}, with P_k = p_{y_k}^2 + v_k less the mean over the batch of p_{y_k}^2, at least
      0;
    - others: -sum_c z_c log softmax(s')_c over the classes without a label, where z is 1 / (rank among all C
      classes), normalised;
    - weak: cross-entropy of a head on an earlier feature, labels smoothed by 0.1.

    The rank is by A_c / (1 - A_y) + B_c / (1 - B_y), with A = softmax(weak) and B = log p. P and z get no gradient.
    Add the cross-entropy with the labels: it is not a part of this.

    Args:
        student: logits [B, C], C at least 2.
        weak: logits [B, C] of a linear head on the pooled feature of the last stage but one; it and the feature
            learn from the weak term.
        labels: classes [B] with -1 for "no label", or shares [B, C] of at most two classes.
        alpha: weight of the target term. The authors have alpha, beta, mu = 1, 0.1, 0.005 for ImageNet and 0.1, 0.1,
            0.1 for CIFAR-100.
        beta: weight of the others.
        mu: weight of the weak head.
        rank: "softmax" takes B = p, as the paper says. The default is the code's, which made all published numbers.
        official: for soft labels, as the authors' code: a second label of share 0 is taken out of the others
            nevertheless (which class, depends on how ties are sorted), it counts in the batch mean, and P may be
            negative.
        weight: weights or mask [B], in the batch mean too.
        reduction: "mean" over labelled valid samples, "sum" or "none" ([B]).

    Coupled through the batch mean. With one sample the target is the cross-entropy.

    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023.

    Raises:
        ValueError: shapes do not fit, there is one class only, or a sample on the CPU has more than two labels (on
            an accelerator looking would hold up the step).
    """
    check_choice(rank, ("official", "softmax"), "rank")
    check_others(student)
    if student.shape != weak.shape:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)} and weak logits {tuple(weak.shape)}; they must be equal"
        )
    classes, valid = one_class(student, labels)
    weight = labelled_weight(valid, weight)
    student, weak = blank_invalid(in_float(student), weight), blank_invalid(in_float(weak), weight)
    share, index = _labels(student, labels, classes)
    taken = torch.zeros_like(student, dtype=torch.bool)
    taken = taken.scatter(
        -1, index, torch.ones_like(index, dtype=torch.bool) if official else share > 0
    )

    log_student = student.log_softmax(dim=-1)
    log_labelled = log_student.gather(-1, index)
    squared = log_labelled.detach().exp().square()
    counted = weight.unsqueeze(-1) * (torch.ones_like(share) if official else (share > 0).to(share))
    mean = (counted * squared).sum(dim=0) / divisor(counted.sum(dim=0))
    target = torch.where(share > 0, squared + share - mean, 0.0)
    target = target if official else target.clamp_min(0)
    target_loss = -(target * log_labelled).sum(dim=-1)

    log_weak = weak.log_softmax(dim=-1)
    zipf = _zipf(log_student, log_weak, taken, rank)
    # Where labels take all classes, nothing is left to rank.
    rest = student.masked_fill(taken & ~taken.all(dim=-1, keepdim=True), -torch.inf)
    others_loss = -(zipf * torch.where(taken, 0.0, rest.log_softmax(dim=-1))).sum(dim=-1)

    smoothed = (
        torch.zeros_like(student).scatter_add(-1, index, 0.9 * share) + 0.1 / student.shape[-1]
    )
    weak_loss = -(smoothed * log_weak).sum(dim=-1)
    return reduce(alpha * target_loss + beta * others_loss + mu * weak_loss, weight, reduction)


@card("tokens", minimum=None, invariances=("shift",))
def dino(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    centre: torch.Tensor | None = None,
    temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy of a view with the teacher's other views: -sum_k p_k log softmax(s_v / T)_k, in nats, no factor.

    p = softmax((t_g - centre) / T_t) of a view g of the teacher, and v runs over the other views of the same sample.
    The value where all outputs are equal, which is collapse, is log K.

    Args:
        student: outputs [B, V, K], V views of B samples.
        teacher: outputs [B, G, K] for the first G of these views; detached.
        centre: what is taken off the teacher's outputs [K], their mean over the batches of late; detached. None for
            nothing.
        temperature: T > 0.
        teacher_temperature: T_t > 0. It has to be below T: what is sharpened by it does not become uniform, and what
            is centred does not become one prototype for all.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B], each the mean over its pairs of views).

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, equations 1 to 3;
    the mean over the pairs where equation 3 has the sum, as in the authors' code.

    Raises:
        ValueError: shapes do not fit, there are fewer than two views or more of the teacher's than of the student's,
            or a temperature is not positive.
    """
    ours, theirs = student.shape, teacher.shape
    if not (student.dim() == teacher.dim() == 3 and ours[0] == theirs[0] and ours[2] == theirs[2]):
        raise ValueError(
            f"student outputs have shape {tuple(ours)} and teacher outputs {tuple(theirs)}; they must be [B, V, K] and "
            "[B, G, K]"
        )
    if not (ours[1] >= 2 and 1 <= theirs[1] <= ours[1]):
        raise ValueError(
            f"student outputs {tuple(ours)} have {ours[1]} views and teacher outputs {tuple(theirs)} {theirs[1]}; the "
            "student needs at least 2, and the teacher from 1 to as many"
        )
    if centre is not None and centre.shape != ours[2:]:
        raise ValueError(
            f"centre has shape {tuple(centre.shape)} and the outputs {tuple(ours)}; it must be {tuple(ours[2:])}"
        )
    student, teacher = pair(student, teacher, weight)
    if centre is not None:
        teacher = teacher - in_float(centre).detach().to(teacher.dtype)
    log_probability = soften(student, temperature).log_softmax(dim=-1)
    target = soften(teacher, teacher_temperature).softmax(dim=-1)
    crossed = -(target @ log_probability.mT)
    same = torch.eye(theirs[1], ours[1], dtype=torch.bool, device=crossed.device)
    pairs = theirs[1] * (ours[1] - 1)
    return reduce(crossed.masked_fill(same, 0.0).sum(dim=(1, 2)) / pairs, weight, reduction)


def _labels(
    student: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shares [B, K] of the labels and their classes [B, K]: one label, or the two largest shares."""
    if not labels.is_floating_point():
        index = classes.unsqueeze(-1)
        return torch.ones_like(index, dtype=student.dtype), index
    if labels.device.type == "cpu" and int((labels > 0).sum(dim=-1).max()) > 2:
        raise ValueError(
            "a sample has more than two labels; shares of at most two classes may be positive"
        )
    found = labels.to(student.dtype).topk(2, dim=-1)
    return found.values, found.indices


@torch.no_grad()
def _zipf(
    log_student: torch.Tensor, log_weak: torch.Tensor, taken: torch.Tensor, rank: str
) -> torch.Tensor:
    """Return 1 / rank of each class among all, 0 for those taken, rows summing to 1."""
    score = torch.zeros_like(log_student)
    for values in (log_weak.exp(), log_student if rank == "official" else log_student.exp()):
        left = 1 - torch.where(taken, values, 0.0).sum(dim=-1, keepdim=True)
        score = score + values / (left + 1e-6)
    order = score.argsort(dim=-1, descending=True, stable=True)
    position = order.argsort(dim=-1) + 1
    values = torch.where(taken, 0.0, 1 / position.to(score.dtype))
    return values / divisor(values.sum(dim=-1, keepdim=True))
