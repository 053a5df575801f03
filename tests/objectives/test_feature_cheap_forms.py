"""Closed and cheap forms against the plain formulas: value, gradient, and what they keep in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from understudy import objectives

o = objectives


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def agree(
    ours: Callable[[torch.Tensor], torch.Tensor],
    plain: Callable[[torch.Tensor], torch.Tensor],
    student: torch.Tensor,
    **tolerance: float,
) -> None:
    results = []
    for function in (ours, plain):
        leaf = student.detach().clone().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        results.append((value.detach(), gradient))
    torch.testing.assert_close(results[0][0], results[1][0], **tolerance)
    torch.testing.assert_close(results[0][1], results[1][1], **tolerance)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had which was made meanwhile."""

    numbers = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            # A view of something small may look large, but holds nothing.
            if isinstance(value, torch.Tensor):
                stored = value.untyped_storage().nbytes() // value.element_size()
                self.numbers = max(self.numbers, stored)
        return result


def largest(function: Callable[[torch.Tensor], torch.Tensor], student: torch.Tensor) -> int:
    leaf = student.detach().clone().requires_grad_()
    with Largest() as seen:
        function(leaf).backward()
    return seen.numbers


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(dim=0)


def unit(x: torch.Tensor) -> torch.Tensor:
    return centred(x) / centred(x).norm()


# Procrustes


def plain_procrustes(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    a, b = unit(teacher), unit(student)
    return a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a.T @ b).sum()


# Where the cross matrix has a rank below both widths, its smallest singular values are rounding and autograd through
# them is noise: there the plain formula is not a reference for the gradient.
@given(st.integers(3, 12), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=40)
def test_procrustes_is_its_formula(rows: int, ours: int, theirs: int) -> None:
    student, teacher = normal(rows, ours, seed=1), normal(rows, theirs, seed=2)
    if min(ours, theirs) < rows:
        agree(
            lambda s: o.procrustes(s, teacher),
            lambda s: plain_procrustes(s, teacher),
            student,
            rtol=1e-7,
            atol=1e-9,
        )
    else:
        torch.testing.assert_close(
            o.procrustes(student, teacher), plain_procrustes(student, teacher), rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize(("rows", "ours", "theirs"), [(5, 9, 12), (5, 12, 9), (20, 6, 4)])
@pytest.mark.parametrize("rank", [1, 2])
def test_procrustes_of_low_rank_is_the_least_over_rotations(
    rows: int, ours: int, theirs: int, rank: int
) -> None:
    student = normal(rows, rank, seed=1) @ normal(rank, ours, seed=2)
    teacher = normal(rows, rank, seed=3) @ normal(rank, theirs, seed=4)
    leaf = student.clone().requires_grad_()
    value = o.procrustes(leaf, teacher, preprocessing="raw")
    value.backward()
    torch.testing.assert_close(
        value.detach(),
        teacher.square().sum()
        + student.square().sum()
        - 2 * torch.linalg.svdvals(teacher.T @ student).sum(),
    )

    # |B|^2 - D^2 is convex in B, so a gradient is one exactly if the tangent plane lies below it everywhere.
    def convex(b: torch.Tensor) -> torch.Tensor:
        return b.square().sum() - o.procrustes(b, teacher, preprocessing="raw")

    slope = 2 * student - leaf.grad
    for seed in range(20):
        other = student + 10.0 ** (seed % 4 - 2) * normal(rows, ours, seed=10 + seed)
        assert convex(other) >= convex(student) + (slope * (other - student)).sum() - 1e-9


def test_procrustes_with_repeated_singular_values_has_the_right_gradient() -> None:
    basis = torch.linalg.qr(normal(10, 4, seed=1))[0]
    student = (basis * 2).requires_grad_()
    teacher = basis @ torch.linalg.qr(normal(4, 4, seed=2))[0]
    loss = o.procrustes(student, teacher, preprocessing="raw")
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(4.0, dtype=torch.float64))
    torch.testing.assert_close(student.grad, 2 * (student.detach() - basis))


