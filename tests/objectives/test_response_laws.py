"""Objectives on logits against plain formulas and the laws that their papers or our cards state."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from understudy import objectives


def logits(rows: int = 6, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return student and teacher logits and labels."""
    torch.manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, classes, dtype=torch.float64)
    return student.requires_grad_(), teacher, torch.randint(classes, (rows,))


def same(loss: torch.Tensor, plain: torch.Tensor, *inputs: torch.Tensor) -> None:
    """Compare values and gradients."""
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(plain, inputs)
    )


def others(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return [B, C - 1]: the rows without their label."""
    return torch.stack(
        [torch.cat([row[:y], row[y + 1 :]]) for row, y in zip(values, labels, strict=True)]
    )


# Cross-entropy forms


def test_soft_cross_entropy_is_kd_plus_the_entropy_of_the_teacher() -> None:
    student, teacher, _ = logits()
    p = (teacher / 3).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    loss = objectives.soft_cross_entropy(student, teacher, temperature=3.0)
    same(loss, objectives.kd(student, teacher, temperature=3.0) + 9 * entropy, student)
    plain = F.cross_entropy(student / 3, p)
    torch.testing.assert_close(loss, 9 * plain)


# Logit standardisation


def test_logit_standardised_kd_is_kd_on_standardised_logits() -> None:
    student, teacher, _ = logits()

    def standard(z: torch.Tensor) -> torch.Tensor:
        return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)

    loss = objectives.logit_standardised_kd(student, teacher, temperature=3.0)
    plain = objectives.kd(standard(student), standard(teacher), temperature=3.0)
    same(loss, plain, student)


def test_logit_standardised_kd_of_one_class_is_0() -> None:
    student = torch.randn(3, 1, requires_grad=True)
    loss = objectives.logit_standardised_kd(student, torch.randn(3, 1))
    loss.backward()
    assert loss == 0 and torch.equal(student.grad, torch.zeros(3, 1))


# DKD


def test_dkd_equals_the_plain_formula() -> None:
    student, teacher, labels = logits()
    temperature, rows = 3.0, torch.arange(6)
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    q_y, p_y = q[rows, labels], p[rows, labels]
    target = p_y * (p_y / q_y).log() + (1 - p_y) * ((1 - p_y) / (1 - q_y)).log()
    q_rest = (others(student, labels) / temperature).softmax(1)
    p_rest = (others(teacher, labels) / temperature).softmax(1)
    rest = (p_rest * (p_rest / q_rest).log()).sum(1)
    plain = temperature**2 * (0.7 * target + 5.0 * rest).mean()
    loss = objectives.dkd(student, teacher, labels, alpha=0.7, beta=5.0, temperature=temperature)
    same(loss, plain, student)


def test_kd_is_dkd_with_the_teachers_doubt_as_beta() -> None:
    student, teacher, labels = logits()
    doubt = 1 - (teacher / 4).softmax(1)[torch.arange(6), labels]
    target = objectives.dkd(student, teacher, labels, alpha=1.0, beta=0.0, reduction="none")
    rest = objectives.dkd(student, teacher, labels, alpha=0.0, beta=1.0, reduction="none")
    torch.testing.assert_close(
        target + doubt * rest, objectives.kd(student, teacher, reduction="none")
    )


def test_dkd_has_no_rest_where_all_other_classes_are_masked() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    mask = torch.tensor([[False, True, True], [False, False, True]])
    loss = objectives.dkd(
        student.masked_fill(mask, -torch.inf),
        teacher.masked_fill(mask, -torch.inf),
        torch.tensor([0, 0]),
    )
    loss.backward()
    two = objectives.dkd(student[1:, :2], teacher[1:, :2], torch.tensor([0]))
    torch.testing.assert_close(2 * loss, two)
    assert student.grad.isfinite().all() and torch.equal(student.grad[0], torch.zeros(3))


def test_the_rest_of_dkd_is_exact_where_subtracting_1000_is_not() -> None:
    # The label leads by more than 1000, so that subtracting 1000 would leave it in.
    student = torch.tensor([[4000.0, 1.0, 2.0]])
    teacher = torch.tensor([[4000.0, 2.0, 1.0]])
    labels = torch.tensor([0])
    loss = objectives.dkd(student, teacher, labels, alpha=0.0, beta=1.0, temperature=1.0)
    torch.testing.assert_close(loss, objectives.kd(student[:, 1:], teacher[:, 1:], temperature=1.0))


# NKD


def test_the_others_of_nkd_ignore_the_labelled_logit() -> None:
    student, teacher, labels = logits()
    zero = torch.zeros(6, dtype=torch.float64)
    moved = student.detach().clone()
    moved[torch.arange(6), labels] += 100

    def rest(student: torch.Tensor) -> torch.Tensor:
        whole = objectives.nkd(student, teacher, labels, gamma=2.0, reduction="none")
        return whole - objectives.nkd(student, teacher, labels, gamma=0.0, reduction="none")

    torch.testing.assert_close(rest(moved), rest(student.detach()))
    (gradient,) = torch.autograd.grad(rest(student).sum(), student)
    torch.testing.assert_close(gradient[torch.arange(6), labels], zero)


def test_nkd_of_two_classes_is_its_target_term() -> None:
    student, teacher, labels = logits(classes=2)
    loss = objectives.nkd(student, teacher, labels, gamma=3.0)
    torch.testing.assert_close(loss, objectives.nkd(student, teacher, labels, gamma=0.0))


def test_the_others_of_nkd_have_no_gradient_at_the_teacher_and_that_of_dkd_elsewhere() -> None:
    student, teacher, labels = logits()

    def gradient(at: torch.Tensor) -> torch.Tensor:
        at = at.detach().requires_grad_()
        loss = objectives.nkd(at, teacher, labels, gamma=1.0, temperature=2.0)
        target = objectives.nkd(at, teacher, labels, gamma=0.0, temperature=2.0)
        return torch.autograd.grad(loss - target, at)[0]

    torch.testing.assert_close(gradient(teacher), torch.zeros_like(teacher))
    rest = objectives.dkd(student, teacher, labels, alpha=0.0, beta=1.0, temperature=2.0)
    torch.testing.assert_close(gradient(student), torch.autograd.grad(rest, student)[0])


def test_at_high_temperature_the_others_of_nkd_compare_centred_logits() -> None:
    student, teacher, labels = logits()

    def rest(gamma: float) -> torch.Tensor:
        return objectives.nkd(student, teacher, labels, gamma=gamma, temperature=1e4)

    (gradient,) = torch.autograd.grad(rest(1.0) - rest(0.0), student)
    ours, theirs = (
        each - each.mean(1, keepdim=True)
        for each in (others(student, labels), others(teacher, labels))
    )
    expected = (ours - theirs) / (6 * 4)
    torch.testing.assert_close(others(gradient, labels), expected, rtol=1e-3, atol=1e-6)


# OFA


def test_ofa_at_gamma_1_is_soft_cross_entropy() -> None:
    student, teacher, labels = logits()
    loss = objectives.ofa(student, teacher, labels, temperature=4.0)
    plain = objectives.soft_cross_entropy(student, teacher, temperature=4.0) / 16
    same(loss, plain, student)


@pytest.mark.parametrize("power_others", [True, False])
def test_ofa_equals_the_plain_formula(power_others: bool) -> None:
    student, teacher, labels = logits()
    p, label = teacher.softmax(1), F.one_hot(labels, 5).double()
    w = (p + label) ** 1.4 - label if power_others else p + label * ((1 + p) ** 1.4 - 1 - p)
    plain = -(w * student.log_softmax(1)).sum(1).mean()
    loss = objectives.ofa(student, teacher, labels, gamma=1.4, power_others=power_others)
    same(loss, plain, student)


def test_the_target_of_a_sure_teacher_is_2_to_the_gamma_less_1() -> None:
    teacher = torch.tensor([[1000.0, 0.0, 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 3, dtype=torch.float64)
    loss = objectives.ofa(student, teacher, torch.tensor([0]), gamma=1.5)
    assert loss.item() == pytest.approx((2**1.5 - 1) * math.log(3))


# Weighted soft labels


def test_weighted_soft_labels_equal_the_plain_formula() -> None:
    student, teacher, labels = logits()
    ours = F.cross_entropy(student, labels, reduction="none").detach()
    theirs = F.cross_entropy(teacher, labels, reduction="none")
    each = -((teacher / 2).softmax(1) * (student / 2).log_softmax(1)).sum(1)
    plain = 4 * ((1 - (-ours / (theirs + 1e-7)).exp()) * each).mean()
    same(objectives.weighted_soft_labels(student, teacher, labels), plain, student)


def test_weighted_soft_labels_let_go_where_the_student_is_right() -> None:
    teacher = torch.tensor([[1.0, 0.0]])
    right, wrong = torch.tensor([[30.0, 0.0]]), torch.tensor([[0.0, 30.0]])
    labels = torch.tensor([0])
    full = objectives.soft_cross_entropy(wrong, teacher, temperature=2.0)
    torch.testing.assert_close(objectives.weighted_soft_labels(wrong, teacher, labels), full)
    assert objectives.weighted_soft_labels(right, teacher, labels) < 1e-9


# Squared error, yes-or-no logits


def test_logit_mse_equals_the_plain_formula() -> None:
    student, teacher, _ = logits()
    same(objectives.logit_mse(student, teacher), F.mse_loss(student, teacher), student)
    same(
        objectives.logit_mse(student, teacher, temperature=2.0),
        F.mse_loss(student / 2, teacher / 2),
        student,
    )
    gap = student - teacher
    centred = (gap - gap.mean(1, keepdim=True)).square().mean()
    same(objectives.logit_mse(student, teacher, centred=True), centred, student)
    shifted = student + torch.arange(6).unsqueeze(1)
    torch.testing.assert_close(objectives.logit_mse(shifted, teacher, centred=True), centred)
    assert not torch.isclose(objectives.logit_mse(shifted, teacher), F.mse_loss(student, teacher))


def test_centred_logit_mse_does_not_count_masked_classes() -> None:
    student, teacher, _ = logits()
    masked = [torch.cat([z, torch.full((6, 1), -torch.inf)], dim=1) for z in (student, teacher)]
    loss = objectives.logit_mse(*masked, centred=True)
    same(loss, objectives.logit_mse(student, teacher, centred=True), student)


def test_binary_kd_equals_kd_of_two_classes() -> None:
    student, teacher, _ = logits()
    pairs = [torch.stack([torch.zeros_like(z), z], dim=-1) for z in (student, teacher)]
    loss = objectives.binary_kd(student, teacher, temperature=3.0)
    same(loss, objectives.kd(*pairs, temperature=3.0), student)


def test_binary_kd_is_binary_cross_entropy_less_the_entropy() -> None:
    student, teacher, _ = logits()
    p = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher, p)
    plain = F.binary_cross_entropy_with_logits(student, p) - entropy
    same(objectives.binary_kd(student, teacher), plain, student)


def test_binary_kd_knows_certain_logits() -> None:
    certain = torch.tensor([torch.inf, -torch.inf, torch.inf, -torch.inf])
    student = torch.tensor([2.0, 2.0, torch.inf, -torch.inf], requires_grad=True)
    each = objectives.binary_kd(student, certain, reduction="none")
    each.sum().backward()
    expected = torch.stack([-F.logsigmoid(torch.tensor(2.0)), -F.logsigmoid(torch.tensor(-2.0))])
    torch.testing.assert_close(each, torch.cat([expected, torch.zeros(2)]))
    assert student.grad.isfinite().all()


def test_multi_label_kd_averages_over_known_labels() -> None:
    student, teacher, _ = logits()
    each = objectives.binary_kd(student, teacher, temperature=2.0, reduction="none")
    torch.testing.assert_close(
        objectives.multi_label_kd(student, teacher, temperature=2.0), each.mean()
    )
    torch.testing.assert_close(
        objectives.multi_label_kd(student, teacher, temperature=2.0, reduction="none"), each.mean(1)
    )
    known = torch.rand(6, 5) > 0.5
    masked = student.detach().clone().masked_fill(~known, torch.nan).requires_grad_()
    loss = objectives.multi_label_kd(masked, teacher, temperature=2.0, weight=known)
    torch.testing.assert_close(loss, each[known].mean())
    loss.backward()
    assert (masked.grad[~known] == 0).all()
    weight = torch.rand(6, dtype=torch.float64)
    torch.testing.assert_close(
        objectives.multi_label_kd(student, teacher, temperature=2.0, weight=weight),
        (weight * each.mean(1)).sum() / weight.sum(),
    )


# DIST


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the Pearson correlation of two vectors."""
    return torch.corrcoef(torch.stack([a, b]))[0, 1]


def test_dist_equals_the_plain_formula() -> None:
    student, teacher, _ = logits()
    q, p = (student / 2).softmax(1), (teacher / 2).softmax(1)
    rows = torch.stack([correlation(q[i], p[i]) for i in range(6)])
    columns = torch.stack([correlation(q[:, c], p[:, c]) for c in range(5)])
    plain = 4 * (0.5 * (1 - rows.mean()) + 3.0 * (1 - columns.mean()))
    loss = objectives.dist(student, teacher, beta=0.5, gamma=3.0, temperature=2.0)
    same(loss, plain, student)


def test_a_weight_of_2_in_dist_counts_like_a_copy() -> None:
    student, teacher, _ = logits()
    weight = torch.tensor([1, 2, 1, 0, 1, 3])
    copies = weight.repeat_interleave(weight) * 0 + torch.arange(6).repeat_interleave(weight)
    torch.testing.assert_close(
        objectives.dist(student, teacher, weight=weight),
        objectives.dist(student[copies], teacher[copies]),
    )


def test_one_sample_has_no_columns_to_correlate() -> None:
    student, teacher, _ = logits(rows=1)
    rows = objectives.dist(student, teacher, gamma=0.0)
    torch.testing.assert_close(objectives.dist(student, teacher, gamma=0.3), rows + 0.3)


# SinKD


def plain_sinkhorn(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor,
    regularisation: float,
    iterations: int,
) -> torch.Tensor:
    """Return the cost of the plan, by scaling the kernel itself."""
    q, p = (student / 2).softmax(1), (teacher / 2).softmax(1)
    cost = (q.unsqueeze(1) - p).abs().sum(-1)
    plan = (-cost / regularisation).exp()
    for _ in range(iterations):
        plan = plan * (weight / plan.sum(1)).unsqueeze(1)
        plan = plan * (weight / plan.sum(0))
    return (plan * cost).sum()


@pytest.mark.parametrize("iterations", [1, 20])
def test_sinkhorn_equals_the_plain_algorithm(iterations: int) -> None:
    student, teacher, _ = logits()
    weight = torch.rand(6, dtype=torch.float64) + 0.1
    total = plain_sinkhorn(student, teacher, weight, 0.2, iterations)
    loss = objectives.sinkhorn(
        student, teacher, regularisation=0.2, iterations=iterations, weight=weight
    )
    same(loss, total / weight.sum(), student)
    each = objectives.sinkhorn(
        student, teacher, regularisation=0.2, iterations=iterations, weight=weight, reduction="none"
    )
    torch.testing.assert_close(each.sum(), total)


def test_sinkhorn_does_not_know_which_sample_is_which() -> None:
    student, teacher, _ = logits()
    torch.testing.assert_close(
        objectives.sinkhorn(student, teacher), objectives.sinkhorn(student, teacher.flip(0))
    )


def test_sinkhorn_between_its_limits() -> None:
    student, teacher, _ = logits(rows=4)
    q, p = (student / 2).softmax(1), (teacher / 2).softmax(1)
    cost = torch.cdist(q, p, p=1)
    even = objectives.sinkhorn(student, teacher, regularisation=1e6)
    torch.testing.assert_close(even, cost.mean(), rtol=1e-5, atol=0)
    best = min(
        sum(cost[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(4))
    )
    sharp = objectives.sinkhorn(
        student, teacher, regularisation=1e-3, iterations=3000, reduction="sum"
    )
    torch.testing.assert_close(sharp, best, rtol=1e-2, atol=0)


def test_sinkhorn_of_one_sample_is_its_cost() -> None:
    student, teacher, _ = logits(rows=1)
    single = objectives.sinkhorn_per_sample(student, teacher, temperature=2.0)
    torch.testing.assert_close(objectives.sinkhorn(student, teacher), single)


def test_sinkhorn_per_sample_is_the_distance_of_probabilities() -> None:
    student, teacher, _ = logits()
    plain = (student.softmax(1) - teacher.softmax(1)).abs().sum(1).mean()
    same(objectives.sinkhorn_per_sample(student, teacher), plain, student)
    for power in (2.0, 3.0):
        norm = (student.softmax(1) - teacher.softmax(1)).norm(p=power, dim=1).mean()
        same(objectives.sinkhorn_per_sample(student, teacher, power=power), norm, student)


def test_sinkhorn_is_finite_where_the_kernel_underflows() -> None:
    # Disjoint outputs cost 2; exp(-2 / 0.005) is 0 in float32, and the authors' plan 0 / 0.
    student = torch.tensor([[50.0, 0.0, 0.0], [50.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 50.0, 0.0], [0.0, 0.0, 50.0]])
    loss = objectives.sinkhorn(student, teacher, regularisation=0.005)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(2.0))
    assert student.grad.isfinite().all()


def test_the_sinkhorn_gradient_vanishes_for_a_confidently_wrong_student() -> None:
    # The spec's table: with logits (m, 0, 0) against (0, m, 0), four copies, the gradient goes to 0 when m grows.
    for m, expected in [(1.0, 0.186), (10.0, 9.8e-3), (20.0, 6.8e-5)]:
        student = torch.tensor([[m, 0.0, 0.0]], dtype=torch.float64).repeat(4, 1).requires_grad_()
        teacher = torch.tensor([[0.0, m, 0.0]], dtype=torch.float64).repeat(4, 1)
        objectives.sinkhorn(student, teacher, reduction="sum").backward()
        assert student.grad[0, 0].item() == pytest.approx(expected, rel=0.01)


# Self-distillation


def test_label_smoothing_teacher_is_kd_from_a_made_up_teacher() -> None:
    student, _, labels = logits()
    made_up = torch.full((6, 5), 0.1 / 4, dtype=torch.float64)
    made_up[torch.arange(6), labels] = 0.9
    loss = objectives.label_smoothing_teacher(student, labels, correct=0.9, temperature=3.0)
    same(loss, objectives.kd(student, made_up.log(), temperature=3.0), student)
    official = objectives.label_smoothing_teacher(
        student, labels, correct=0.9, temperature=3.0, official=True
    )
    target = (made_up / 3).softmax(1)
    theirs = F.kl_div(student.log_softmax(1), target, reduction="none").mean()
    same(official, theirs, student)
    some = labels.clone()
    some[:4] = -1
    torch.testing.assert_close(
        objectives.label_smoothing_teacher(student, some, official=True),
        objectives.label_smoothing_teacher(student[4:], labels[4:], official=True),
    )


def test_uskd_of_one_sample_has_the_cross_entropy_as_its_target() -> None:
    student, weak, labels = logits(rows=1)
    loss = objectives.uskd(student, weak, labels, alpha=1.0, beta=0.0, mu=0.0)
    same(loss, F.cross_entropy(student, labels), student)


def test_the_targets_of_uskd_are_1_on_average() -> None:
    student, weak, labels = logits()
    probability = student.detach().softmax(1)[torch.arange(6), labels]
    soft = probability.square() + 1 - probability.square().mean()
    assert soft.sum().item() == pytest.approx(6)
    loss = objectives.uskd(student, weak, labels, alpha=1.0, beta=0.0, mu=0.0)
    same(loss, (soft * F.cross_entropy(student, labels, reduction="none")).mean(), student)


def test_the_rank_of_uskd_counts_the_label() -> None:
    # The label is second of three, so the others are worth 1 and 1/3.
    student = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64)
    weak = student.clone()
    loss = objectives.uskd(student, weak, torch.tensor([1]), alpha=0.0, beta=1.0, mu=0.0)
    rest = torch.tensor([3.0, 1.0], dtype=torch.float64).log_softmax(0)
    torch.testing.assert_close(loss, -(0.75 * rest[0] + 0.25 * rest[1]))


