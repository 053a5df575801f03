"""Relations between tokens inside self-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.reduction import in_float, reduce
from understudy.objectives.shapes import blank, divisor


@card(
    "attention",
    needs=("student_keys: real B H T C", "teacher_keys: real B H T C"),
    widths_differ=True,
)
def attention_relation(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    student_keys: torch.Tensor,
    teacher_keys: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """KL(A_t || A_s) of attention distributions A = softmax(Q K^T / sqrt(d)), averaged over heads, in nats.

    Args:
        student: queries [B, heads, T, D_s].
        teacher: queries [B, heads, T, D_t]; detached. As many heads; widths may differ.
        student_keys: [B, heads, T, D_s].
        teacher_keys: [B, heads, T, D_t]; detached.
        mask: [B, T], non-zero for tokens, 0 for padding, which is neither attended to nor counted.
        causal: whether a token attends only to itself and those before it.
        weight: weights or mask per sample [B], whose value is the mean over its tokens; or per token [B, T].
        reduction: "mean" over valid samples (tokens), "sum" or "none" (the weight's shape, [B] without one).

    Source: Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
    Transformers", NeurIPS 2020, L_AT, with its means over heads and over the tokens of each sequence.

    Raises:
        ValueError: shapes do not fit.
    """
    _check_heads(student, teacher, "queries", "attention needs as many heads in both")
    for queries, keys, side in (
        (student, student_keys, "student"),
        (teacher, teacher_keys, "teacher"),
    ):
        if queries.shape != keys.shape:
            raise ValueError(
                f"{side} queries have shape {tuple(queries.shape)} and {side} keys {tuple(keys.shape)}; "
                "they must be equal"
            )
    return _divergence(
        (student, student_keys), (teacher, teacher_keys), mask, causal, weight, reduction
    )


@card("attention", widths_differ=True)
def value_relation(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    relation_heads: int | None = None,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """KL(R_t || R_s) of relations R = softmax(V V^T / sqrt(d)) among vectors of one kind, mean over heads, in nats.

    Args:
        student: values (or queries, or keys) [B, heads_s, T, D_s].
        teacher: the same kind [B, heads_t, T, D_t]; detached.
        relation_heads: into how many heads the concatenated heads of either model are split anew; None to keep
            them, which needs equal numbers of heads.
        mask: [B, T], non-zero for tokens, 0 for padding, which is neither related to nor counted.
        causal: whether a token is related only to itself and those before it.
        weight: weights or mask per sample [B], whose value is the mean over its tokens; or per token [B, T].
        reduction: "mean" over valid samples (tokens), "sum" or "none" (the weight's shape, [B] without one).

    d is the width of a (new) head. MiniLM takes it of values; MiniLMv2 adds the same of queries and of keys, with
    more relation heads than attention heads.

    Source: Wang et al., "MiniLM", NeurIPS 2020, L_VR; Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation
    Distillation", Findings of ACL 2021.

    Raises:
        ValueError: shapes do not fit, or a width cannot be split into the relation heads.
    """
    if relation_heads is None:
        _check_heads(student, teacher, "vectors", "give relation_heads where heads differ")
    else:
        if student.shape[:1] + student.shape[2:3] != teacher.shape[:1] + teacher.shape[2:3]:
            raise ValueError(
                f"student vectors have shape {tuple(student.shape)} and teacher vectors {tuple(teacher.shape)}; "
                "both must be [B, heads, T, D] with equal B and T"
            )
        student, teacher = (
            _split(vectors, relation_heads, side)
            for vectors, side in ((student, "student"), (teacher, "teacher"))
        )
    return _divergence((student, student), (teacher, teacher), mask, causal, weight, reduction)


def _check_heads(student: torch.Tensor, teacher: torch.Tensor, what: str, advice: str) -> None:
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:3] != teacher.shape[:3]:
        raise ValueError(
            f"student {what} have shape {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)}; "
            f"both must be [B, heads, T, D] with equal B, heads and T ({advice})"
        )


def _split(vectors: torch.Tensor, heads: int, side: str) -> torch.Tensor:
    """Concatenate the heads and split them anew."""
    if vectors.dim() != 4 or heads < 1 or (vectors.shape[1] * vectors.shape[3]) % heads:
        raise ValueError(
            f"{side} vectors have shape {tuple(vectors.shape)}, which must be [B, heads, T, D] with heads * D "
            f"divisible by relation_heads, {heads}"
        )
    batch, _, tokens, _ = vectors.shape
    return vectors.transpose(1, 2).reshape(batch, tokens, heads, -1).transpose(1, 2)


def _divergence(
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    causal: bool,
    weight: torch.Tensor | None,
    reduction: str,
) -> torch.Tensor:
    batch, _, tokens, _ = student[0].shape
    if mask is not None and mask.shape != (batch, tokens):
        raise ValueError(f"mask has shape {tuple(mask.shape)}; it must be {(batch, tokens)}")
    if weight is not None and weight.shape not in ((batch,), (batch, tokens)):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be {(batch,)} or {(batch, tokens)}"
        )
    present = torch.ones(batch, tokens, dtype=torch.bool, device=student[0].device)
    if mask is not None:
        present = present & (mask != 0)
    if weight is not None and weight.dim() == 1:
        present = present & (weight != 0).unsqueeze(1)
    hidden = ~present[:, None, None, :]
    if causal:
        hidden = hidden | torch.ones_like(hidden[0, 0].expand(tokens, -1)).triu(1)
    ours = _log_relation(student[0], student[1], present, hidden)
    theirs = _log_relation(teacher[0].detach(), teacher[1].detach(), present, hidden)
    values = (theirs.exp() * (theirs - ours)).sum(dim=3).mean(dim=1)
    counts = present.to(values.dtype)
    if weight is not None and weight.dim() == 2:
        return reduce(values, counts * weight.to(values.dtype), reduction)
    length = counts.sum(dim=1)
    sequences = (counts * values).sum(dim=1) / divisor(length)
    share = (length > 0).to(values.dtype)
    return reduce(sequences, share if weight is None else share * weight.to(share.dtype), reduction)


def _log_relation(
    one: torch.Tensor, other: torch.Tensor, present: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    one, other = (
        blank(in_float(side).transpose(1, 2), present).transpose(1, 2) for side in (one, other)
    )
    scores = one @ other.mT / one.shape[-1] ** 0.5
    # The lowest number instead of -inf: a row without any token stays finite, and it is not counted.
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return F.log_softmax(scores, dim=-1)