def test_procrustes_is_zero_exactly_for_a_turned_scaled_and_moved_teacher() -> None:
    teacher = normal(15, 4, seed=1)
    rotation = torch.linalg.qr(normal(7, 4, seed=2))[0].T
    student = 3.0 * teacher @ rotation + normal(7, seed=3)
    for measure in (o.procrustes, o.feature_gram, o.cka):
        assert measure(student, teacher).abs() < 1e-14
    stretched = teacher * torch.tensor([10.0, 1.0, 0.1, 1.0], dtype=torch.float64)
    for measure in (o.procrustes, o.feature_gram):
        assert 1e-3 < measure(stretched, teacher) < 2
    leaf = stretched.clone().requires_grad_()
    o.procrustes(leaf, teacher).backward()
    assert (leaf.grad * centred(stretched)).sum().abs() < 1e-12


def test_a_student_of_width_one_has_the_length_of_its_product_for_a_nuclear_norm() -> None:
    student, teacher = normal(9, 1, seed=1), normal(9, 5, seed=2)
    expected = 2 - 2 * (unit(teacher).T @ unit(student)).norm()
    torch.testing.assert_close(o.procrustes(student, teacher), expected)


def test_cka_does_not_see_what_the_geometry_sees() -> None:
    # Two antiparallel bundles, each row with a direction of its own, against a student that keeps only the sign.
    n = 100
    sign = torch.tensor([1.0, -1.0]).repeat_interleave(n // 2).double().unsqueeze(1)
    student, teacher = sign, torch.cat([sign, torch.eye(n, dtype=torch.float64)], dim=1)
    values = torch.stack([f(student, teacher) for f in (o.cka, o.procrustes, o.feature_gram)])
    expected = torch.tensor([1 - 0.9952308843, 0.5751664119, 0.2449938133]).double()
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-8)


def test_procrustes_decomposes_the_smaller_matrix() -> None:
    few, many = normal(6, 300, seed=1), normal(300, 6, seed=1)
    assert largest(lambda s: o.procrustes(s, normal(6, 400, seed=2)), few) <= 6 * 400
    assert largest(lambda s: o.procrustes(s, normal(300, 8, seed=2)), many) <= 300 * 8


# Gram matrices


