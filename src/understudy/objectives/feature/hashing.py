"""Locality-sensitive hashing: on which side of random hyperplanes a feature lies."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.reduction import in_float, reduce, same_shape
from understudy.objectives.shapes import check_choice, pair


@card("vectors", needs=("hash_weight: real 16 C", "hash_bias: real 16"), minimum=None)
def lsh(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    hash_weight: torch.Tensor,
    hash_bias: torch.Tensor | None = None,
    distance: Literal["bce", "l1"] = "bce",
    squared_error: bool = True,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Hash loss: mean_n BCE(h_n.s + b_n, [h_n.t + b_n > 0]), plus mean_d (s - t)_d^2, per sample, in nats.

    Args:
        student: features in the teacher's width [B, D].
        teacher: features [B, D]; detached. With a stored teacher these are of the un-augmented images for every
            view (eLSH).
        hash_weight: H [N, D], frozen random directions.
        hash_bias: b [N], frozen, as `lsh_bias` gives it; None for zeros.
        distance: "bce" as above, or "l1" for mean_n |h_n.s - h_n.t|.
        squared_error: whether to add the squared error (LSHL2), without which lengths are free.
        weight: weights or mask [B]. The selective variant counts only samples that the teacher classifies
            correctly: pass that mask.
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    A feature on the hyperplane has code 0 (strictly greater). The cross-entropy is not 0 at student = teacher.

    Source: Wang, Ge and Wu, "Distilling Knowledge by Mimicking Features", TPAMI 2021, and the authors' code; Zhou,
    Zhu and Wu, "All You Need in Knowledge Distillation Is a Tailored Coordinate System", AAAI 2025, for its use
    with stored features. Deviation: a batch in which the teacher is always wrong gives 0 in the selective variant
    (the authors' code: NaN).

    Raises:
        ValueError: shapes differ, the hash does not fit the width, or the distance is unknown.
    """
    check_choice(distance, ("bce", "l1"), "distance")
    same_shape(student, teacher, "features")
    if student.dim() != 2 or hash_weight.dim() != 2 or hash_weight.shape[1] != student.shape[1]:
        raise ValueError(
            f"hash_weight has shape {tuple(hash_weight.shape)} and the features {tuple(student.shape)}; "
            "they must be [N, D] and [B, D]"
        )
    if hash_bias is not None and hash_bias.shape != hash_weight.shape[:1]:
        raise ValueError(
            f"hash_bias has shape {tuple(hash_bias.shape)} and hash_weight {tuple(hash_weight.shape)}; "
            "there must be one bias per direction"
        )
    student, teacher = pair(student, teacher, weight)
    directions = hash_weight.detach().to(student.dtype)
    if distance == "l1":
        loss = ((student - teacher) @ directions.mT).abs().mean(dim=1)
    else:
        bias = None if hash_bias is None else hash_bias.detach().to(student.dtype)
        code = (F.linear(teacher, directions, bias) > 0).to(student.dtype)
        scores = F.linear(student, directions, bias)
        loss = F.binary_cross_entropy_with_logits(scores, code, reduction="none").mean(dim=1)
    if squared_error:
        loss = loss + (student - teacher).square().mean(dim=1)
    return reduce(loss, weight, reduction)


def lsh_bias(
    features: torch.Tensor,
    hash_weight: torch.Tensor,
    *,
    centre: Literal["median", "mean"] = "median",
) -> torch.Tensor:
    """Return the bias b [N] that puts the features' middle on each hyperplane: b_n = -median_i (h_n.t_i).

    Args:
        features: the teacher's features of the training set [M, D].
        hash_weight: H [N, D].
        centre: "median" (of an even count the lower middle value) or "mean".

    With no bias, nearly all codes of features after a ReLU agree.

    Raises:
        ValueError: shapes do not fit, or the centre is unknown.
    """
    check_choice(centre, ("median", "mean"), "centre")
    if features.dim() != 2 or hash_weight.dim() != 2 or hash_weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"hash_weight has shape {tuple(hash_weight.shape)} and the features {tuple(features.shape)}; "
            "they must be [N, D] and [M, D]"
        )
    scores = in_float(features).detach() @ in_float(hash_weight).detach().mT
    return -(scores.median(dim=0).values if centre == "median" else scores.mean(dim=0))
