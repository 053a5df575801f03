"""Logit objectives against numbers of the authors' code and their own laws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden" / "torchdistill"
CASES = {case["case"]: case for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]}


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    return load_file(GOLDEN / f"{name}.safetensors"), CASES[name]["hyper"]["kwargs"]


@pytest.mark.parametrize("name", ["kd_basic", "kd_one_class", "kd_batch1_sum"])
def test_kd_and_cross_entropy_reproduce_the_weighted_sum_of_torchdistill(name: str) -> None:
    tensors, keywords = golden(name)
    student = tensors["student|.|output"].requires_grad_()
    alpha = keywords["alpha"]
    loss = alpha * objectives.cross_entropy(student, tensors["targets"]) + (
        1 - alpha
    ) * objectives.kd(student, tensors["teacher|.|output"], temperature=keywords["temperature"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensors["loss"], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        student.grad, tensors["grad|student|.|output"], rtol=1e-9, atol=1e-11
    )


def test_without_targets_torchdistill_drops_the_factor_and_we_do_not() -> None:
    tensors, keywords = golden("kd_no_targets")
    temperature = keywords["temperature"]
    loss = objectives.kd(
        tensors["student|.|output"], tensors["teacher|.|output"], temperature=temperature
    )
    torch.testing.assert_close(loss, tensors["loss"] * temperature**2, rtol=1e-9, atol=1e-11)


def test_kd_equals_the_plain_formula() -> None:
    student, teacher = (
        torch.randn(5, 7, dtype=torch.float64),
        torch.randn(5, 7, dtype=torch.float64),
    )
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(objectives.kd(student, teacher, temperature=3.0), expected)


@given(st.integers(1, 6), st.integers(0, 6))
def test_weights_make_the_loss_independent_of_how_a_batch_is_split(cut: int, masked: int) -> None:
    torch.manual_seed(cut + 10 * masked)
    student, teacher = (
        torch.randn(7, 4, dtype=torch.float64),
        torch.randn(7, 4, dtype=torch.float64),
    )
    weight = torch.rand(7, dtype=torch.float64)
    weight[:masked] = 0
    whole = objectives.kd(student, teacher, weight=weight)
    parts = [
        objectives.kd(student[part], teacher[part], weight=weight[part], reduction="sum")
        for part in (slice(0, cut), slice(cut, 7))
    ]
    torch.testing.assert_close(whole, (parts[0] + parts[1]) / weight.sum())


def test_all_masked_is_zero_with_zero_gradient() -> None:
    student = torch.randn(3, 4, requires_grad=True)
    loss = objectives.kd(student, torch.randn(3, 4), weight=torch.zeros(3))
    loss.backward()
    assert loss == 0 and torch.equal(student.grad, torch.zeros(3, 4))


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kd_is_finite_at_extremes(scale: float, temperature: float, dtype: torch.dtype) -> None:
    student = (scale * torch.randn(4, 6)).to(dtype).requires_grad_()
    loss = objectives.kd(student, (scale * torch.randn(4, 6)).to(dtype), temperature=temperature)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite() and student.grad.isfinite().all()


def test_classes_that_both_mask_count_nothing() -> None:
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    masked_student, masked_teacher = student.clone(), teacher.clone()
    masked_student[:, 4] = masked_teacher[:, 4] = -torch.inf
    loss = objectives.kd(masked_student, masked_teacher)
    torch.testing.assert_close(loss, objectives.kd(student[:, :4], teacher[:, :4]))
    loss.backward()
    assert student.grad.isfinite().all()


def test_temperature_may_differ_per_sample() -> None:
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    temperature = torch.tensor([1.0, 2.0, 4.0])
    each = [
        objectives.kd(student[i : i + 1], teacher[i : i + 1], temperature=float(t))
        for i, t in enumerate(temperature)
    ]
    torch.testing.assert_close(
        objectives.kd(student, teacher, temperature=temperature), torch.stack(each).mean()
    )


def test_teacher_gets_no_gradient() -> None:
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    objectives.kd(student, teacher).backward()
    assert teacher.grad is None and student.grad is not None


def test_wrong_shapes_and_temperature_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(3, 6\)"):
        objectives.kd(torch.randn(3, 5), torch.randn(3, 6))
    with pytest.raises(ValueError, match="greater than 0"):
        objectives.kd(torch.randn(3, 5), torch.randn(3, 5), temperature=0.0)
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(4,\)"):
        objectives.cross_entropy(torch.randn(3, 5), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"weight has shape \(4,\)"):
        objectives.kd(torch.randn(3, 5), torch.randn(3, 5), weight=torch.ones(4))


def test_cross_entropy_skips_the_unlabelled() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64)
    labels = torch.tensor([2, -1, 0, -1])
    expected = F.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(objectives.cross_entropy(logits, labels), expected)
    soft = torch.zeros(4, 3, dtype=torch.float64)
    soft[0, 2] = soft[2, 0] = 1
    torch.testing.assert_close(objectives.cross_entropy(logits, soft), expected)
    none = objectives.cross_entropy(logits, torch.full((4,), -1))
    assert none == 0


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [13, 200])
def test_cross_entropy_of_labels_known_to_be_complete_is_the_same_to_the_bit(
    kind: str, weighted: bool, label_smoothing: float, rows: int
) -> None:
    labels = torch.randint(0, 5, (rows,)) if kind == "hard" else torch.rand(rows, 5).softmax(dim=1)
    weight = torch.rand(rows) if weighted else None
    found = []
    for known in (False, True):
        generator = torch.Generator().manual_seed(3)
        logits = torch.randn(rows, 5, generator=generator, requires_grad=True)
        loss = objectives.cross_entropy(
            logits, labels, label_smoothing=label_smoothing, all_labelled=known, weight=weight
        )
        loss.backward()
        found.append((loss.detach(), logits.grad))
    for looked_at, taken in zip(*found, strict=True):
        assert torch.equal(looked_at, taken)


@pytest.mark.parametrize("missing", [0, 4, 9])
def test_the_mean_cross_entropy_is_the_formula_that_weights_take(missing: int) -> None:
    logits = torch.randn(9, 4, dtype=torch.float64) * 3
    labels = torch.randint(0, 4, (9,))
    labels[:missing] = -1
    logits[:missing] = torch.nan
    found = []
    for weight in (None, torch.ones(9, dtype=torch.float64)):
        leaf = logits.clone().requires_grad_()
        loss = objectives.cross_entropy(leaf, labels, weight=weight)
        (3 * loss).backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_a_label_that_is_missing_where_none_should_be_is_an_error() -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        objectives.cross_entropy(torch.randn(2, 3), torch.tensor([1, -1]), all_labelled=True)


def test_kd_is_finite_where_both_mask_a_class() -> None:
    student = torch.randn(4, 5, requires_grad=True)
    masked = torch.tensor([False, False, True, False, True])
    loss = objectives.kd(
        student.masked_fill(masked, -torch.inf), torch.randn(4, 5).masked_fill(masked, -torch.inf)
    )
    loss.backward()
    assert torch.isfinite(loss) and student.grad is not None and torch.isfinite(student.grad).all()
    assert (student.grad[:, masked] == 0).all()


def test_gradients_are_right() -> None:
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher, labels = torch.randn(3, 4, dtype=torch.float64), torch.tensor([1, -1, 3])
    assert torch.autograd.gradcheck(
        lambda s: objectives.kd(s, teacher, temperature=2.0), (student,)
    )
    assert torch.autograd.gradcheck(
        lambda s: objectives.cross_entropy(s, labels, label_smoothing=0.1), (student,)
    )
    maps = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: objectives.mse(s, target, weight=torch.tensor([1.0, 0.5])), (maps,)
    )


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (1, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_closed_form_of_kd_is_the_formula_that_weights_take(
    shape: tuple[int, ...], masked: bool
) -> None:
    student, teacher = (torch.randn(*shape, dtype=torch.float64) * 3 for _ in range(2))
    if masked and shape[-1] > 1:
        student[..., 1] = teacher[..., 1] = teacher[..., 2] = -torch.inf
    found = []
    for weight in (None, torch.ones(shape[:-1], dtype=torch.float64)):
        leaf = student.clone().requires_grad_()
        loss = objectives.kd(leaf, teacher, temperature=2.5, weight=weight)
        (3 * loss).backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_kd_has_a_second_derivative_and_one_by_transforms() -> None:
    student, teacher = (torch.randn(3, 4, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()

    def loss(s: torch.Tensor) -> torch.Tensor:
        return objectives.kd(s, teacher, temperature=2.0)

    assert torch.autograd.gradgradcheck(loss, (student,))
    value = loss(student)
    first = torch.autograd.grad(value, student, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(value, student)[0])
    by_transform = torch.func.grad(loss)(student.detach())
    torch.testing.assert_close(by_transform, first, rtol=1e-12, atol=1e-14)


def test_mse_weights() -> None:
    student, teacher = torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2)
    whole = objectives.mse(student, teacher)
    torch.testing.assert_close(whole, F.mse_loss(student, teacher))
    some = objectives.mse(student, teacher, weight=torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(some, F.mse_loss(student[1:], teacher[1:]))
    mask = torch.zeros(3, 2, 2, 2)
    mask[0, 1] = 1
    torch.testing.assert_close(
        objectives.mse(student, teacher, weight=mask), F.mse_loss(student[0, 1], teacher[0, 1])
    )
