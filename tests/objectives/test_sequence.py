"""Divergences on tokens against numbers of the authors' code, plain formulas and their own laws."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden"
Objective = Callable[..., torch.Tensor]


def golden(system: str, name: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return the tensors of a case, in float64, and its tolerance."""
    cases = json.loads((GOLDEN / system / "cases.json").read_text())["cases"]
    (case,) = (case for case in cases if case["case"] == name)
    with np.load(GOLDEN / system / f"{name}.npz", allow_pickle=False) as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return {
        key: tensor.double() if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
    }, case["tolerance"]


def check(
    objective: Objective,
    tensors: dict[str, torch.Tensor],
    names: tuple[str, str],
    tolerance: dict[str, float],
    *,
    minus: torch.Tensor | float = 0.0,
    masked: bool = True,
    factor: float = 1.0,
    **keywords: Any,
) -> None:
    """Compare factor * ours with theirs minus a constant, and the gradients."""
    student = tensors["student_logits"].clone().requires_grad_()
    teacher = tensors["teacher_logits"].clone().requires_grad_()
    weight = tensors["labels"] != -100 if masked else None
    loss = factor * objective(student, teacher, weight=weight, **keywords)
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(loss.detach(), tensors[names[0]] - minus, **tolerance)
    torch.testing.assert_close(student.grad, tensors[names[1]], **tolerance)