def plain_gram(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    a, b = unit(teacher), unit(student)
    return (a @ a.T - b @ b.T).square().sum()


def hsic(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    centring = torch.eye(len(one), dtype=one.dtype) - 1 / len(one)
    return torch.trace(centring @ one @ centring @ two)


def unbiased_hsic(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    n = len(one)
    one, two = (k - torch.diag(torch.diag(k)) for k in (one, two))
    ones = torch.ones(n, dtype=one.dtype)
    corner = (ones @ one @ ones) * (ones @ two @ ones) / ((n - 1) * (n - 2))
    return torch.trace(one @ two) + corner - 2 / (n - 2) * (ones @ one @ two @ ones)


def linear(x: torch.Tensor) -> torch.Tensor:
    return x @ x.T


def rbf(x: torch.Tensor) -> torch.Tensor:
    squared = (x.unsqueeze(0) - x.unsqueeze(1)).square().sum(dim=2)
    upper = torch.triu_indices(len(x), len(x), 1)
    median = squared[upper[0], upper[1]].sort().values[(upper.shape[1] - 1) // 2]
    return torch.exp(-squared / (2 * 0.8**2 * median))


def plain_cka(
    student: torch.Tensor,
    teacher: torch.Tensor,
    kernel: Callable[..., Any],
    measure: Callable[..., Any],
) -> torch.Tensor:
    ours, theirs = kernel(student), kernel(teacher)
    return 1 - measure(ours, theirs) / (measure(ours, ours) * measure(theirs, theirs)).sqrt()


@given(st.integers(4, 12), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=25)
def test_feature_gram_and_cka_are_their_formulas(rows: int, ours: int, theirs: int) -> None:
    student, teacher = normal(rows, ours, seed=1), normal(rows, theirs, seed=2)
    close = {"rtol": 1e-8, "atol": 1e-10}
    agree(lambda s: o.feature_gram(s, teacher), lambda s: plain_gram(s, teacher), student, **close)
    for kernel, name in ((linear, "linear"), (rbf, "rbf")):
        for measure, debiased in ((hsic, False), (unbiased_hsic, True)):
            agree(
                lambda s, k=name, d=debiased: o.cka(
                    s, teacher, kernel=k, bandwidth=0.8, debiased=d
                ),
                lambda s, k=kernel, m=measure: plain_cka(s, teacher, k, m),
                student,
                **close,
            )


@pytest.mark.parametrize("debiased", [False, True])
def test_no_matrix_over_examples_when_they_outnumber_the_widths(debiased: bool) -> None:
    student, teacher = normal(400, 8, seed=1), normal(400, 12, seed=2)
    assert largest(lambda s: o.feature_gram(s, teacher), student) <= 400 * 12
    assert largest(lambda s: o.cka(s, teacher, debiased=debiased), student) <= 400 * 12
    wide, wider = normal(12, 400, seed=1), normal(12, 500, seed=2)
    assert largest(lambda s: o.feature_gram(s, wider), wide) <= 12 * 500


# Maps


def plain_nst(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x.unsqueeze(1) * y.unsqueeze(2)).sum(dim=3).square().mean(dim=(1, 2))

    return (kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)).mean()


@pytest.mark.parametrize(("channels", "others", "side"), [(3, 5, 4), (12, 9, 2), (2, 9, 2)])
def test_nst_is_its_formula(channels: int, others: int, side: int) -> None:
    student, teacher = normal(2, channels, side, side), normal(2, others, side, side, seed=1)
    agree(lambda s: o.nst(s, teacher), lambda s: plain_nst(s, teacher), student)
    means = [F.normalize(x.flatten(2), dim=2).mean(dim=1) for x in (student, teacher)]
    torch.testing.assert_close(
        o.nst(student, teacher, kernel="linear"), (means[0] - means[1]).square().sum(dim=1).mean()
    )


def test_nst_with_a_gaussian_kernel_is_its_formula() -> None:
    student, teacher = normal(2, 4, 3, 3), normal(2, 5, 3, 3, seed=1)

    def plain(x: torch.Tensor) -> torch.Tensor:
        values = []
        for s, t in zip(x.flatten(2), teacher.flatten(2), strict=True):
            s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
            spread = torch.cdist(s, t).square().mean()

            def kernel(a: torch.Tensor, b: torch.Tensor, v: torch.Tensor = spread) -> torch.Tensor:
                squared = (a.unsqueeze(1) - b.unsqueeze(0)).square().sum(dim=2)
                return torch.exp(-squared / (2 * v)).mean()

            values.append(kernel(s, s) + kernel(t, t) - 2 * kernel(s, t))
        return torch.stack(values).mean()

    agree(lambda s: o.nst(s, teacher, kernel="gaussian"), plain, student)


def test_nst_makes_no_tensor_of_all_pairs_of_channels_and_positions() -> None:
    student, teacher = normal(2, 32, 4, 4), normal(2, 48, 4, 4, seed=1)
    assert largest(lambda s: o.nst(s, teacher), student) <= 2 * 48 * 16


def test_review_pools_the_difference() -> None:
    student, teacher = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1)

    def plain(s: torch.Tensor) -> torch.Tensor:
        loss, total, share = F.mse_loss(s, teacher), 1.0, 1.0
        for k in (4, 2, 1):
            share /= 2
            total += share
            pooled = (F.adaptive_avg_pool2d(x, k) for x in (s, teacher))
            loss = loss + share * F.mse_loss(*pooled)
        return loss / total

    agree(lambda s: o.review(s, teacher), plain, student)


def test_pad_is_its_formula_and_survives_any_log_variance() -> None:
    student, teacher, v = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)

    def plain(s: torch.Tensor) -> torch.Tensor:
        return ((teacher - s).square() / (1e-6 + v.exp()) + v).mean()

    agree(lambda s: o.pad(s, teacher, log_variance=v), plain, student)
    for extreme in (-1e4, 1e4):
        log_variance = torch.full((4, 3), extreme, requires_grad=True)
        loss = o.pad(student.float(), teacher.float(), log_variance=log_variance)
        loss.backward()
        assert loss.isfinite() and log_variance.grad.isfinite().all()
    assert o.pad(student, teacher, log_variance=v, eps=0.0).isfinite()


def test_srd_keeps_small_and_large_differences() -> None:
    teacher = torch.zeros(3, 4)
    for size in (1e-12, 1.0, 1e12):
        student = (size * normal(3, 4).float()).requires_grad_()
        loss = o.srd(student, teacher)
        loss.backward()
        exact = 2 * (size * normal(3, 4)).abs().pow(4).sum().log()
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
        assert student.grad.isfinite().all() and (student.grad != 0).all()


def test_srd_at_the_teacher_is_finite_where_the_formula_is_not() -> None:
    student = normal(3, 4).requires_grad_()
    loss = o.srd(student, student.detach().clone())
    loss.backward()
    assert loss.isfinite() and (student.grad == 0).all()


# Plain formulas of the rest, and laws that name them


def test_attention_transfer_in_both_forms() -> None:
    student, teacher = normal(2, 3, 4, 4), normal(2, 5, 4, 4, seed=1)
    q = [F.normalize(x.abs().pow(3).sum(dim=1).flatten(1)) for x in (student, teacher)]
    torch.testing.assert_close(
        o.attention_transfer(student, teacher, power=3.0), F.mse_loss(q[0], q[1])
    )
    torch.testing.assert_close(
        o.attention_transfer(student, teacher, power=3.0, form="paper"),
        (q[0] - q[1]).norm(dim=1).mean(),
    )


def test_channel_wise_distillation_is_a_divergence_over_positions() -> None:
    student, teacher = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    p, q = ((x.flatten(2) / 4).softmax(2) for x in (teacher, student))
    torch.testing.assert_close(
        o.cwd(student, teacher), 16 * (p * (p / q).log()).sum(2).mean(), rtol=1e-9, atol=1e-12
    )
    weight = torch.zeros(2, 3)
    weight[1, 2] = 1
    torch.testing.assert_close(
        o.cwd(student, teacher, weight=weight), 16 * (p * (p / q).log()).sum(2)[1, 2]
    )


def test_overhaul_asks_nothing_of_a_student_below_an_inactive_teacher() -> None:
    teacher = torch.tensor([[-3.0, -0.5, -0.5, 2.0, 2.0]])
    student = torch.tensor([[-1.5, -2.0, 1.0, 1.0, 3.0]], requires_grad=True)
    loss = o.ofd(student, teacher, margin=-1.0, reduction="none")
    # below the margin; below the teacher; above it; active twice
    torch.testing.assert_close(loss, torch.tensor([0.0 + 0.0 + 1.5**2 + 1.0 + 1.0]))
    per_channel = o.ofd(student, teacher, margin=torch.full((5,), -1.0))
    torch.testing.assert_close(per_channel, loss[0])


def test_normalised_mse_is_twice_the_cosine_loss() -> None:
    student, teacher = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    twice = 2 * o.cosine(student, teacher)
    torch.testing.assert_close(o.normalised_mse(student, teacher), twice)
    torch.testing.assert_close(twice / 2, 1 - F.cosine_similarity(student, teacher, dim=-1).mean())


def test_the_cosine_with_nothing_is_nothing() -> None:
    student, teacher = torch.zeros(2, 3, requires_grad=True), torch.randn(2, 3)
    loss = o.cosine(student, teacher)
    loss.backward()
    assert loss == 1 and (student.grad == 0).all()
    torch.testing.assert_close(o.normalised_mse(student, teacher), torch.tensor(1.0))


def test_token_masks_count_tokens() -> None:
    student, teacher = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    for function in (o.mse, o.cosine, o.normalised_mse, o.feature_cross_entropy):
        masked = function(student, teacher, weight=mask)
        kept = function(student[mask.bool()], teacher[mask.bool()])
        torch.testing.assert_close(masked, kept)
    geometry = o.procrustes(student, teacher, weight=mask)
    torch.testing.assert_close(geometry, o.procrustes(student[mask.bool()], teacher[mask.bool()]))


def test_mgd_is_the_sum_of_what_mse_averages() -> None:
    student, teacher = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(o.mgd(student, teacher), o.mse(student, teacher) * 48)


def test_hash_at_the_teacher_costs_what_the_distance_from_the_planes_says() -> None:
    teacher, planes = normal(5, 4), normal(8, 4, seed=1)
    bias = o.lsh_bias(teacher, planes)
    scores = teacher @ planes.T + bias
    torch.testing.assert_close(
        o.lsh(teacher, teacher, hash_weight=planes, hash_bias=bias),
        torch.log1p(torch.exp(-scores.abs())).mean(),
    )
    selected = o.lsh(teacher, teacher + 1, hash_weight=planes, weight=torch.zeros(5))
    assert selected == 0
