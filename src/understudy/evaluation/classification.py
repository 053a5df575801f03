"""How good a classifier's predictions are: accuracy, macro-F1, likelihood, calibration.

Samples without a label are left out of every measure.
"""

from __future__ import annotations

from typing import TypedDict

import torch

from understudy.evaluation.predictions import Predictions

CALIBRATION_BINS = 15
"""Equal-width confidence bins, as in Guo et al. 2017."""


class PerClass(TypedDict):
    """Accuracy (recall) and sample count of each class; no accuracy where there is no sample."""

    accuracy: list[float | None]
    count: list[int]


class Reliability(TypedDict):
    """Equal-width bins of the confidence: mean confidence, accuracy (None where empty), count."""

    confidence: list[float | None]
    accuracy: list[float | None]
    count: list[int]


def accuracy(predictions: Predictions) -> float:
    """Return the fraction of labelled samples whose largest logit is at the label."""
    part = predictions.labelled()
    return _mean(part.logits.argmax(dim=1) == part.labels)


def macro_f1(predictions: Predictions) -> float:
    """Return the unweighted mean of the classes' F1 scores.

    F1 of a class is 2 TP / (2 TP + FP + FN). A class that is neither in the truth nor predicted has
    no F1 and is left out, as scikit-learn does with `f1_score(average="macro")` when `labels` is
    not given.
    """
    part = predictions.labelled()
    predicted = part.logits.argmax(dim=1)
    hits = torch.bincount(part.labels[predicted == part.labels], minlength=part.classes).double()
    truth = torch.bincount(part.labels, minlength=part.classes).double()
    answers = torch.bincount(predicted, minlength=part.classes).double()
    present = (truth + answers) > 0
    return float((2 * hits[present] / (truth + answers)[present]).mean())


def nll(predictions: Predictions) -> float:
    """Return the mean negative log-likelihood of the labels in nats (softmax at temperature 1)."""
    part = predictions.labelled()
    log_probabilities = part.logits.log_softmax(dim=1)
    return -float(log_probabilities.gather(1, part.labels[:, None]).double().mean())


def expected_calibration_error(predictions: Predictions, bins: int = CALIBRATION_BINS) -> float:
    """Return the expected calibration error, in [0, 1].

    The mean over samples of |accuracy - confidence| of the bin that the sample falls into (Guo et
    al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3). Bin m of M holds the
    confidences in ((m - 1) / M, m / M].
    """
    return calibration_error(reliability(predictions, bins))


def calibration_error(found: Reliability) -> float:
    """Return the expected calibration error of a reliability diagram."""
    total = sum(found["count"])
    return sum(
        count / total * abs(correct - confidence)
        for correct, confidence, count in zip(
            found["accuracy"], found["confidence"], found["count"], strict=True
        )
        if correct is not None and confidence is not None
    )


def reliability(predictions: Predictions, bins: int = CALIBRATION_BINS) -> Reliability:
    """Return the data of a reliability diagram: `bins` equal-width bins of the confidence."""
    part = predictions.labelled()
    confidence, predicted = part.logits.softmax(dim=1).max(dim=1)
    return reliability_of(confidence, predicted == part.labels, bins)


def reliability_of(
    confidence: torch.Tensor, correct: torch.Tensor, bins: int = CALIBRATION_BINS
) -> Reliability:
    """Return the data of a reliability diagram.

    Args:
        confidence: [N], in [0, 1].
        correct: bool [N], whether each answer was right.
        bins: equal-width bins.
    """
    confidence = confidence.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    # `bucketize` puts a value on an edge into the lower bin, which makes the bins open below and
    # closed above.
    bin_of = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(bin_of, minlength=bins)
    hits = torch.bincount(bin_of, correct.double(), minlength=bins)
    summed = torch.bincount(bin_of, confidence, minlength=bins)
    return {
        "confidence": _ratios(summed, count),
        "accuracy": _ratios(hits, count),
        "count": [int(value) for value in count],
    }


def per_class(predictions: Predictions) -> PerClass:
    """Return accuracy and number of labelled samples for each of the C classes."""
    part = predictions.labelled()
    right = part.labels[part.logits.argmax(dim=1) == part.labels]
    count = torch.bincount(part.labels, minlength=part.classes)
    hits = torch.bincount(right, minlength=part.classes)
    return {"accuracy": _ratios(hits, count), "count": [int(value) for value in count]}


def classification_metrics(predictions: Predictions) -> dict[str, float]:
    """Return accuracy, macro_f1, nll (nats) and ece under the names that `metrics.jsonl` uses."""
    return {
        "accuracy": accuracy(predictions),
        "macro_f1": macro_f1(predictions),
        "nll": nll(predictions),
        "ece": expected_calibration_error(predictions),
    }


def _mean(flags: torch.Tensor) -> float:
    return int(flags.sum()) / len(flags)


def _ratios(above: torch.Tensor, below: torch.Tensor) -> list[float | None]:
    pairs = zip(above.tolist(), below.tolist(), strict=True)
    return [value / count if count else None for value, count in pairs]
