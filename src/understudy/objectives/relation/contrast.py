"""Contrast within the batch and against a queue."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.norms import unit
from understudy.objectives.reduction import in_float, reduce, same_shape
from understudy.objectives.shapes import blank, pair, sample_weights


@card(
    "vectors", minimum=None, invariances=("scale", "sample scale"), coupled=True, smallest_batch=2
)
def info_nce(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 0.07,
    queue: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """InfoNCE: -log(e^{cos(s_i, t_i) / T} / (sum_j e^{cos(s_i, t_j) / T} + sum_q e^{cos(s_i, q) / T})), in nats.

    Args:
        student: embeddings [B, D].
        teacher: embeddings of the same samples [B, D]; detached. Row i is the positive of sample i, the others are
            its negatives.
        temperature: T > 0.
        queue: further negatives [Q, D], such as the teacher's embeddings of earlier batches; detached.
        weight: weights or mask [B]. A sample of weight 0 is no negative either.

    Returns:
        One number, the mean over valid samples. Coupled: the negatives are the batch, so a split batch gives
        another value, and there is no reduction. With a queue a single sample is enough.

    For data sets that are too large for the memory bank of `crd`. B - 1 plus Q negatives bound the information it
    can see by their logarithm.

    Source: van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018; the
    queue: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020.

    Raises:
        ValueError: shapes differ, the queue's width is another, there are no negatives, or T is not positive.
    """
    same_shape(student, teacher, "embeddings")
    if student.dim() != 2:
        raise ValueError(
            f"student and teacher embeddings have shape {tuple(student.shape)}; it must be [B, D]"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")
    if queue is None and len(student) < 2:
        raise ValueError(
            f"student embeddings have shape {tuple(student.shape)}: without a queue, contrast needs at least 2 samples"
        )
    if queue is not None and (queue.dim() != 2 or queue.shape[1] != student.shape[1]):
        raise ValueError(
            f"queue has shape {tuple(queue.shape)} and the embeddings {tuple(student.shape)}; "
            "their widths must be equal"
        )
    student, teacher = pair(student, teacher, weight)
    ours, theirs = unit(student), unit(teacher)
    scores = ours @ theirs.mT
    own = torch.arange(len(ours), device=ours.device)
    if weight is not None:
        masked = (sample_weights(weight, ours) == 0).expand_as(scores)
        # A masked sample keeps its own score, so that its (uncounted) row stays finite.
        scores = scores.masked_fill(masked & (own.unsqueeze(1) != own), -torch.inf)
    if queue is not None:
        scores = torch.cat([scores, ours @ unit(in_float(queue).detach().to(ours.dtype)).mT], dim=1)
    loss = F.cross_entropy(scores / temperature, own, reduction="none")
    return reduce(loss, weight, "mean")


@card(
    "sequences",
    teacher=False,
    minimum=None,
    invariances=("scale", "sample scale"),
    coupled=True,
    smallest_batch=2,
)
def nt_xent(
    student: torch.Tensor, *, temperature: float = 0.5, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """NT-Xent: -log(e^{cos(s_iv, s_iu) / T} / sum over all rows but s_iv itself of e^{cos(s_iv, .) / T}), in nats.

    Args:
        student: embeddings [B, V, D], V views of B samples. u runs over the other views of the same sample.
        temperature: T > 0.
        weight: weights or mask [B]. A sample of weight 0 is no negative either.

    Returns:
        One number, the mean over valid samples, their views v and their other views u. Coupled: the negatives are the
        batch. There is no reduction.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
    equation 1 and algorithm 1, where V is 2.

    Raises:
        ValueError: the embeddings are not [B, V, D] with B and V at least 2, or T is not positive.
    """
    if student.dim() != 3 or min(student.shape[:2]) < 2:
        raise ValueError(
            f"student embeddings have shape {tuple(student.shape)}; contrast needs [B, V, D] with at least 2 samples "
            "and 2 views"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")
    samples, views = student.shape[:2]
    rows = unit(blank(in_float(student), weight)).flatten(0, 1)
    owner = torch.arange(samples, device=rows.device).repeat_interleave(views)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    positive = (owner.unsqueeze(1) == owner) & ~itself
    excluded = itself
    if weight is not None:
        masked = (sample_weights(weight, student) == 0).repeat_interleave(views)
        # A masked sample keeps its own views, so that its (uncounted) rows stay finite.
        excluded = itself | (masked & ~positive)
    scores = (rows @ rows.mT / temperature).masked_fill(excluded, -torch.inf)
    log_probability = scores.log_softmax(dim=1).masked_fill(~positive, 0.0)
    loss = -log_probability.sum(dim=1) / (views - 1)
    return reduce(loss.view(samples, views).mean(dim=1), weight, "mean")
