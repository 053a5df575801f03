"""Measures of a classifier against scikit-learn and against the plain definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score

from understudy.errors import DataError
from understudy.evaluation import (
    Predictions,
    accuracy,
    classification_metrics,
    expected_calibration_error,
    macro_f1,
    nll,
    per_class,
    reliability,
)


def made_up(
    seed: int, samples: int, classes: int, scale: float = 2.0, unlabelled: int = 0
) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator) * scale
    labels = torch.randint(0, classes, (samples,), generator=generator)
    labels[:unlabelled] = -1
    return Predictions(logits, labels, torch.arange(samples))


sizes = {
    "seed": st.integers(0, 10_000),
    "samples": st.integers(1, 60),
    "classes": st.integers(2, 12),
}


@settings(max_examples=60, deadline=None)
@given(**sizes)
def test_equal_to_scikit_learn(seed: int, samples: int, classes: int) -> None:
    found = made_up(seed, samples, classes)
    truth, answer = found.labels.numpy(), found.logits.argmax(dim=1).numpy()
    probabilities = found.logits.double().softmax(dim=1).numpy()
    assert accuracy(found) == pytest.approx(accuracy_score(truth, answer), abs=1e-12)
    present = sorted(set(truth) | set(answer))
    expected = f1_score(truth, answer, labels=present, average="macro", zero_division=0)
    assert macro_f1(found) == pytest.approx(expected, abs=1e-12)
    assert nll(found) == pytest.approx(
        log_loss(truth, probabilities, labels=range(classes)), rel=1e-5, abs=1e-6
    )
    recalls = recall_score(truth, answer, labels=range(classes), average=None, zero_division=0)
    for index, value in enumerate(per_class(found)["accuracy"]):
        assert (value is None) == (index not in truth)
        assert value is None or value == pytest.approx(recalls[index], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(**sizes, bins=st.integers(1, 20))
def test_calibration_error_equals_the_plain_loop(
    seed: int, samples: int, classes: int, bins: int
) -> None:
    found = made_up(seed, samples, classes)
    confidence, answer = found.logits.softmax(dim=1).max(dim=1)
    error = 0.0
    for index in range(bins):
        inside = (confidence.double() > index / bins) & (confidence.double() <= (index + 1) / bins)
        if inside.any():
            right = (answer == found.labels)[inside].double().mean()
            error += float(
                inside.double().mean() * (right - confidence[inside].double().mean()).abs()
            )
    assert expected_calibration_error(found, bins) == pytest.approx(error, abs=1e-9)


def test_calibration_of_a_known_case() -> None:
    """Confidence 0.75 at an accuracy of one half is off by 0.25; edges belong to the bin below."""
    logits = torch.tensor([[math.log(3.0), 0.0]]).repeat(4, 1)
    found = Predictions(logits, torch.tensor([0, 0, 1, 1]), torch.arange(4))
    assert expected_calibration_error(found) == pytest.approx(0.25, abs=1e-6)
    edge = Predictions(torch.zeros(2, 2), torch.tensor([0, 1]), torch.arange(2))
    assert reliability(edge, bins=2)["count"] == [2, 0]
    assert reliability(edge, bins=2)["accuracy"] == [0.5, None]


def test_unlabelled_samples_change_nothing() -> None:
    whole = made_up(3, 50, 5, unlabelled=20)
    part = Predictions(whole.logits[20:], whole.labels[20:], whole.ids[20:])
    assert classification_metrics(whole) == classification_metrics(part)
    assert per_class(whole) == per_class(part)
    assert sum(per_class(whole)["count"]) == 30


def test_names_are_those_of_the_run_directory() -> None:
    assert list(classification_metrics(made_up(0, 10, 3))) == ["accuracy", "macro_f1", "nll", "ece"]


def test_extreme_logits_stay_finite() -> None:
    found = Predictions(
        torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.tensor([0, 0]), torch.arange(2)
    )
    assert nll(found) == pytest.approx(1e4)
    assert all(math.isfinite(value) for value in classification_metrics(found).values())


def test_without_labels_there_is_nothing_to_measure() -> None:
    with pytest.raises(DataError, match="has a label"):
        classification_metrics(made_up(0, 4, 3, unlabelled=4))