def test_the_weak_head_of_uskd_learns_smoothed_labels_and_nothing_else() -> None:
    student, weak, labels = logits()
    weak.requires_grad_()
    loss = objectives.uskd(student, weak, labels, alpha=1.0, beta=1.0, mu=0.3)
    plain = 0.3 * F.cross_entropy(weak, labels, label_smoothing=0.1)
    torch.testing.assert_close(torch.autograd.grad(loss, weak), torch.autograd.grad(plain, weak))
    without = objectives.uskd(student, weak, labels, mu=0.0)
    assert torch.equal(torch.autograd.grad(without, weak)[0], torch.zeros(6, 5).double())


def test_a_second_label_of_share_0_is_no_label_but_officially() -> None:
    student, weak, labels = logits()
    soft = F.one_hot(labels, 5).double()
    hard = objectives.uskd(student, weak, labels)
    torch.testing.assert_close(objectives.uskd(student, weak, soft), hard)
    assert not torch.isclose(objectives.uskd(student, weak, soft, official=True), hard)


def test_uskd_refuses_more_than_two_labels_a_sample() -> None:
    student, weak, _ = logits()
    with pytest.raises(ValueError, match="more than two labels"):
        objectives.uskd(student, weak, torch.full((6, 5), 0.2))
    with pytest.raises(ValueError, match=r"\(6, 5\) and weak logits \(6, 4\)"):
        objectives.uskd(student, weak[:, :4], torch.zeros(6, dtype=torch.int64))


