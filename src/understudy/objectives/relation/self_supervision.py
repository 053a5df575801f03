"""Self-supervised knowledge distillation: which upright image a transformed one came from.

Samples come as [B, V, ...]: V views of B images, the first view the upright one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.norms import unit
from understudy.objectives.reduction import in_float, reduce, same_shape
from understudy.objectives.shapes import blank, check_batch, check_samples, pair, sample_weights


@card(
    "sequences",
    teacher=False,
    minimum=None,
    invariances=("scale", "sample scale"),
    coupled=True,
    smallest_batch=2,
)
def sskd_auxiliary(student: torch.Tensor, *, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of finding a transformed view's own image by cosine: -log softmax_j(cos(e_iv, e_j0))_i, in nats.

    Args:
        student: embeddings [B, V, D]; view 0 is upright. (In the method these are the teacher's, whose head this
            trains.)
        weight: weights or mask [B]. An image of weight 0 is no candidate either.

    Returns:
        One number, the mean over valid images and views 1 .. V - 1. Coupled: the candidates are the batch. There is
        no reduction.

    Source: Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020; no temperature, as in the
    authors' code.

    Raises:
        ValueError: the embeddings are not [B, V, D] with B and V at least 2, or the weight is not one number per
            image.
    """
    log_probability = _log_candidates(student, weight, 1.0)
    own = log_probability.diagonal(dim1=0, dim2=2)
    return reduce(-own.mean(dim=0), weight, "mean")


@card(
    "sequences",
    widths_differ=True,
    invariances=("scale", "sample scale"),
    coupled=True,
    smallest_batch=2,
)
def sskd_similarity(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 0.5,
    ratio: float = 0.75,
    official: bool = False,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """T^2 * KL of the distributions over candidate images, softmax_j(cos(e_iv, e_j0) / T), in nats.

    Args:
        student: embeddings [B, V, D_s]; view 0 is upright.
        teacher: embeddings [B, V, D_t]; detached.
        temperature: T > 0.
        ratio: share of those views that is kept for which the teacher does not rank the right image first; the best
            ranked are kept. All others are kept anyway.
        official: True for the authors' choice between views of the same rank, the one that comes first in the batch;
            otherwise the one whose truth the teacher finds more probable, wherever it stands.
        weight: weights or mask [B]. An image of weight 0 is no candidate either.

    Returns:
        One number, the mean over kept views; 0 when none is kept (torchdistill: NaN). Coupled: the candidates and
        the ranking are the batch. There is no reduction.

    Source: Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020, and the authors' code.

    Raises:
        ValueError: the embeddings are not [B, V, D] with equal B and V of at least 2, or the weight is not one
            number per image.
    """
    _check_views(student, teacher)
    ours = _log_candidates(student, weight, temperature)
    cosines = _cosines(in_float(teacher).detach(), weight)
    own = cosines.diagonal(dim1=0, dim2=2).mT
    theirs = F.log_softmax(cosines / temperature, dim=2)
    share = sample_weights(weight, ours)
    kept = _kept(cosines, own, ratio, share, official)
    return reduce(temperature**2 * _divergence(ours, theirs), kept * share.unsqueeze(1), "mean")


@card("tokens", needs=("labels",), invariances=("shift",), coupled=True)
def sskd_transformed(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    labels: torch.Tensor,
    temperature: float = 4.0,
    ratio: float = 1.0,
    official: bool = False,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """T^2 * KL(softmax(t / T) || softmax(s / T)) on transformed views, without the teacher's worst, in nats.

    Args:
        student: logits [B, V, C]; view 0 is upright and not used here.
        teacher: logits [B, V, C]; detached.
        labels: int64 [B] (or [B, V]); -1 for "no label", which does not count, since there is no truth to rank.
        temperature: T > 0.
        ratio: share of the views kept that the teacher misclassifies; those with the best ranked truth are kept.
            All others are kept anyway.
        official: True for the authors' choice between views of the same rank, the one that comes first in the batch;
            otherwise the one whose truth the teacher finds more probable, wherever it stands.
        weight: weights or mask [B].

    Returns:
        One number, the mean over kept views; 0 when none is kept. Coupled by the ranking unless `ratio` is 1. There
        is no reduction.

    Source: Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020, and the authors' code.

    Raises:
        ValueError: shapes differ or the labels do not fit.
    """
    same_shape(student, teacher)
    if student.dim() != 3 or student.shape[1] < 2:
        raise ValueError(
            f"student and teacher logits have shape {tuple(student.shape)}; it must be [B, V, C] with at least 2 views"
        )
    if labels.shape not in (student.shape[:1], student.shape[:2]):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and the logits {tuple(student.shape)}; "
            f"labels must have shape {tuple(student.shape[:1])} or {tuple(student.shape[:2])}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")
    student, teacher = (side[:, 1:] for side in pair(student, teacher, weight))
    truth = labels.unsqueeze(1) if labels.dim() == 1 else labels[:, 1:]
    truth = truth.expand(-1, student.shape[1])
    own = teacher.gather(2, truth.clamp_min(0).unsqueeze(2)).squeeze(2)
    share = sample_weights(weight, student).unsqueeze(1) * (truth >= 0)
    kept = _kept(teacher, own, ratio, share, official)
    ours = F.log_softmax(student / temperature, dim=2)
    theirs = F.log_softmax(teacher / temperature, dim=2)
    return reduce(temperature**2 * _divergence(ours, theirs), kept * share, "mean")


def _check_views(student: torch.Tensor, teacher: torch.Tensor) -> None:
    check_batch(student, teacher, "embeddings", dims=3)
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student embeddings have shape {tuple(student.shape)} and teacher embeddings {tuple(teacher.shape)}; "
            "both must be [B, V, D] with equal B and V"
        )


