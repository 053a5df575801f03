"""Divergences from a teacher's top k are those of the distributions after the classes of the tail are merged."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy import objectives

CLASSES = 12
GOLDEN = Path(__file__).parent.parent / "golden" / "llm_surveys"


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


# Other divergences


def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "distillkit_sparse.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


KINDS = {"kl": "forward_kl", "jsd": "jensen_shannon", "tvd": "total_variation"}
MISSING = {"zero": "zero", "symmetric_uniform": "tail"}


@pytest.mark.parametrize("temperature", [1, 2])
@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("kind", KINDS)
def test_divergences_on_top_k_are_those_of_distillkit(
    kind: str, missing: str, temperature: int
) -> None:
    case = golden()
    student = case["student_logits"].clone().requires_grad_()
    loss = objectives.top_k_divergence(
        student,
        case["topk_logprobs"],
        case["topk_ids"],
        divergence=KINDS[kind],
        missing=MISSING[missing],
        temperature=float(temperature),
        weight=case["mask"],
        reduction="sum",
    )
    # They multiply by T^2 later.
    value, gradient = value_and_gradient(loss / temperature**2, student)
    name = f"{kind}_{missing}_T{temperature}"
    assert value == pytest.approx(float(case[f"sum_{name}"]), rel=5e-5, abs=1e-6)
    torch.testing.assert_close(gradient, case[f"grad_{name}"], rtol=5e-5, atol=1e-6)


DENSE = {
    "forward_kl": objectives.forward_kl,
    "reverse_kl": objectives.reverse_kl,
    "jensen_shannon": objectives.jensen_shannon,
    "total_variation": objectives.total_variation,
}


@pytest.mark.parametrize("divergence", DENSE)
@pytest.mark.parametrize("k", [1, 5, CLASSES])
def test_each_is_the_dense_one_after_merging(divergence: str, k: int) -> None:
    student, teacher = logits(3)
    student.requires_grad_()
    temperature = 2.0
    values, indices, tail = sparse(teacher, k, temperature)
    keywords = {"beta": 0.3} if divergence == "jensen_shannon" else {}
    found = objectives.top_k_divergence(
        student, values, indices, tail, divergence=divergence, temperature=temperature, **keywords
    )
    merged = []
    for whole in (student, teacher):
        p = (whole / temperature).softmax(-1)
        parts = p.gather(-1, indices)
        if k < CLASSES:
            parts = torch.cat([parts, p.scatter(-1, indices, 0.0).sum(-1, keepdim=True)], dim=-1)
        merged.append(parts.log() * temperature)
    expected = DENSE[divergence](*merged, temperature=temperature, **keywords)
    value, gradient = value_and_gradient(found, student)
    plain, plain_gradient = value_and_gradient(expected, student)
    assert value == pytest.approx(plain)
    torch.testing.assert_close(gradient, plain_gradient)
    dense = DENSE[divergence](student, teacher, temperature=temperature, **keywords)
    assert float(found.detach()) <= float(dense.detach()) + 1e-12
    if k == CLASSES:
        torch.testing.assert_close(found, dense)


@pytest.mark.parametrize("divergence", DENSE)
def test_the_tail_is_what_log_probabilities_leave_over(divergence: str) -> None:
    student, teacher = logits(4)
    values, indices, tail = sparse(teacher.log_softmax(-1), 5, 1.0)
    given_tail = objectives.top_k_divergence(student, values, indices, tail, divergence=divergence)
    found = objectives.top_k_divergence(student, values, indices, divergence=divergence)
    torch.testing.assert_close(found, given_tail)
    everything = objectives.top_k_divergence(
        student, teacher.log_softmax(-1), torch.arange(CLASSES).expand(7, -1), divergence=divergence
    )
    torch.testing.assert_close(everything, DENSE[divergence](student, teacher))


def test_forward_is_kd_top_k() -> None:
    student, teacher = logits(5)
    arguments = (student, *sparse(teacher, 4, 3.0))
    torch.testing.assert_close(
        objectives.top_k_divergence(*arguments, divergence="forward_kl", temperature=3.0),
        objectives.kd_top_k(*arguments, temperature=3.0),
    )


def test_a_student_cannot_escape_the_reverse_divergence() -> None:
    """Without the tail, moving all probability outside of the top k would make it smaller."""
    teacher = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    values, indices = teacher.log().topk(2, dim=-1)
    honest = objectives.top_k_divergence(teacher.log(), values, indices)
    assert honest.item() == pytest.approx(0.0, abs=1e-12)
    escaped = torch.tensor([[-20.0, -20.0, 0.0, 0.0]], dtype=torch.float64)
    assert objectives.top_k_divergence(escaped, values, indices) > 1.0


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"divergence": "renyi"}, "divergence is 'renyi'"),
        ({"missing": "uniform"}, "missing is 'uniform'"),
        ({"missing": "zero"}, "reverse divergence .* infinite"),
        ({"beta": 1.0}, "beta is 1.0"),
    ],
)
def test_keywords_out_of_range_are_refused(keywords: dict[str, object], said: str) -> None:
    student, teacher = logits(6)
    with pytest.raises(ValueError, match=said):
        objectives.top_k_divergence(student, *sparse(teacher, 3, 1.0), **keywords)
    with pytest.raises(ValueError, match=r"\(7, 12\).*\(7, 3\).*\(7, 2\)"):
        objectives.top_k_divergence(student, teacher[:, :3], torch.zeros(7, 2).long())