def test_unlabelled_samples_do_not_move_the_batch_mean_of_uskd() -> None:
    student, weak, labels = logits()
    labels[4:] = -1
    torch.testing.assert_close(
        objectives.uskd(student, weak, labels), objectives.uskd(student[:4], weak[:4], labels[:4])
    )


# What all share

LABELLED = [objectives.dkd, objectives.nkd, objectives.ofa, objectives.weighted_soft_labels]


@pytest.mark.parametrize("objective", LABELLED)
def test_soft_labels_count_by_their_largest_entry(objective) -> None:  # type: ignore[no-untyped-def]
    student, teacher, labels = logits()
    soft = 0.6 * F.one_hot(labels, 5).double() + 0.4 * F.one_hot((labels + 1) % 5, 5).double()
    soft[2], labels[2] = 0.0, -1
    torch.testing.assert_close(
        objective(student, teacher, soft), objective(student, teacher, labels)
    )


@pytest.mark.parametrize("objective", LABELLED)
@given(st.floats(0.1, 10.0), st.integers(0, 20))
def test_weights_and_missing_labels_act_alike(objective, scale: float, seed: int) -> None:  # type: ignore[no-untyped-def]
    student, teacher, labels = logits(seed=seed)
    labels[1] = -1
    each = objective(student, teacher, labels.clamp_min(0), reduction="none")
    weight = scale * torch.rand(6, dtype=torch.float64)
    loss = objective(student, teacher, labels, weight=weight)
    weight[1] = 0
    torch.testing.assert_close(loss, (weight * each).sum() / weight.sum())
    with pytest.raises(ValueError, match=r"weight has shape \(4,\)"):
        objective(student, teacher, labels, weight=torch.ones(4))


