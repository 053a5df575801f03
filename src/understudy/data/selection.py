"""Choosing what to train on by a score of every sample: difference sampling (MiniPLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from understudy.errors import DataError, unknown_name

SELECTIONS = ("difference", "random")


@dataclass
class Select:
    """Which part of the training samples a stage learns from.

    The stage is as long as one over all samples: what is kept is seen more often.

    Attributes:
        name: "difference": the documents that the teacher finds much likelier than a small reference model does
            (MiniPLM), or "random": as many at random, to compare with; each seed draws its own.
        ratio: the share that is kept, in (0, 1].
        teacher: with "difference": whose likelihood counts, where there are several teachers.
        per_token: with "difference": by likelihood per token, as the authors' code does; false for that of the whole
            document, which prefers long ones.
    """

    name: Literal["difference", "random"]
    ratio: float = 0.5
    teacher: str | None = None
    per_token: bool = True

    def __post_init__(self) -> None:
        """Check what cannot be right."""
        if self.name not in SELECTIONS:
            raise unknown_name("selection", str(self.name), SELECTIONS)
        if not 0 < self.ratio <= 1:
            raise DataError(f"ratio is {self.ratio}; it must be above 0 and at most 1.")
        if self.name == "random" and self.teacher is not None:
            raise DataError("a random selection listens to no teacher; leave `teacher` out")


def difference_scores(
    teacher: torch.Tensor,
    reference: torch.Tensor,
    tokens: torch.Tensor,
    *,
    per_token: bool = True,
) -> torch.Tensor:
    """Return how much likelier each document is to the teacher than to a small reference model; large means keep.

    log p(x) - log p_ref(x), in nats: divided by the number of tokens (what the authors' code does, and the default), or
    as the sum of the paper, which prefers long documents where lengths differ.

    Args:
        teacher: log-likelihood of each document [N], the sum over its tokens. Both models have to share a tokenizer.
        reference: the same of the reference model [N].
        tokens: how many tokens were summed [N], at least 1 each.
        per_token: divide by `tokens`.

    Returns:
        Scores [N], float64, without gradient.

    Source: Gu et al., "MiniPLM: Knowledge Distillation for Pre-Training Language Models", ICLR 2025, equation 4.

    Raises:
        DataError: the lengths differ, a document has no token, or a likelihood is not finite; names the document.
    """
    if not teacher.shape == reference.shape == tokens.shape or teacher.dim() != 1:
        raise DataError(
            f"The teacher scored documents of shape {tuple(teacher.shape)}, the reference {tuple(reference.shape)}, "
            f"and the token counts have shape {tuple(tokens.shape)}; all must be one number per document."
        )
    _refuse(tokens < 1, tokens, "has {} scored tokens; leave such documents out")
    for who, likelihoods in (("teacher", teacher), ("reference", reference)):
        _refuse(~likelihoods.isfinite(), likelihoods, f"has log-likelihood {{}} under the {who}")
    difference = teacher.detach().double() - reference.detach().double()
    return difference / tokens if per_token else difference


def document_log_likelihoods(
    token_log_likelihoods: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of log-likelihoods of each document [B], in float64, and how many tokens it has [B].

    Args:
        token_log_likelihoods: log m(x_t | x_<t) of each token [B, T], in nats.
        mask: which tokens are scored [B, T], 0 or 1; whatever stands at others counts nothing.

    Raises:
        DataError: the shapes differ.
    """
    if token_log_likelihoods.shape != mask.shape or mask.dim() != 2:
        raise DataError(
            f"Log-likelihoods have shape {tuple(token_log_likelihoods.shape)} and the mask {tuple(mask.shape)}; both "
            "must be [documents, tokens]."
        )
    scored = mask != 0
    sums = torch.where(scored, token_log_likelihoods.detach().double(), 0.0).sum(dim=1)
    return sums, scored.sum(dim=1)


def keep_top(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return the numbers of the int(ratio * N) documents with the largest scores, ascending.

    Of equal scores the first come first, so that the choice is always the same. There is no threshold at 0.

    Args:
        scores: [N].
        ratio: share to keep, in (0, 1].

    Returns:
        int64 [int(ratio * N)].

    Source: Gu et al., "MiniPLM", ICLR 2025, equation 4; the authors' sort is not stable.

    Raises:
        DataError: the ratio is out of its range or keeps nothing, or a score is not finite.
    """
    _check(scores)
    if not 0 < ratio <= 1:
        raise DataError(f"ratio is {ratio}; it must be above 0 and at most 1.")
    count = int(ratio * len(scores))
    if count == 0:
        raise DataError(f"A ratio of {ratio} of {len(scores)} documents keeps none of them.")
    order = scores.argsort(descending=True, stable=True)
    return order[:count].sort().values


def keep_random(count: int, ratio: float, seed: int) -> torch.Tensor:
    """Return the numbers of int(ratio * count) documents drawn at random, ascending: the control for `keep_top`.

    Raises:
        DataError: the ratio is out of its range or keeps nothing.
    """
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return keep_top(draws, ratio)


@dataclass(frozen=True)
class Best:
    """The best documents of a stream, in memory that grows with what is kept and not with the stream.

    Attributes:
        size: how many are kept at most.
        scores: their scores, best first, float64.
        numbers: their numbers, int64.
    """

    size: int
    scores: torch.Tensor
    numbers: torch.Tensor

    @classmethod
    def of(cls, size: int) -> Best:
        """Return an empty one.

        Raises:
            DataError: the size is below 1.
        """
        if size < 1:
            raise DataError(f"size is {size}; a selection keeps at least one document.")
        return cls(size, torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64))

    def with_shard(self, scores: torch.Tensor, numbers: torch.Tensor) -> Best:
        """Return the best of what was kept and one more shard, in whatever order shards come.

        Args:
            scores: [n].
            numbers: the documents' numbers in the whole corpus [n], each seen once; the lower wins a tie.

        Raises:
            DataError: lengths differ, a score is not finite, or a document was seen before.
        """
        if scores.shape != numbers.shape:
            raise DataError(
                f"There are scores of shape {tuple(scores.shape)} for documents of shape {tuple(numbers.shape)}."
            )
        _check(scores)
        numbers = torch.cat([self.numbers, numbers.to(torch.int64)])
        if len(numbers.unique()) < len(numbers):
            raise DataError("A document of this shard was seen before; each is given once.")
        scores = torch.cat([self.scores, scores.detach().double()])
        by_number = numbers.argsort()
        best = by_number[scores[by_number].argsort(descending=True, stable=True)][: self.size]
        return Best(self.size, scores[best], numbers[best])

    def kept(self) -> torch.Tensor:
        """Return the numbers of what is kept, ascending."""
        return self.numbers.sort().values


def _check(scores: torch.Tensor) -> None:
    if scores.dim() != 1:
        raise DataError(f"Scores have shape {tuple(scores.shape)}; they must be one per document.")
    _refuse(~scores.isfinite(), scores, "has score {}")


def _refuse(wrong: torch.Tensor, values: torch.Tensor, what: str) -> None:
    """Name the first document that is wrong, and how many are."""
    rows = wrong.nonzero().flatten()
    if len(rows):
        first = int(rows[0])
        raise DataError(
            f"Document {first} {what.format(values[first].item())} ({len(rows)} of {len(values)} are so)."
        )
