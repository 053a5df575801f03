"""How answers are measured, task by task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from understudy.data.batch import Batch
from understudy.evaluation.classification import (
    accuracy,
    classification_metrics,
    nll,
    per_class,
    reliability,
    reliability_of,
)
from understudy.evaluation.fidelity import fidelity_metrics
from understudy.evaluation.predictions import Predictions, predict
from understudy.evaluation.tokens import (
    TokenPredictions,
    by_domain,
    perplexity,
    predict_tokens,
    token_fidelity,
    token_metrics,
)
from understudy.models.outputs import Outputs
from understudy.tasks import LanguageModelling, Task

Answers = Predictions | TokenPredictions
"""What a model answered for every sample, or every token, of a split."""
A = TypeVar("A", Predictions, TokenPredictions)


class Assessment(Protocol[A]):
    """How the answers of one task are measured. Names of measures are those that `metrics.jsonl` has."""

    def collect(self, forward: Callable[[Batch], Outputs], batches: Iterable[Batch]) -> A:
        """Run a model over a split."""

    def validation(self, answers: A) -> dict[str, float]:
        """Return what is measured after every epoch."""

    def metrics(self, answers: A) -> dict[str, float]:
        """Return what is measured at the end."""

    def details(self, answers: A, classes: int) -> dict[str, Any]:
        """Return `per_class` (or domain) and `calibration`."""

    def fidelity(self, student: A, teachers: Sequence[A]) -> dict[str, float]:
        """Return how a student's answers compare with those of a teacher, or with the average of several."""


class ClassificationAssessment:
    """Of classes."""

    def collect(self, forward: Callable[[Batch], Outputs], batches: Iterable[Batch]) -> Predictions:
        """Return the logits of all samples."""

        def logits(batch: Batch) -> torch.Tensor:
            given = forward(batch).logits
            assert given is not None
            return given

        return predict(logits, batches)

    def validation(self, answers: Predictions) -> dict[str, float]:
        """Return accuracy and nll."""
        return {"accuracy": accuracy(answers), "nll": nll(answers)}

    def metrics(self, answers: Predictions) -> dict[str, float]:
        """Return accuracy, macro_f1, nll and ece."""
        return classification_metrics(answers)

    def details(self, answers: Predictions, classes: int) -> dict[str, Any]:
        """Return accuracy by class, and the reliability of confidences."""
        return {"per_class": per_class(answers), "calibration": reliability(answers)}

    def fidelity(self, student: Predictions, teachers: Sequence[Predictions]) -> dict[str, float]:
        """Return agreement and kl; several teachers count as the mean of their probabilities."""
        reference = teachers[0]
        if len(teachers) > 1:
            rows = torch.stack([each.logits for each in teachers])
            mean = rows.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(teachers))
            reference = Predictions(mean, reference.labels, reference.ids)
        return fidelity_metrics(student, reference)


class LanguageAssessment:
    """Of tokens."""

    def collect(
        self, forward: Callable[[Batch], Outputs], batches: Iterable[Batch]
    ) -> TokenPredictions:
        """Return the predictions of all tokens."""
        return predict_tokens(forward, batches)

    def validation(self, answers: TokenPredictions) -> dict[str, float]:
        """Return accuracy, nll and perplexity."""
        scores = answers.scores
        mean = float(scores.nats.mean())
        correct = (scores.best == answers.labels).double().mean()
        return {"accuracy": float(correct), "nll": mean, "perplexity": perplexity(mean)}

    def metrics(self, answers: TokenPredictions) -> dict[str, float]:
        """Return accuracy, nll, perplexity and ece."""
        return token_metrics(answers)

    def details(self, answers: TokenPredictions, classes: int) -> dict[str, Any]:
        """Return measures by domain, and the reliability of confidences."""
        scores = answers.scores
        return {
            "per_class": by_domain(answers, classes),
            "calibration": reliability_of(scores.confidence, scores.best == answers.labels),
        }

    def fidelity(
        self, student: TokenPredictions, teachers: Sequence[TokenPredictions]
    ) -> dict[str, float]:
        """Return agreement and kl with a teacher; nothing where there are several, or other tokens."""
        reference = teachers[0]
        comparable = len(student) == len(reference) and torch.equal(
            student.labels, reference.labels
        )
        if len(teachers) > 1 or not comparable or student.vocabulary != reference.vocabulary:
            return {}
        return token_fidelity(student, reference)


def assessment_of(task: Task) -> Assessment[Any]:
    """Return how the answers of a task are measured."""
    return (
        LanguageAssessment() if isinstance(task, LanguageModelling) else ClassificationAssessment()
    )