def teacher_entropy(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean entropy of the teacher over valid tokens, which some codes do not subtract."""
    log_p = tensors["teacher_logits"].log_softmax(-1)
    each = -(log_p.exp() * log_p).sum(-1)
    return each[tensors["labels"] != -100].mean()


@pytest.mark.parametrize("temperature", [1, 2])
@pytest.mark.parametrize("beta", ["0", "0.1", "0.5", "0.9", "1"])
def test_jensen_shannon_is_that_of_trl_times_t_squared(beta: str, temperature: int) -> None:
    tensors, tolerance = golden("llm_surveys", "trl_generalized_jsd")
    names = (f"loss_b{beta}_T{temperature}", f"grad_b{beta}_T{temperature}")
    check(
        objectives.jensen_shannon,
        tensors,
        names,
        tolerance,
        factor=1 / temperature**2,
        beta=float(beta),
        temperature=float(temperature),
    )


DISTILLM: list[tuple[str, Objective, dict[str, float], bool]] = [
    ("forward_ce", objectives.forward_kl, {}, True),
    ("reverse_kl", objectives.reverse_kl, {}, False),
    # Their lambda is the share of the student.
    ("js_lam0.9", objectives.jensen_shannon, {"beta": 0.1}, False),
    ("tvd", objectives.total_variation, {}, False),
    ("skew_forward_lam0.1", objectives.skewed_forward_kl, {"skew": 0.1}, True),
    ("skew_reverse_lam0.1", objectives.skewed_reverse_kl, {"skew": 0.1}, False),
]


@pytest.mark.parametrize(("name", "objective", "keywords", "entropy"), DISTILLM)
def test_divergences_of_distillm(
    name: str, objective: Objective, keywords: dict[str, float], entropy: bool
) -> None:
    tensors, tolerance = golden("llm_surveys", "distillm_divergences")
    # Where their code is a cross-entropy, ours is lower by the teacher's entropy and has the same gradient.
    minus = teacher_entropy(tensors) if entropy else 0.0
    names = (f"loss_{name}", f"grad_{name}")
    check(objective, tensors, names, tolerance, minus=minus, **keywords)


def test_symmetric_kl_of_distillm_has_a_tenth_of_a_cross_entropy() -> None:
    tensors, tolerance = golden("llm_surveys", "distillm_divergences")
    names = ("loss_symmetric_lam0.9", "grad_symmetric_lam0.9")
    minus = 0.1 * teacher_entropy(tensors)
    check(objectives.symmetric_kl, tensors, names, tolerance, minus=minus, reverse=0.9)


LLAVA: list[tuple[str, Objective, dict[str, float], bool, bool]] = [
    ("forward_kl", objectives.forward_kl, {}, True, True),
    ("reverse_kl", objectives.reverse_kl, {}, False, True),
    ("js_distance_lam09", objectives.jensen_shannon, {"beta": 0.1}, False, True),
    ("tv_distance", objectives.total_variation, {}, False, True),
    ("skewed_forward_kl_lam01", objectives.skewed_forward_kl, {}, True, True),
    ("skewed_reverse_kl_lam01", objectives.skewed_reverse_kl, {}, False, True),
    ("reverse_kl_womask", objectives.reverse_kl, {}, False, False),
    ("skewed_reverse_kl_womask_lam01", objectives.skewed_reverse_kl, {}, False, False),
]


@pytest.mark.parametrize("case", ["token_divergences_basic", "token_divergences_one_class"])
@pytest.mark.parametrize(("name", "objective", "keywords", "entropy", "masked"), LLAVA)
def test_divergences_of_llava_kd(
    case: str,
    name: str,
    objective: Objective,
    keywords: dict[str, float],
    entropy: bool,
    masked: bool,
) -> None:
    tensors, tolerance = golden("llava_kd", case)
    minus = teacher_entropy(tensors) if entropy else 0.0
    names = (f"out_{name}", f"grad_{name}")
    check(objective, tensors, names, tolerance, minus=minus, masked=masked, **keywords)


# Plain formulas


def distributions(seed: int = 0, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return student and teacher logits [2, 3, 5]."""
    torch.manual_seed(seed)
    student, teacher = scale * torch.randn(2, 2, 3, 5, dtype=torch.float64)
    return student, teacher


def probabilities(*logits: torch.Tensor, temperature: float = 1.0) -> list[torch.Tensor]:
    """Return softmax(logits / T)."""
    return [(each / temperature).softmax(-1) for each in logits]


def plain_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) of each token."""
    return (p * (p / q).log()).sum(-1)


PLAIN: list[tuple[Objective, dict[str, float], Callable[..., torch.Tensor]]] = [
    (objectives.forward_kl, {}, plain_kl),
    (objectives.reverse_kl, {}, lambda p, q: plain_kl(q, p)),
    (
        objectives.symmetric_kl,
        {"reverse": 0.3},
        lambda p, q: 0.7 * plain_kl(p, q) + 0.3 * plain_kl(q, p),
    ),
    (
        objectives.skewed_forward_kl,
        {"skew": 0.3},
        lambda p, q: plain_kl(p, 0.3 * p + 0.7 * q),
    ),
    (
        objectives.skewed_reverse_kl,
        {"skew": 0.3},
        lambda p, q: plain_kl(q, 0.7 * p + 0.3 * q),
    ),
    (
        objectives.jensen_shannon,
        {"beta": 0.3},
        lambda p, q: 0.3 * plain_kl(p, 0.3 * p + 0.7 * q) + 0.7 * plain_kl(q, 0.3 * p + 0.7 * q),
    ),
    (objectives.total_variation, {}, lambda p, q: 0.5 * (p - q).abs().sum(-1)),
    (
        objectives.alpha_beta,
        {"alpha": 0.2, "beta": 0.7},
        lambda p, q: (
            -(p**0.2 * q**0.7 - 0.2 / 0.9 * p**0.9 - 0.7 / 0.9 * q**0.9).sum(-1) / (0.2 * 0.7)
        ),
    ),
    (
        objectives.alpha_beta,
        {"alpha": 0.5, "beta": 0.0},
        lambda p, q: 4 * (p**0.5 * (p / q).log() * 0.5 - p**0.5 + q**0.5).sum(-1),
    ),
    (
        objectives.alpha_beta,
        {"alpha": 0.0, "beta": 0.5},
        lambda p, q: 4 * (q**0.5 * (q / p).log() * 0.5 - q**0.5 + p**0.5).sum(-1),
    ),
    (
        objectives.alpha_beta,
        {"alpha": 0.5, "beta": -0.5},
        lambda p, q: 4 * ((q / p).log() * 0.5 + (p / q) ** 0.5 - 1).sum(-1),
    ),
    (
        objectives.alpha_beta,
        {"alpha": 0.0, "beta": 0.0},
        lambda p, q: 0.5 * (p.log() - q.log()).square().sum(-1),
    ),
    (objectives.alpha_beta, {"alpha": 1.0, "beta": 0.0}, plain_kl),
    (objectives.alpha_beta, {"alpha": 0.0, "beta": 1.0}, lambda p, q: plain_kl(q, p)),
    (
        objectives.alpha_beta,
        {"alpha": 1.0, "beta": 1.0},
        lambda p, q: 0.5 * (p - q).square().sum(-1),
    ),
    (
        objectives.alpha_beta,
        {"alpha": 0.5, "beta": 0.5},
        lambda p, q: 2 * (p.sqrt() - q.sqrt()).square().sum(-1),
    ),
]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("objective", "keywords", "plain"), PLAIN)
def test_value_and_gradient_equal_the_plain_formula(
    objective: Objective,
    keywords: dict[str, float],
    plain: Callable[..., torch.Tensor],
    temperature: float,
) -> None:
    student, teacher = distributions()
    student.requires_grad_()
    weight = torch.rand(2, 3, dtype=torch.float64)
    q, p = probabilities(student, teacher, temperature=temperature)
    each = temperature**2 * plain(p, q)
    expected = (weight * each).sum() / weight.sum()
    loss = objective(student, teacher, weight=weight, temperature=temperature, **keywords)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, student), torch.autograd.grad(expected, student)
    )
    none = objective(student, teacher, temperature=temperature, reduction="none", **keywords)
    torch.testing.assert_close(none, each)


@pytest.mark.parametrize("order", [(0.5, 0.0), (0.0, 0.5), (0.5, -0.5)])
def test_limits_of_alpha_beta(order: tuple[float, float]) -> None:
    student, teacher = distributions()
    alpha, beta = order
    at = objectives.alpha_beta(student, teacher, alpha=alpha, beta=beta)
    near = objectives.alpha_beta(student, teacher, alpha=alpha + 1e-5, beta=beta + 1e-5)
    torch.testing.assert_close(at, near, rtol=1e-3, atol=0)
    # The authors' limits are off by the exponent, so they do not continue the general case.
    official = objectives.alpha_beta(student, teacher, alpha=alpha, beta=beta, official=True)
    torch.testing.assert_close(official, at / 2)


def test_the_official_limits_agree_at_1_and_the_general_case_always() -> None:
    student, teacher = distributions()
    for alpha, beta in [(1.0, 0.0), (0.0, 1.0), (0.2, 0.7)]:
        torch.testing.assert_close(
            objectives.alpha_beta(student, teacher, alpha=alpha, beta=beta, official=True),
            objectives.alpha_beta(student, teacher, alpha=alpha, beta=beta),
        )


def plain_adaptive(p: torch.Tensor, q: torch.Tensor, head: float) -> torch.Tensor:
    """Return the adaptive divergence of one token, by a loop."""
    total, shares = 0.0, [0.0, 0.0]
    for place, index in enumerate(p.argsort(descending=True).tolist()):
        total += p[index].item()
        in_tail = place > 0 and total > head
        shares[in_tail] += (p[index] - q[index]).abs().item()
    forward = shares[0] / sum(shares)
    return forward * plain_kl(p, q) + (1 - forward) * plain_kl(q, p)


@pytest.mark.parametrize("head", [0.2, 0.5, 0.95])
def test_adaptive_kl_equals_the_loop(head: float) -> None:
    student, teacher = distributions(scale=1.0)
    student.requires_grad_()
    q, p = probabilities(student, teacher)
    expected = torch.stack(
        [plain_adaptive(p[i, t], q[i, t], head) for i in range(2) for t in range(3)]
    ).mean()
    loss = objectives.adaptive_kl(student, teacher, head=head)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, student), torch.autograd.grad(expected, student)
    )


def test_adaptive_kl_of_equal_distributions_is_0_not_0_over_0() -> None:
    student = torch.randn(2, 3, 5, requires_grad=True)
    loss = objectives.adaptive_kl(student, student.detach())
    loss.backward()
    assert loss.abs() < 1e-6 and student.grad.abs().max() < 1e-6


# Laws

DIVERGENCES: list[Objective] = [
    objectives.forward_kl,
    objectives.reverse_kl,
    objectives.symmetric_kl,
    objectives.adaptive_kl,
    objectives.skewed_forward_kl,
    objectives.skewed_reverse_kl,
    objectives.jensen_shannon,
    objectives.total_variation,
    objectives.alpha_beta,
]


@pytest.mark.parametrize("objective", DIVERGENCES)
@given(seed=st.integers(0, 100), scale=st.floats(0.0, 20.0))
def test_no_divergence_is_negative(objective: Objective, seed: int, scale: float) -> None:
    student, teacher = distributions(seed, scale)
    each = objective(student, teacher, reduction="none")
    assert (each >= -1e-12).all()
    assert objective(teacher, teacher).abs() < 1e-12


def test_forward_kl_is_kd_and_its_gradient_is_the_gap_over_t() -> None:
    student, teacher = distributions()
    student.requires_grad_()
    loss = objectives.forward_kl(student, teacher, temperature=2.0, reduction="sum")
    torch.testing.assert_close(
        loss, objectives.kd(student, teacher, temperature=2.0, reduction="sum")
    )
    (gradient,) = torch.autograd.grad(loss, student)
    q, p = probabilities(student, teacher, temperature=2.0)
    torch.testing.assert_close(gradient / 4, (q - p) / 2)


def test_jensen_shannon_at_its_ends() -> None:
    student, teacher = distributions()
    forward, reverse = (
        objectives.forward_kl(student, teacher),
        objectives.reverse_kl(student, teacher),
    )
    for normalised in (False, True):
        ends = [
            objectives.jensen_shannon(student, teacher, beta=beta, normalised=normalised)
            for beta in (0.0, 1.0)
        ]
        torch.testing.assert_close(ends, [forward, reverse])
    near = [
        objectives.jensen_shannon(student, teacher, beta=beta, normalised=True)
        for beta in (1e-6, 1 - 1e-6)
    ]
    torch.testing.assert_close(near, [forward, reverse], rtol=1e-4, atol=0)
    # Not normalised, it jumps.
    assert objectives.jensen_shannon(student, teacher, beta=1e-6) < 1e-5


def test_jensen_shannon_is_bounded_and_symmetric_in_the_middle() -> None:
    student, teacher = distributions(scale=30.0)
    torch.testing.assert_close(
        objectives.jensen_shannon(student, teacher), objectives.jensen_shannon(teacher, student)
    )
    assert (objectives.jensen_shannon(student, teacher, reduction="none") <= math.log(2)).all()
    each = objectives.skewed_forward_kl(student, teacher, skew=0.1, reduction="none")
    assert (each <= math.log(10)).all()


@pytest.mark.parametrize(
    ("skewed", "plain"),
    [
        (objectives.skewed_forward_kl, objectives.forward_kl),
        (objectives.skewed_reverse_kl, objectives.reverse_kl),
    ],
)
def test_skewed_divergences_without_a_skew(skewed: Objective, plain: Objective) -> None:
    student, teacher = distributions()
    assert torch.equal(skewed(student, teacher, skew=0.0), plain(student, teacher))
    torch.testing.assert_close(
        skewed(student, teacher, skew=1e-9), plain(student, teacher), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("objective", DIVERGENCES)
def test_whatever_stands_at_padding_counts_nothing(objective: Objective) -> None:
    student, teacher = distributions()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    clean = objective(student[mask], teacher[mask])
    student[~mask], teacher[~mask] = torch.nan, -torch.inf
    student.requires_grad_()
    loss = objective(student, teacher, weight=mask)
    loss.backward()
    torch.testing.assert_close(loss, clean)
    assert (student.grad[~mask] == 0).all() and (student.grad[mask] != 0).any()


@pytest.mark.parametrize("objective", DIVERGENCES)
def test_the_mean_runs_over_tokens_not_over_sequences(objective: Objective) -> None:
    student, teacher = distributions()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    each = objective(student, teacher, reduction="none")
    torch.testing.assert_close(objective(student, teacher, weight=mask), each[mask.bool()].mean())


@pytest.mark.parametrize("objective", DIVERGENCES)
def test_temperature_may_differ_per_token(objective: Objective) -> None:
    student, teacher = distributions()
    temperature = torch.tensor([[1.0, 2.0, 3.0], [0.5, 1.5, 2.5]], dtype=torch.float64)
    each = objective(student, teacher, temperature=temperature, reduction="none")
    alone = objective(student[1, 0], teacher[1, 0], temperature=0.5)
    torch.testing.assert_close(each[1, 0], alone)
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="greater than 0"):
            objective(student, teacher, temperature=wrong)


def test_a_class_that_only_the_teacher_masks() -> None:
    student, teacher = distributions()
    teacher[..., 4] = -torch.inf
    student.requires_grad_()
    assert objectives.reverse_kl(student, teacher) == torch.inf
    for objective in (
        objectives.forward_kl,
        objectives.skewed_forward_kl,
        objectives.skewed_reverse_kl,
        objectives.jensen_shannon,
        objectives.total_variation,
        objectives.alpha_beta,
    ):
        loss = objective(student, teacher)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite() and gradient.isfinite().all()
        q, p = probabilities(student, teacher)
        assert (q[..., 4] > 0).all() and (p[..., 4] == 0).all()


@pytest.mark.parametrize(
    ("objective", "keywords"),
    [
        (objectives.symmetric_kl, {"reverse": 1.1}),
        (objectives.adaptive_kl, {"head": 1.0}),
        (objectives.skewed_forward_kl, {"skew": 1.0}),
        (objectives.skewed_reverse_kl, {"skew": -0.1}),
        (objectives.jensen_shannon, {"beta": 1.5}),
    ],
)
def test_numbers_out_of_range_are_refused(objective: Objective, keywords: dict[str, float]) -> None:
    (name, value), *_ = keywords.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        objective(*distributions(), **keywords)


@pytest.mark.parametrize("objective", DIVERGENCES)
def test_weights_of_samples_do_not_pass_for_weights_of_tokens(objective: Objective) -> None:
    student, teacher = torch.randn(2, 3, 3, 5)
    with pytest.raises(ValueError, match=r"weight has shape \(3,\).*losses of shape \(3, 3\)"):
        objective(student, teacher, weight=torch.ones(3))
    weight = torch.tensor([1.0, 0.0, 2.0]).unsqueeze(1)
    torch.testing.assert_close(
        objective(student, teacher, weight=weight),
        objective(student, teacher, weight=weight.expand(3, 3)),
    )
