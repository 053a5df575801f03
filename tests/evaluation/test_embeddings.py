"""Geometry of embeddings: values, invariances, and what has none."""

from __future__ import annotations

import pytest
import torch

from understudy.errors import DataError
from understudy.evaluation import cosine_gap, geometry_metrics


def rotation(width: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]


def test_a_turned_moved_and_scaled_cloud_is_the_same_but_for_cosines() -> None:
    teacher = torch.randn(50, 6, dtype=torch.float64)
    student = 3 * torch.nn.functional.pad(teacher, (0, 2)) @ rotation(8)
    same = geometry_metrics(student, teacher)
    assert same["procrustes"] == pytest.approx(0, abs=1e-12)
    assert same["gram"] == pytest.approx(0, abs=1e-12)
    assert same["cka"] == pytest.approx(1)
    assert same["cosine_gap"] == pytest.approx(0, abs=1e-12)
    moved = geometry_metrics(student + 5, teacher)
    assert moved["procrustes"] == pytest.approx(0, abs=1e-12) and (moved["cosine_gap"] or 0) > 0.1


def test_the_values_are_those_of_the_plain_formulas() -> None:
    student, teacher = torch.randn(20, 3), torch.randn(20, 5)
    a, b = (rows.double() - rows.double().mean(dim=0) for rows in (teacher, student))
    a, b = a / a.norm(), b / b.norm()
    found = geometry_metrics(student, teacher)
    assert found["procrustes"] == pytest.approx(2 - 2 * float(torch.linalg.svdvals(a.T @ b).sum()))
    grams = a @ a.T, b @ b.T
    assert found["gram"] == pytest.approx(float((grams[0] - grams[1]).norm() ** 2))
    alignment = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    assert found["cka"] == pytest.approx(float(alignment))
    cosine = torch.nn.functional.cosine_similarity
    gaps = [
        abs(float(cosine(student[i], student[j], dim=0) - cosine(teacher[i], teacher[j], dim=0)))
        for i in range(20)
        for j in range(i)
    ]
    assert found["cosine_gap"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-6)


def test_rows_of_zeros_have_cosines_of_zero() -> None:
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert cosine_gap(student, torch.eye(3)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("student", [torch.randn(1, 3), torch.ones(5, 3)])
def test_without_two_different_embeddings_there_is_no_geometry(student: torch.Tensor) -> None:
    found = geometry_metrics(student, torch.randn(len(student), 4))
    assert set(found) == {"procrustes", "gram", "cka", "cosine_gap"}
    assert set(found.values()) == {None}


def test_other_samples_are_refused() -> None:
    with pytest.raises(DataError, match="5 samples and the teacher of 4"):
        geometry_metrics(torch.randn(5, 2), torch.randn(4, 2))
