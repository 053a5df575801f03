"""Agreement and divergence between a student and its teacher."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import DataError
from understudy.evaluation import Predictions, agreement, fidelity, fidelity_metrics, kl_to_teacher


def predictions(logits: torch.Tensor, ids: torch.Tensor | None = None) -> Predictions:
    return Predictions(
        logits, torch.full((len(logits),), -1), torch.arange(len(logits)) if ids is None else ids
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), samples=st.integers(1, 40), classes=st.integers(2, 10))
def test_equal_to_torch_and_never_negative(seed: int, samples: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(samples, classes, generator=generator) * 3 for _ in range(2))
    found = kl_to_teacher(predictions(student), predictions(teacher))
    expected = torch.nn.functional.kl_div(
        student.double().log_softmax(1),
        teacher.double().log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )
    assert found == pytest.approx(float(expected), abs=1e-9)
    shifted = predictions(teacher + torch.randn(samples, 1, generator=generator))
    assert 0 <= kl_to_teacher(shifted, predictions(teacher)) < 1e-6


def test_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = predictions(torch.randn(10, 3)), predictions(torch.randn(10, 3))
    whole = kl_to_teacher(student, teacher)
    monkeypatch.setattr(fidelity, "PART", 3)
    assert kl_to_teacher(student, teacher) == pytest.approx(whole, rel=1e-12)


def test_a_model_agrees_with_itself() -> None:
    same = predictions(torch.randn(20, 4))
    assert fidelity_metrics(same, same) == {"agreement": 1.0, "kl": 0.0}


def test_known_values() -> None:
    student = predictions(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    teacher = predictions(torch.tensor([[0.0, math.log(3.0)], [2.0, 0.0]]))
    assert agreement(student, teacher) == 0.5
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_to_teacher(student, teacher) == pytest.approx(first / 2, abs=1e-7)


def test_the_direction_is_teacher_to_student() -> None:
    sharp, flat = predictions(torch.tensor([[5.0, 0.0]])), predictions(torch.tensor([[0.0, 0.0]]))
    assert kl_to_teacher(student=flat, teacher=sharp) < math.log(2)
    assert kl_to_teacher(student=sharp, teacher=flat) > math.log(2)


def test_classes_that_are_ruled_out() -> None:
    """What the teacher rules out costs nothing; what only the student rules out, everything."""
    full, padded = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 2.0, -torch.inf]])
    assert math.isfinite(kl_to_teacher(student=predictions(full), teacher=predictions(padded)))
    assert kl_to_teacher(student=predictions(padded), teacher=predictions(padded)) == 0.0
    assert kl_to_teacher(student=predictions(padded), teacher=predictions(full)) == math.inf


@pytest.mark.parametrize("measure", [agreement, kl_to_teacher])
def test_other_samples_are_refused(measure: object) -> None:
    assert callable(measure)
    logits = torch.randn(3, 2)
    with pytest.raises(
        DataError, match="at position 1 the student has sample 7 and the teacher sample 1"
    ):
        measure(predictions(logits, torch.tensor([0, 7, 2])), predictions(logits))
    with pytest.raises(DataError, match="on 2 samples and the teacher on 3"):
        measure(predictions(logits[:2]), predictions(logits))
    with pytest.raises(DataError, match="2 classes and the teacher 5"):
        measure(predictions(logits), predictions(torch.randn(3, 5)))
    with pytest.raises(DataError, match="no samples"):
        measure(predictions(logits[:0]), predictions(logits[:0]))
