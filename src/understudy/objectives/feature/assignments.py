"""Scores of places against what the teacher's features say of them: visual words and sub-classes."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.reduction import in_float
from understudy.objectives.shapes import average, blank


@card("sequences", needs=("centres: real C C",), minimum=None, widths_differ=True)
def visual_words(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    centres: torch.Tensor,
    sharpness: float = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """KL(p || softmax(s)) at every place, in nats, with p = `soft_assignment(t, centres)` over the visual words.

    Args:
        student: scores of the words [B, ..., K].
        teacher: features [B, ..., D] at the same places; detached.
        centres: the words [K, D]; detached.
        sharpness: tau > 0.
        weight: weights or mask over leading dimensions of the places: [B], or [B, T] for tokens.
        reduction: "mean" over valid elements, "sum" or "none" (the weight's shape, [B] without one).

    Of size [B, ..., K] it keeps p beside the scores until the backward pass, and nothing else.

    Source: Jain et al., "QuEST: Quantized Embedding Space for Transferring Knowledge", ECCV 2020, and Gorgun, Gurbuz
    and Alatan, "Knowledge Distillation Layer that Lets the Student Decide", BMVC 2023.

    Raises:
        ValueError: shapes do not fit, or the sharpness is not positive.
    """
    _check_places(student, teacher)
    _check_centres(student, teacher, centres, words=centres.shape[:-1])
    scores, features = blank(in_float(student), weight), blank(in_float(teacher), weight)
    with torch.no_grad():
        logits = _assignment_logits(features, centres, sharpness)
        wanted = logits.softmax(dim=-1)
        # Logits have their maximum at 0, so that nothing is lost where one word takes all.
        negentropy = _product(wanted, logits) - logits.logsumexp(dim=-1)
        del logits
    return average(_divergence(wanted, negentropy, scores), weight, reduction)


@card(
    "sequences",
    needs=("centres: real C 1 C", "table: probabilities C C", "labels: classes B"),
    minimum=None,
    widths_differ=True,
)
def subclass_scores(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    centres: torch.Tensor,
    table: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """KL(P_a || softmax(s)) at every place, in nats: P_a is the table's row of the nearest sub-class of the true class.

    Args:
        student: scores of the sub-classes [B, ..., C * S], class by class.
        teacher: features [B, ..., n] at the same places, in the space of the centres; detached.
        centres: S centres for each class [C, S, n]; detached.
        table: [C * S, C * S], rows are probabilities; an entry of 0 counts nothing.
        labels: int64 [B], -1 for "no label".
        weight: weights or mask over leading dimensions of the places: [B], or [B, T] for tokens.
        reduction: "mean" over valid elements of labelled samples, "sum" or "none" (the weight's shape, [B] without
            one).

    Source: Gorgun, Gurbuz and Alatan, "Knowledge Distillation Layer that Lets the Student Decide", BMVC 2023. Their
    code picks sub-class 0 of class 0 where every centre of the true class is as far as the farthest of all.

    Raises:
        ValueError: shapes do not fit.
    """
    _check_places(student, teacher)
    if centres.dim() != 3:
        raise ValueError(f"centres have shape {tuple(centres.shape)}; they must be [C, S, n]")
    classes, each, _ = centres.shape
    _check_centres(student, teacher, centres, words=(classes * each,))
    if table.shape != (classes * each, classes * each):
        raise ValueError(
            f"centres have shape {tuple(centres.shape)} and the table {tuple(table.shape)}; "
            f"it must be {(classes * each, classes * each)}"
        )
    if labels.shape != student.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"student scores have shape {tuple(student.shape)} and labels {tuple(labels.shape)} of {labels.dtype}; "
            f"they must be one class a sample, int64 {tuple(student.shape[:1])}"
        )
    weight = _labelled(labels, weight, student)
    scores, features = blank(in_float(student), weight), blank(in_float(teacher), weight)
    with torch.no_grad():
        own = labels.clamp_min(0)
        nearest = (
            own_nearest(features, centres, own) + own.view(-1, *[1] * (student.dim() - 2)) * each
        )
        table = in_float(table).to(scores.dtype)
        negentropy = torch.xlogy(table, table).sum(dim=-1)[nearest]
        wanted = table[nearest]
    return average(_divergence(wanted, negentropy, scores), weight, reduction)


def soft_assignment(
    features: torch.Tensor, centres: torch.Tensor, sharpness: float = 1.0
) -> torch.Tensor:
    """Return softmax_k(-sharpness * |t - centre_k|^2), [..., K], in float32 or better, without a gradient.

    Args:
        features: t [..., D].
        centres: [K, D].
        sharpness: tau > 0, which multiplies: the inverse of a temperature.

    Raises:
        ValueError: the sharpness is not positive.
    """
    with torch.no_grad():
        return _assignment_logits(in_float(features), centres, sharpness).softmax(dim=-1)


def own_nearest(
    features: torch.Tensor, centres: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return which of the centres of its sample's class is nearest to each place, int64 [B, ...] below S.

    Only those are looked at, so that no far one can be taken for another class's.

    Args:
        features: [B, ..., n].
        centres: [C, S, n].
        labels: int64 [B], all of them classes.
    """
    places = features.flatten(1, -2) if features.dim() > 2 else features.unsqueeze(1)
    own = centres.to(features.dtype)[labels]
    # From the centres' own mean, which changes no difference but loses fewer digits.
    middle = own.mean(dim=1, keepdim=True)
    places, own = places - middle, own - middle
    distances = own.square().sum(dim=-1).unsqueeze(1) - 2 * places @ own.transpose(1, 2)
    return distances.argmin(dim=-1).view(features.shape[:-1])


def _assignment_logits(
    features: torch.Tensor, centres: torch.Tensor, sharpness: float
) -> torch.Tensor:
    """Return -sharpness * |t - centre_k|^2 [..., K] from one product, but for a number that makes the maximum 0."""
    if not sharpness > 0:
        raise ValueError(f"sharpness is {sharpness}; it must be greater than 0")
    centres = in_float(centres).to(features.dtype)
    # |t|^2 is the same for all words; distances from the words' mean keep what is left small.
    middle = centres.mean(dim=0)
    centres = centres - middle
    rows = (features - middle).reshape(-1, features.shape[-1])
    lengths = -sharpness * centres.square().sum(dim=-1)
    logits = torch.addmm(lengths, rows, centres.T, alpha=2 * sharpness)
    logits -= logits.amax(dim=-1, keepdim=True)
    return logits.view(*features.shape[:-1], len(centres))


def _divergence(
    wanted: torch.Tensor, negentropy: torch.Tensor, scores: torch.Tensor
) -> torch.Tensor:
    """Return KL(wanted || softmax(scores)) over the last dimension; the scores are kept, no softmax of them is."""
    return negentropy + scores.logsumexp(dim=-1) - _product(wanted, scores)


def _product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.linalg.vecdot(first, second)
    return product


def _labelled(
    labels: torch.Tensor, weight: torch.Tensor | None, student: torch.Tensor
) -> torch.Tensor:
    """Return the weight with 0 where there is no label."""
    valid = (labels >= 0).to(torch.float64 if student.dtype == torch.float64 else torch.float32)
    if weight is None:
        return valid
    if weight.shape[:1] != labels.shape:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, which does not fit scores of shape {tuple(student.shape)}"
        )
    return weight * valid.view(-1, *[1] * (weight.dim() - 1))


def _check_places(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.dim() < 2 or student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"student scores have shape {tuple(student.shape)} and teacher features {tuple(teacher.shape)}; "
            "all but the last dimension must be equal"
        )


def _check_centres(
    student: torch.Tensor, teacher: torch.Tensor, centres: torch.Tensor, *, words: tuple[int, ...]
) -> None:
    if words != student.shape[-1:] or centres.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"centres have shape {tuple(centres.shape)}; with student scores {tuple(student.shape)} and teacher "
            f"features {tuple(teacher.shape)} there must be {student.shape[-1]} of width {teacher.shape[-1]}"
        )
