"""Conditional mutual information of inputs and predictions given the class (MCMI)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.divergence import blank_invalid, kullback_leibler
from understudy.objectives.labels import labelled_weight, one_class
from understudy.objectives.reduction import in_float, reduce


@card(
    "logits",
    needs=("centroids: probabilities C C", "labels"),
    teacher=False,
    minimum=None,
    invariances=("shift",),
)
def conditional_mutual_information(
    logits: torch.Tensor,
    centroids: torch.Tensor,
    labels: torch.Tensor,
    *,
    floor: float = -80.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """I(X; prediction | class) = mean of KL(softmax(z_i) || Q[y_i]), in nats: the spread within classes.

    With Q the centroids of the same data it is the (weighted) mean over classes of the entropy of the centroid minus
    the mean entropy of its predictions. To prepare a teacher, subtract it, times a small weight, from the
    cross-entropy.

    Args:
        logits: z [B, C], of the model that is trained (a teacher, usually).
        centroids: Q [C, C], a row of probabilities for each true class, as from `class_centroids`; detached.
        labels: true classes int64 [B] with -1 for "no label".
        floor: log Q is not let below this, so that a class that never occurs cannot make the value infinite.
        weight: weights or mask [B].
        reduction: "mean" over labelled valid samples, "sum" or "none" ([B]).

    A row of Q that is not a number (a class that `class_centroids` was let miss) makes the value not a number if a
    sample asks for it.

    Source: Ye et al., "Bayes Conditional Distribution Estimation for Knowledge Distillation Based on Conditional
    Mutual Information", ICLR 2024. Temperature 1, as there.

    Raises:
        ValueError: shapes do not fit, or labels are not classes (a mixed label has no centroid).
    """
    _check(logits, labels)
    count = logits.shape[-1]
    if centroids.shape != (count, count):
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and centroids {tuple(centroids.shape)}; "
            f"centroids must have shape {(count, count)}"
        )
    classes, valid = one_class(logits, labels)
    weight = labelled_weight(valid, weight)
    logits = blank_invalid(in_float(logits), weight)
    centre = in_float(centroids).detach().log().clamp_min(floor)[classes]
    divergence = kullback_leibler(logits.log_softmax(dim=-1), blank_invalid(centre, weight))
    return reduce(divergence, weight, reduction)


def class_sums(
    logits: torch.Tensor, labels: torch.Tensor, *, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum [C, C] of softmax(logits) over the samples of each class, and their (weighted) number [C].

    Add up over batches (and ranks) and give the totals to `class_centroids`.

    Args:
        logits: [B, C].
        labels: true classes int64 [B] with -1 for "no label".
        weight: weights or mask [B].

    Raises:
        ValueError: shapes do not fit, or labels are not classes.
    """
    _check(logits, labels)
    classes, valid = one_class(logits, labels)
    weight = labelled_weight(valid, weight)
    probabilities = blank_invalid(in_float(logits.detach()), weight).softmax(dim=-1)
    member = F.one_hot(classes, logits.shape[-1]).to(probabilities.dtype)
    member = member * weight.to(probabilities.dtype).unsqueeze(-1)
    return member.mT @ probabilities, member.sum(dim=0)


def class_centroids(
    sums: torch.Tensor, counts: torch.Tensor, *, allow_missing: bool = False
) -> torch.Tensor:
    """Return the mean prediction [C, C] of each class, from the totals of `class_sums`.

    Args:
        sums: [C, C].
        counts: [C].
        allow_missing: leave the row of a class without samples at NaN.

    Raises:
        ValueError: classes without samples, which it names; or shapes do not fit.
    """
    if sums.shape != (counts.numel(), counts.numel()) or counts.dim() != 1:
        raise ValueError(
            f"sums have shape {tuple(sums.shape)} and counts {tuple(counts.shape)}; they must be [C, C] and [C]"
        )
    missing = (counts <= 0).nonzero().flatten().tolist()
    if missing and not allow_missing:
        raise ValueError(
            f"no samples of class {', '.join(map(str, missing))}; a class without samples has no centroid"
        )
    return sums / counts.unsqueeze(1)


def _check(logits: torch.Tensor, labels: torch.Tensor) -> None:
    if logits.dim() != 2 or labels.is_floating_point() or labels.shape != logits.shape[:1]:
        kind = "soft labels" if labels.is_floating_point() else "labels"
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and {kind} {tuple(labels.shape)}; "
            "they must be [B, C] and class ids [B]"
        )