@pytest.mark.parametrize("objective", [*LABELLED, objectives.kd, objectives.logit_mse])
def test_leading_dimensions_may_be_any(objective) -> None:  # type: ignore[no-untyped-def]
    student, teacher, labels = logits()
    more = (labels,) if objective in LABELLED else ()
    each = objective(student, teacher, *more, reduction="none")
    shaped = objective(
        student.view(2, 3, 5),
        teacher.view(2, 3, 5),
        *(y.view(2, 3) for y in more),
        reduction="none",
    )
    torch.testing.assert_close(shaped, each.view(2, 3))


@pytest.mark.parametrize(
    "objective",
    [
        *LABELLED,
        objectives.kd,
        objectives.soft_cross_entropy,
        objectives.logit_standardised_kd,
        objectives.logit_mse,
    ],
)
def test_temperature_may_differ_per_sample(objective) -> None:  # type: ignore[no-untyped-def]
    student, teacher, labels = logits(rows=3)
    temperature = torch.tensor([0.5, 2.0, 4.0])
    more = (labels,) if objective in LABELLED else ()
    each = objective(student, teacher, *more, temperature=temperature, reduction="none")
    alone = [
        objective(*(z[i : i + 1] for z in (student, teacher, *more)), temperature=t.item())
        for i, t in enumerate(temperature)
    ]
    torch.testing.assert_close(each, torch.stack(alone))
