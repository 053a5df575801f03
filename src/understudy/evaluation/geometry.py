"""Whether a student's embeddings lie to each other as its teacher's do."""

from __future__ import annotations

import torch
from torch.nn import functional

from understudy import objectives
from understudy.errors import DataError

SAMPLES = 1000
"""Test samples that are compared, the first ones: pairs of them are a million."""
METRICS = ("procrustes", "gram", "cka", "cosine_gap")


def geometry_metrics(student: torch.Tensor, teacher: torch.Tensor) -> dict[str, float | None]:
    """Return the distances of two geometries under the names that `metrics.jsonl` uses.

    - `procrustes`: squared Procrustes distance, in [0, 2]; see `objectives.procrustes`.
    - `gram`: squared distance of the Gram matrices, in [0, 2]; see `objectives.feature_gram`.
    - `cka`: linear centred kernel alignment, in [0, 1], 1 for equal geometries and for some that are not.
    - `cosine_gap`: mean over pairs of samples of |cos(s_i, s_j) - cos(t_i, t_j)|, in [0, 2], of embeddings as they are;
      the only one that sees where the origin lies.

    The first three are of embeddings whose mean is taken off and whose Frobenius norm is 1.

    Args:
        student: [N, D_s].
        teacher: [N, D_t], of the same samples in the same order.

    Returns:
        All None with fewer than 2 samples, or where all embeddings of a model are equal: there is no geometry then.

    Raises:
        DataError: the numbers of samples differ.
    """
    if len(student) != len(teacher):
        raise DataError(
            f"The student has embeddings of {len(student)} samples and the teacher of {len(teacher)}; they can only be "
            "compared on the same samples."
        )
    ours, theirs = student.double().cpu(), teacher.double().cpu()
    if len(ours) < 2 or any(bool((rows == rows[0]).all()) for rows in (ours, theirs)):
        return dict.fromkeys(METRICS)
    return {
        "procrustes": float(objectives.procrustes(ours, theirs)),
        "gram": float(objectives.feature_gram(ours, theirs)),
        "cka": 1 - float(objectives.cka(ours, theirs)),
        "cosine_gap": cosine_gap(ours, theirs),
    }


def cosine_gap(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Return the mean over pairs of different rows of |cos(s_i, s_j) - cos(t_i, t_j)|; a row of zeros has cosines of 0.

    Args:
        student: [N, D_s], N at least 2.
        teacher: [N, D_t].
    """
    ours, theirs = (functional.normalize(rows, dim=1) for rows in (student, teacher))
    gaps = (ours @ ours.T - theirs @ theirs.T).abs()
    count = len(gaps)
    return float((gaps.sum() - gaps.diagonal().sum()) / (count * (count - 1)))
