"""Contrastive representation distillation against a memory bank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from understudy.objectives.card import card
from understudy.objectives.reduction import in_float, reduce
from understudy.objectives.shapes import blank, divisor, sample_weights


@card("vectors", minimum=None, coupled=True, smallest_batch=2)
def crd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    index: torch.Tensor | None = None,
    log_normaliser: float | torch.Tensor | None = None,
    temperature: float = 0.07,
    samples: int | None = None,
    eps: float = 1e-7,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Noise-contrastive loss of embeddings against rows of a bank of the other model's embeddings, in nats.

    Equation: -log(P_0 / (P_0 + c + eps)) - sum_{k=1..K} log(c / (P_k + c + eps)) per sample, with P_k = exp(s.b_k /
    T) / Z, c = K / N, b_0 the sample's own row of the bank and b_1 .. b_K those of other samples.

    Args:
        student: embeddings [B, D]. They should have length 1.
        teacher: the bank [N, D], one row per sample of the training set; detached.
        index: which rows, int64 [B, 1 + K], the sample's own first; None for a bank of this very batch, with all
            other rows as negatives.
        log_normaliser: log Z, a constant of the whole run, set from the first batch by `crd_log_normaliser`. None
            to take it from this batch, where it is part of the function and differentiated with it.
        temperature: T > 0.
        samples: N in c; None for the rows of the bank.
        eps: added to the denominators, as in the authors' code.
        weight: weights or mask [B]. Without an index, a sample of weight 0 is no negative either.

    Returns:
        One number, the mean over valid samples. Coupled through Z and, without an index, through the negatives.
        There is no reduction.

    The method adds two of these, crd(student, teacher's bank) + crd(teacher's embedding, student's bank): the
    second trains the teacher's embedding, which is a module of the method. Computed from log P, so no score
    overflows. The scores of a large bank are gathered sample by sample, so that the rows [B, 1 + K, D] are never
    all in memory.

    Source: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, and the authors' code.
    The published weight is 0.8 with K = 16384.

    Raises:
        ValueError: widths differ, there are no negatives, the index does not fit, or T is not positive.
    """
    contrast = _contrast(student, teacher, index, temperature, weight)
    if contrast.scores.shape[1] < 2:
        raise ValueError(
            f"student embeddings have shape {tuple(student.shape)} and the bank {tuple(teacher.shape)}, with "
            f"{contrast.scores.shape[1]} row for each: contrast needs at least one row of another sample"
        )
    if log_normaliser is None:
        log_normaliser = contrast.log_normaliser(contrast.scores)
    log_p = contrast.scores - log_normaliser
    population = contrast.rows if samples is None else torch.full_like(contrast.rows, samples)
    ratio = contrast.negatives / divisor(population)
    log_sum = torch.logaddexp(log_p, (ratio + eps).log())
    positive = log_sum[:, 0] - log_p[:, 0]
    negative = torch.where(contrast.counted[:, 1:], log_sum[:, 1:] - ratio.log(), 0.0).sum(dim=1)
    return reduce(positive + negative, weight, "mean")


def crd_log_normaliser(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    index: torch.Tensor | None = None,
    temperature: float = 0.07,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return log Z of `crd`, log(N mean exp(s.b / T)) over the rows that a batch is compared with, without a gradient.

    Args:
        student: embeddings [B, D].
        teacher: the bank [N, D].
        index: as for `crd`.
        temperature: as for `crd`.
        weight: as for `crd`; only 0 or not matters.

    Raises:
        ValueError: as `crd`.
    """
    contrast = _contrast(student, teacher, index, temperature, weight)
    return contrast.log_normaliser(contrast.scores.detach())


@dataclass(frozen=True)
class _Contrast:
    """A batch against a bank.

    Attributes:
        scores: s.b / T [B, 1 + K], the sample's own row first.
        counted: which of them count [B, 1 + K].
        valid: which samples count [B].
        rows: how many rows of the bank count.
        negatives: how many rows of other samples count for each.
    """

    scores: torch.Tensor
    counted: torch.Tensor
    valid: torch.Tensor
    rows: torch.Tensor
    negatives: torch.Tensor

    def log_normaliser(self, scores: torch.Tensor) -> torch.Tensor:
        """Return log Z from scores that count; 0 when none does."""
        included = self.counted & self.valid.unsqueeze(1)
        count = included.sum().to(scores.dtype)
        some = count > 0
        total = scores.masked_fill(some & ~included, -torch.inf).logsumexp(dim=(0, 1))
        return torch.where(some, total + self.rows.log() - count.log(), 0.0)


def _contrast(
    student: torch.Tensor,
    bank: torch.Tensor,
    index: torch.Tensor | None,
    temperature: float,
    weight: torch.Tensor | None,
) -> _Contrast:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")
    if student.dim() != 2 or bank.dim() != 2 or student.shape[1] != bank.shape[1]:
        raise ValueError(
            f"student embeddings have shape {tuple(student.shape)} and the bank {tuple(bank.shape)}; "
            "they must be [B, D] and [N, D]"
        )
    if index is not None and (index.dim() != 2 or len(index) != len(student)):
        raise ValueError(
            f"index has shape {tuple(index.shape)} and the student embeddings {tuple(student.shape)}; "
            "it must be [B, 1 + K]"
        )
    student = in_float(student)
    valid = sample_weights(weight, student) != 0
    student, bank = blank(student, weight), bank.detach().to(student.dtype)
    if index is None:
        if len(student) != len(bank):
            raise ValueError(
                f"student embeddings have shape {tuple(student.shape)} and the bank {tuple(bank.shape)}; "
                "without an index, row i of the bank must belong to sample i"
            )
        # The bank is the batch: a sample that does not count is no negative of the others either.
        first = torch.arange(len(student), device=student.device)
        index = (first.unsqueeze(1) + first) % max(len(student), 1)
        counted = valid[index]
        rows = valid.sum().to(student.dtype)
        negatives = rows - 1
        bank = blank(bank, weight)
    else:
        counted = torch.ones_like(index, dtype=torch.bool)
        rows = torch.full((), len(bank), dtype=student.dtype, device=student.device)
        negatives = torch.full_like(rows, index.shape[1] - 1)
    scores = _scores(student, bank, index) / temperature
    return _Contrast(scores, counted, valid, rows, negatives)


def _scores(student: torch.Tensor, bank: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the inner products of embeddings [B, D] with rows index [B, R] of the bank [N, D]."""
    # All scores cost N D each; those of single rows R D, but scattered over memory, which takes some 40 times longer.
    if len(bank) <= 32 * index.shape[1]:
        return (student @ bank.mT).gather(1, index)
    return cast(torch.Tensor, _GatheredScores.apply(student, bank, index))


class _GatheredScores(torch.autograd.Function):
    """Scores of embeddings [B, D] with rows index [B, R] of a bank [N, D], holding the rows of one at a time."""

    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, bank: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Fetch a sample's rows and multiply."""
        ctx.save_for_backward(bank, index)
        return torch.stack(
            [bank[rows] @ embedding for rows, embedding in zip(index, student, strict=True)]
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Fetch them again: cheaper than keeping them."""
        bank, index = ctx.saved_tensors
        shares = [slopes @ bank[rows] for rows, slopes in zip(index, gradient, strict=True)]
        return torch.stack(shares), None, None
