"""What a language model predicted for every token of a split, and how good that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from understudy.data.batch import UNLABELLED, Batch
from understudy.errors import DataError, ModelError
from understudy.evaluation.classification import calibration_error, reliability_of
from understudy.models.outputs import Outputs
from understudy.objectives import Head
from understudy.tasks.language import tokens_of

PART_NUMBERS = 2**22
"""Logits that are in memory at a time."""


@dataclass(frozen=True)
class TokenPredictions:
    """The predictions of one model for every token of a split that counts, in the order in which the batches came.

    Logits are made in parts when they are asked for, from hidden states where the model has those.

    Attributes:
        hidden: [N, H], last hidden states; None where `logits` are kept.
        head: the model's head; None without hidden states.
        logits: float32 [N, C] of a model whose head is not known; None with hidden states.
        labels: int64 [N], the tokens.
        ids: int64 [N], the id of the document that each token is of.
        domains: int64 [N], the domain of that document, -1 where it has none.
    """

    hidden: torch.Tensor | None
    head: Head | None
    logits: torch.Tensor | None
    labels: torch.Tensor
    ids: torch.Tensor
    domains: torch.Tensor

    def __len__(self) -> int:
        """Return the number of tokens N."""
        return len(self.labels)

    @property
    def vocabulary(self) -> int:
        """The number of tokens that there are, C."""
        if self.head is not None:
            return self.head.size
        assert self.logits is not None
        return self.logits.shape[1]

    @property
    def distributions(self) -> bool:
        """Whether the logits can be had, and not only what was measured of them."""
        return True

    def parts(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Give the logits [n, C] in float32, part after part, each with its place."""
        step = max(1, PART_NUMBERS // self.vocabulary)
        for start in range(0, len(self), step):
            place = slice(start, min(start + step, len(self)))
            if self.hidden is not None and self.head is not None:
                yield place, self.head.logits(self.hidden[place].float())
            else:
                assert self.logits is not None
                yield place, self.logits[place]

    @cached_property
    def scores(self) -> Scores:
        """What is measured of each token.

        Raises:
            ModelError: a logit is not a number, or +infinity.
        """
        nats, best, confidence = [], [], []
        with torch.no_grad():
            for place, logits in self.parts():
                logarithms = logits.log_softmax(dim=1)
                if not bool(logarithms.amax(dim=1).isfinite().all()):
                    self._refuse(place, logarithms)
                own = self.labels[place].to(logits.device).unsqueeze(1)
                nats.append(-logarithms.gather(1, own).squeeze(1).double().cpu())
                top = logarithms.max(dim=1)
                best.append(top.indices.cpu())
                confidence.append(top.values.exp().cpu())
        return Scores(torch.cat(nats), torch.cat(best), torch.cat(confidence))

    def _refuse(self, place: slice, logarithms: torch.Tensor) -> None:
        bad = ~logarithms.amax(dim=1).isfinite().cpu()
        first = int(self.ids[place][bad][0])
        raise ModelError(
            f"The model gave logits that are not finite (the first in document {first}): it has diverged, or its "
            "precision is too low for its values."
        )


@dataclass(frozen=True)
class Scores:
    """What is measured of each token, on the CPU.

    Attributes:
        nats: float64 [N], negative log-likelihood.
        best: int64 [N], the most likely token.
        confidence: float32 [N], its probability.
    """

    nats: torch.Tensor
    best: torch.Tensor
    confidence: torch.Tensor


class ScoredTokens(TokenPredictions):
    """Predictions of which only the scores were kept, as in a store of the largest logits.

    Args:
        scores: what was measured of each token.
        vocabulary: the number of tokens that there are.
        labels: see `TokenPredictions`.
        ids: see `TokenPredictions`.
        domains: see `TokenPredictions`.
    """

    def __init__(
        self,
        scores: Scores,
        vocabulary: int,
        labels: torch.Tensor,
        ids: torch.Tensor,
        domains: torch.Tensor,
    ) -> None:
        """Keep what is given."""
        super().__init__(None, None, None, labels, ids, domains)
        # Where `cached_property` looks first.
        self.__dict__.update(scores=scores, _vocabulary=vocabulary)

    @property
    def vocabulary(self) -> int:
        """The number of tokens that there are, C."""
        found: int = self.__dict__["_vocabulary"]
        return found

    @property
    def distributions(self) -> bool:
        """False: the logits are not there."""
        return False

    def parts(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Refuse.

        Raises:
            DataError: always.
        """
        raise DataError("Only scores of these predictions were kept, no logits.")


def predict_tokens(
    forward: Callable[[Batch], Outputs], batches: Iterable[Batch]
) -> TokenPredictions:
    """Run `forward` over `batches` and collect what it gives. Evaluation mode is the caller's part.

    Raises:
        DataError: there are no tokens.
    """
    hidden, logits = [], []
    labels, ids, domains = [], [], []
    head: Head | None = None
    with torch.no_grad():
        for batch in batches:
            outputs, tokens = forward(batch), tokens_of(batch)
            if outputs.hidden is not None:
                hidden.append(outputs.hidden.detach())
                head = outputs.head
            else:
                assert outputs.logits is not None
                logits.append(outputs.logits.detach().float())
            owners = tokens.owners
            labels.append(tokens.labels.cpu())
            ids.append(batch.index[owners].cpu())
            known = batch.labels
            given = torch.full_like(owners, UNLABELLED) if known is None else known[owners]
            domains.append(given.cpu())
    if not labels or sum(map(len, labels)) == 0:
        raise DataError("There are no tokens to predict: the split is empty.")
    return TokenPredictions(
        torch.cat(hidden) if hidden else None,
        head,
        torch.cat(logits) if logits else None,
        torch.cat(labels),
        torch.cat(ids),
        torch.cat(domains),
    )


def token_metrics(predictions: TokenPredictions) -> dict[str, float]:
    """Return accuracy, nll (nats per token), perplexity and ece under the names that `metrics.jsonl` uses."""
    scores = predictions.scores
    correct = scores.best == predictions.labels
    mean = float(scores.nats.mean())
    return {
        "accuracy": float(correct.double().mean()),
        "nll": mean,
        "perplexity": perplexity(mean),
        "ece": calibration_error(reliability_of(scores.confidence, correct)),
    }


def perplexity(nats: float) -> float:
    """Return exp of nats per token; infinite where that is beyond float64."""
    return math.exp(nats) if nats < 709 else math.inf


def by_domain(predictions: TokenPredictions, count: int) -> dict[str, list[float | None]] | None:
    """Return accuracy, perplexity and number of tokens of each domain; None where there are no domains.

    Args:
        predictions: of a split.
        count: the number of domains.
    """
    if count == 0 or not bool((predictions.domains != UNLABELLED).any()):
        return None
    scores = predictions.scores
    correct = (scores.best == predictions.labels).double()
    found: dict[str, list[float | None]] = {"accuracy": [], "count": [], "perplexity": []}
    for domain in range(count):
        own = predictions.domains == domain
        tokens = int(own.sum())
        found["count"].append(tokens)
        found["accuracy"].append(float(correct[own].mean()) if tokens else None)
        found["perplexity"].append(perplexity(float(scores.nats[own].mean())) if tokens else None)
    return found


def token_fidelity(student: TokenPredictions, teacher: TokenPredictions) -> dict[str, float]:
    """Return the agreement of the most likely tokens, and KL(teacher || student) in nats, means over tokens.

    Of a teacher whose logits are not there only the agreement can be said.

    Raises:
        DataError: the two did not predict the same tokens, or have vocabularies of different lengths.
    """
    same = len(student) == len(teacher) and torch.equal(student.ids, teacher.ids)
    if not same or not torch.equal(student.labels, teacher.labels):
        raise DataError(
            f"Student and teacher predicted different tokens ({len(student)} and {len(teacher)}), so that they "
            "cannot be compared token by token."
        )
    if student.vocabulary != teacher.vocabulary:
        raise DataError(
            f"The student's vocabulary has {student.vocabulary} tokens and the teacher's {teacher.vocabulary}."
        )
    agree = student.scores.best == teacher.scores.best
    found = {"agreement": float(agree.double().mean())}
    if not (student.distributions and teacher.distributions):
        return found
    total = 0.0
    with torch.no_grad():
        for (_, ours), (_, theirs) in zip(student.parts(), teacher.parts(), strict=True):
            log_q, log_p = ours.log_softmax(dim=1), theirs.log_softmax(dim=1)
            terms = log_p.exp() * (log_p - log_q)
            total += float(torch.where(log_p.isneginf(), 0.0, terms).sum(dim=1).double().sum())
    return {**found, "kl": max(total / len(student), 0.0)}
