"""`kd_top_k` is `kd` after the classes of the tail are merged."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy import objectives

CLASSES = 12


def logits(seed: int, scale: float = 3.0, rows: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, rows, CLASSES, generator=generator, dtype=torch.float64)
    return scale * pair[0], scale * pair[1]


def sparse(
    teacher: torch.Tensor, k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values, indices = teacher.topk(k, dim=-1)
    rest = teacher.scatter(-1, indices, -torch.inf)
    return values, indices, temperature * torch.logsumexp(rest / temperature, dim=-1)


def value_and_gradient(value: torch.Tensor, student: torch.Tensor) -> tuple[float, torch.Tensor]:
    (gradient,) = torch.autograd.grad(value, student)
    return float(value.detach()), gradient


@given(st.integers(0, 999), st.integers(1, CLASSES), st.sampled_from([0.5, 1.0, 4.0]))
def test_it_is_the_divergence_after_merging(seed: int, k: int, temperature: float) -> None:
    student, teacher = logits(seed)
    values, indices, tail = sparse(teacher, k, temperature)
    found = objectives.kd_top_k(
        student, values, indices, tail, temperature=temperature, reduction="none"
    )
    # The same by plain sums: probabilities of the k, and one minus them.
    p = (teacher / temperature).softmax(-1).gather(-1, indices)
    q = (student / temperature).softmax(-1).gather(-1, indices)
    expected = (p * (p / q).log()).sum(-1)
    if k < CLASSES:
        left_p, left_q = 1 - p.sum(-1), 1 - q.sum(-1)
        expected = expected + left_p * (left_p / left_q).log()
    torch.testing.assert_close(found, temperature**2 * expected, rtol=1e-6, atol=1e-9)
    dense = objectives.kd(student, teacher, temperature=temperature, reduction="none")
    assert (found <= dense + 1e-9).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_and_gradient_go_to_those_of_kd_with_k(temperature: float) -> None:
    student, teacher = logits(3)
    student.requires_grad_()
    value, gradient = value_and_gradient(
        objectives.kd(student, teacher, temperature=temperature), student
    )
    distances = []
    for k in range(1, CLASSES + 1):
        found, slope = value_and_gradient(
            objectives.kd_top_k(student, *sparse(teacher, k, temperature), temperature=temperature),
            student,
        )
        distances.append((abs(found - value), float((slope - gradient).norm())))
    assert distances[-1][0] < 1e-12 and distances[-1][1] < 1e-12
    assert distances[-2][0] < 1e-12  # a tail of one class is that class
    assert all(one[0] >= other[0] - 1e-12 for one, other in itertools.pairwise(distances))
    assert distances[0][1] > 5 * distances[8][1]


def test_a_tail_that_is_shared_alike_costs_nothing() -> None:
    student, teacher = logits(5)
    values, indices, tail = sparse(teacher, 4, 2.0)
    alike = teacher.clone().scatter(-1, indices, student.gather(-1, indices))
    dense = objectives.kd(alike.requires_grad_(), teacher, temperature=2.0)
    merged = objectives.kd_top_k(alike, values, indices, tail, temperature=2.0)
    one, other = value_and_gradient(dense, alike), value_and_gradient(merged, alike)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_tail_is_not_impossible_as_it_is_when_renormalised() -> None:
    # A student that agrees with the teacher entirely is at rest; without the tail it is pushed off it.
    student, teacher = logits(6)[1].requires_grad_(), logits(6)[1]
    values, indices, tail = sparse(teacher, 3, 1.0)
    _, gradient = value_and_gradient(
        objectives.kd_top_k(student, values, indices, tail, temperature=1.0), student
    )
    assert gradient.abs().max() < 1e-12
    _, renormalised = value_and_gradient(
        objectives.kd_top_k(
            student, values, indices, torch.full_like(tail, -torch.inf), temperature=1.0
        ),
        student,
    )
    assert renormalised.abs().max() > 1e-3


def test_extra_dimensions_and_order_of_the_kept_classes_do_not_matter() -> None:
    student, teacher = logits(7, rows=6)
    values, indices, tail = sparse(teacher, 5, 4.0)
    expected = objectives.kd_top_k(student, values, indices, tail)
    turned = objectives.kd_top_k(student, values.flip(-1), indices.flip(-1), tail)
    folded = objectives.kd_top_k(
        student.view(2, 3, -1), values.view(2, 3, -1), indices.view(2, 3, -1), tail.view(2, 3)
    )
    torch.testing.assert_close(turned, expected)
    torch.testing.assert_close(folded, expected)


def test_shapes_are_named() -> None:
    student, teacher = logits(8)
    values, indices, tail = sparse(teacher, 3, 1.0)
    with pytest.raises(ValueError, match=r"\(7, 12\).*\(7, 3\).*\(7, 2\).*\(7,\)"):
        objectives.kd_top_k(student, values, indices[:, :2], tail)
    with pytest.raises(ValueError, match="at least 3 classes"):
        objectives.kd_top_k(student[:, :2], values, indices, tail)