def _cosines(embeddings: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return cosines [B, V - 1, B] of transformed views with upright ones; far below any for images of weight 0."""
    if embeddings.dim() != 3 or embeddings.shape[1] < 2:
        raise ValueError(
            f"embeddings have shape {tuple(embeddings.shape)}; it must be [B, V, D] with at least 2 views"
        )
    check_samples(embeddings, 2, "finding an image among others needs")
    directions = unit(blank(embeddings, weight))
    cosines = directions[:, 1:] @ directions[:, 0].mT
    if weight is None:
        return cosines
    dropped = sample_weights(weight, embeddings) == 0
    return cosines.masked_fill(dropped, -1e30)


def _log_candidates(
    embeddings: torch.Tensor, weight: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")
    return F.log_softmax(_cosines(in_float(embeddings), weight) / temperature, dim=2)


def _divergence(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return (theirs.exp() * (theirs - ours)).sum(dim=-1)


def _kept(
    scores: torch.Tensor, own: torch.Tensor, ratio: float, share: torch.Tensor, official: bool
) -> torch.Tensor:
    """Return 1 for views that count and 0 for the others: all whose truth ranks first, and the best share of the rest.

    Args:
        scores: the teacher's, [B, V - 1, N].
        own: that of the truth [B, V - 1].
        ratio: the share of those that the teacher gets wrong, rounded down.
        share: weights [B] or [B, V - 1]; views of weight 0 come last and take no one's place.
        official: whether the position in the batch decides between equal ranks.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is {ratio}; it must be in [0, 1]")
    rank = (scores > own.unsqueeze(2)).sum(dim=2)
    doubt = torch.zeros_like(own) if official else 1 - torch.exp(own - scores.logsumexp(dim=2))
    valid = (share if share.dim() == 2 else share.unsqueeze(1)).expand_as(rank) != 0
    order = torch.where(valid, rank + doubt, torch.inf).flatten().argsort(stable=True)
    wrong = (valid & (rank > 0)).sum()
    count = (valid & (rank == 0)).sum() + (wrong * ratio).floor()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return ((place < count).view_as(rank) & valid).to(scores.dtype)
