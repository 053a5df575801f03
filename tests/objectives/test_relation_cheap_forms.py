"""Closed and cheap forms of relations against the plain formulas: value, gradient, and what they keep in memory."""

from __future__ import annotations

import math
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
            if isinstance(value, torch.Tensor):
                stored = value.untyped_storage().nbytes() // value.element_size()
                self.numbers = max(self.numbers, stored)
        return result


# Relational distillation


def plain_angle(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    def cosines(x: torch.Tensor) -> torch.Tensor:
        differences = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), dim=2)
        return torch.einsum("ijd,ikd->ijk", differences, differences)

    return F.smooth_l1_loss(cosines(student), cosines(teacher))


def plain_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    def relative(x: torch.Tensor) -> torch.Tensor:
        off = ~torch.eye(len(x), dtype=torch.bool)
        squared = (x.unsqueeze(0) - x.unsqueeze(1)).square().sum(dim=2)
        distances = torch.where(off, torch.where(off, squared, 1).sqrt(), 0)
        return distances / distances[off].mean()

    return F.smooth_l1_loss(relative(student), relative(teacher))


@given(st.integers(2, 9), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=25)
def test_rkd_is_its_formula(rows: int, ours: int, theirs: int) -> None:
    student, teacher = normal(rows, ours, seed=1), 5 + 3 * normal(rows, theirs, seed=2)
    agree(lambda s: o.rkd_angle(s, teacher), lambda s: plain_angle(s, teacher), student)
    agree(lambda s: o.rkd_distance(s, teacher), lambda s: plain_distance(s, teacher), student)


def test_rkd_reaches_both_branches_of_the_loss() -> None:
    teacher = torch.tensor([[0.0], [1.0], [2.0], [40.0]]).double()
    student = torch.tensor([[0.0], [-1.0], [2.0], [-7.0]]).double()
    agree(lambda s: o.rkd_angle(s, teacher), lambda s: plain_angle(s, teacher), student)
    agree(lambda s: o.rkd_distance(s, teacher), lambda s: plain_distance(s, teacher), student)


def test_rkd_angles_in_several_rounds_without_the_large_tensors() -> None:
    student, teacher = normal(72, 600, seed=1), normal(72, 500, seed=2)
    agree(lambda s: o.rkd_angle(s, teacher), lambda s: plain_angle(s, teacher), student)
    leaf = student.clone().requires_grad_()
    with Largest() as seen:
        o.rkd_angle(leaf, teacher).backward()
    assert seen.numbers <= 2**17 < 72**3


@pytest.mark.parametrize("gap", [1e-2, 1e-4])
def test_rkd_in_float32_is_right_for_near_duplicates(gap: float) -> None:
    student, teacher = normal(6, 20, seed=1) + 30, normal(6, 20, seed=2)
    student[1:3] = student[0] + gap * normal(2, 20, seed=3)
    student = student.float()
    for function, plain in ((o.rkd_angle, plain_angle), (o.rkd_distance, plain_distance)):
        leaf, exact = student.clone().requires_grad_(), student.double().requires_grad_()
        loss, expected = function(leaf, teacher.float()), plain(exact, teacher)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
        scale = exact.grad.abs().max()
        assert (leaf.grad.double() - exact.grad).abs().max() <= 1e-3 * scale


def test_rkd_of_duplicates_is_finite_and_gives_them_what_the_others_do() -> None:
    student = normal(5, 3, seed=1)
    student[1] = student[0]
    student.requires_grad_()
    loss = o.rkd_angle(student, normal(5, 4, seed=2)) + o.rkd_distance(
        student, normal(5, 4, seed=2)
    )
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


# Similarities


def test_similarity_preserving_is_its_formula() -> None:
    student, teacher = normal(4, 3, 2, 2), normal(4, 5, seed=1)

    def plain(s: torch.Tensor) -> torch.Tensor:
        g = [F.normalize(x.flatten(1) @ x.flatten(1).T, dim=1) for x in (s, teacher)]
        return (g[0] - g[1]).square().sum() / 16

    agree(lambda s: o.similarity_preserving(s, teacher), plain, student)


def test_correlation_congruence_is_the_series_of_a_gaussian() -> None:
    student, teacher = normal(4, 5), normal(4, 3, seed=1)
    unit = [F.normalize(x, dim=1) for x in (student, teacher)]
    kernels = [torch.exp(-0.4 * torch.cdist(x, x).square()) for x in unit]
    exact = (kernels[0] - kernels[1]).square().mean()
    value = o.correlation_congruence(student, teacher, gamma=0.4, order=12)
    torch.testing.assert_close(value, exact)
    second = [math.exp(-0.8) * (1 + 0.8 * (g := x @ x.T) + 0.32 * g.square()) for x in unit]
    torch.testing.assert_close(
        o.correlation_congruence(student, teacher), (second[0] - second[1]).square().mean()
    )


def test_correlation_congruence_official_takes_vectors_as_they_are() -> None:
    student, teacher = normal(4, 5), normal(4, 3, seed=1)
    c = [
        math.exp(-0.2) * (1 + 0.2 * (g := x @ x.T) + 0.02 * g.square()) for x in (student, teacher)
    ]
    value = o.correlation_congruence(student, teacher, gamma=0.1, order=2, official=True)
    torch.testing.assert_close(value, (c[0] - c[1]).norm() / 16)


# Maps


@pytest.mark.parametrize(("channels", "others", "side"), [(3, 5, 4), (12, 9, 2)])
def test_affinity_is_its_formula(channels: int, others: int, side: int) -> None:
    student, teacher = normal(2, channels, side, side), normal(2, others, side, side, seed=1)

    def plain(s: torch.Tensor) -> torch.Tensor:
        a = [(u := F.normalize(x.flatten(2), dim=1)).mT @ u for x in (s, teacher)]
        return (a[0] - a[1]).norm(dim=(1, 2)).mean() / side**2

    agree(lambda s: o.affinity(s, teacher), plain, student)


def test_affinity_official_is_its_formula_without_its_matrices() -> None:
    student, teacher = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    student[0, 1] = 0

    def plain(s: torch.Tensor) -> torch.Tensor:
        f, g = (F.normalize(x.flatten(2), dim=2) for x in (s, teacher))
        outer = f.unsqueeze(3) * f.unsqueeze(2) - g.unsqueeze(3) * g.unsqueeze(2)
        return (outer / 16).norm(dim=(2, 3)).sum(dim=1).mean()

    torch.testing.assert_close(o.affinity(student, teacher, official=True), plain(student))
    student[0, 1] = 1
    agree(lambda s: o.affinity(s, teacher, official=True), plain, student)
    leaf = normal(2, 3, 12, 12).requires_grad_()
    with Largest() as seen:
        o.affinity(leaf, normal(2, 3, 12, 12, seed=1), official=True).backward()
        o.affinity(leaf, normal(2, 5, 12, 12, seed=1)).backward()
    assert seen.numbers <= 2 * 5 * 144


def test_ickd_is_its_formula() -> None:
    student, teacher = normal(2, 3, 4, 4), normal(2, 3, 2, 2, seed=1)

    def plain(s: torch.Tensor) -> torch.Tensor:
        g = [F.normalize((f := x.flatten(2)) @ f.mT, dim=2) for x in (s, teacher)]
        return (g[0] - g[1]).square().sum() / (3 * 2)

    agree(lambda s: o.ickd(s, teacher), plain, student)


def test_correlations_of_equal_positions_and_samples() -> None:
    student, teacher = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1)
    stack = torch.stack(
        [student.movedim(1, -1).flatten(0, 2), teacher.movedim(1, -1).flatten(0, 2)]
    )
    expected = torch.stack([torch.corrcoef(pair)[0, 1] for pair in stack.transpose(0, 1)]).mean()
    torch.testing.assert_close(o.channel_correlation(student, teacher), 1 - expected)
    sums = [x.sum(dim=1).flatten(1) for x in (student, teacher)]
    across = [
        torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(sums[0].T, sums[1].T, strict=True)
    ]
    torch.testing.assert_close(
        o.spatial_correlation(student, teacher), 1 - torch.stack(across).mean()
    )


# Contrast


def plain_crd(
    student: torch.Tensor, bank: torch.Tensor, index: torch.Tensor, z: float
) -> torch.Tensor:
    p = torch.exp(torch.einsum("bkd,bd->bk", bank[index], student) / 0.07) / z
    c = (index.shape[1] - 1) / len(bank)
    positive, negative = p[:, 0], p[:, 1:]
    loss = -(positive / (positive + c + 1e-7)).log() - (c / (negative + c + 1e-7)).log().sum(dim=1)
    return loss.mean()


@pytest.mark.parametrize("rows", [30, 300])
def test_crd_is_its_formula_with_a_small_and_a_large_bank(rows: int) -> None:
    student = F.normalize(normal(4, 6), dim=1)
    bank = F.normalize(normal(rows, 6, seed=1), dim=1)
    index = torch.randint(0, rows, (4, 8), generator=torch.Generator().manual_seed(2))
    log_z = o.crd_log_normaliser(student, bank, index=index)
    scores = torch.einsum("bkd,bd->bk", bank[index], student) / 0.07
    torch.testing.assert_close(log_z.exp(), scores.exp().mean() * rows)
    agree(
        lambda s: o.crd(s, bank, index=index, log_normaliser=log_z),
        lambda s: plain_crd(s, bank, index, log_z.exp().item()),
        student,
    )


def test_crd_does_not_hold_the_rows_of_all_samples() -> None:
    student, bank = normal(64, 32).requires_grad_(), normal(4000, 32, seed=1)
    index = torch.randint(0, 4000, (64, 101), generator=torch.Generator().manual_seed(2))
    with Largest() as seen:
        o.crd(student, bank, index=index).backward()
    assert seen.numbers <= bank.numel() < index.numel() * 32
    small = bank[:500].clone()
    with Largest() as seen:
        o.crd(student, small, index=index % 500).backward()
    assert seen.numbers <= 64 * 500


def test_crd_without_an_index_contrasts_the_batch() -> None:
    student, teacher = (F.normalize(normal(5, 4, seed=seed), dim=1) for seed in (1, 2))
    index = torch.tensor([[i, *(j for j in range(5) if j != i)] for i in range(5)])
    torch.testing.assert_close(o.crd(student, teacher), o.crd(student, teacher, index=index))
    near = o.crd(teacher, teacher)
    assert near < o.crd(student, teacher)


def test_info_nce_is_its_formula() -> None:
    student, teacher, queue = normal(4, 5), normal(4, 5, seed=1), normal(6, 5, seed=2)
    s, t, q = (F.normalize(x, dim=1) for x in (student, teacher, queue))
    scores = (s @ t.T / 0.2).exp()
    plain = -(scores.diag() / (scores.sum(1) + (s @ q.T / 0.2).exp().sum(1))).log().mean()
    torch.testing.assert_close(o.info_nce(student, teacher, temperature=0.2, queue=queue), plain)
    alone = o.info_nce(student[:1], teacher[:1], queue=queue)
    assert alone.isfinite() and alone > 0
    with pytest.raises(ValueError, match="at least 2 samples"):
        o.info_nce(student[:1], teacher[:1])


# Attention


def plain_relation(
    s: tuple[torch.Tensor, torch.Tensor], t: tuple[torch.Tensor, torch.Tensor], tokens: int
) -> torch.Tensor:
    """The divergence of the first tokens of one sequence."""
    total = torch.zeros((), dtype=torch.float64)
    heads = s[0].shape[0]
    for head in range(heads):
        for row in range(tokens):
            q = (s[0][head, row] @ s[1][head, :tokens].T / s[0].shape[-1] ** 0.5).softmax(0)
            p = (t[0][head, row] @ t[1][head, :tokens].T / t[0].shape[-1] ** 0.5).softmax(0)
            total = total + (p * (p / q).log()).sum()
    return total / (heads * tokens)


def test_attention_relation_is_the_mean_over_heads_and_tokens_of_each_sequence() -> None:
    student, keys = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    teacher, teacher_keys = normal(2, 3, 4, 6, seed=2), normal(2, 3, 4, 6, seed=3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = [
        plain_relation((student[i], keys[i]), (teacher[i], teacher_keys[i]), length)
        for i, length in enumerate((4, 2))
    ]
    each = {"student_keys": keys, "teacher_keys": teacher_keys, "mask": mask}
    value = o.attention_relation(student, teacher, **each)
    torch.testing.assert_close(value, torch.stack(expected).mean())
    by_token = o.attention_relation(student, teacher, **each, weight=torch.ones(2, 4))
    torch.testing.assert_close(by_token, (4 * expected[0] + 2 * expected[1]) / 6)


def test_value_relation_splits_heads_anew() -> None:
    student, teacher = normal(1, 2, 3, 6), normal(1, 3, 3, 4, seed=1)
    joined = [x.transpose(1, 2).reshape(1, 3, 12) for x in (student, teacher)]
    split = [x.view(1, 3, 4, 3).transpose(1, 2)[0] for x in joined]
    expected = plain_relation((split[0], split[0]), (split[1], split[1]), 3)
    value = o.value_relation(student, teacher, relation_heads=4)
    torch.testing.assert_close(value, expected)
    with pytest.raises(ValueError, match="relation_heads where heads differ"):
        o.value_relation(student, teacher)


def test_causal_tokens_see_only_what_came_before() -> None:
    student, teacher = normal(2, 2, 4, 3), normal(2, 2, 4, 3, seed=1)
    changed = student.clone()
    changed[:, :, 3] += 1
    before, after = (
        o.value_relation(x, teacher, causal=True, weight=torch.ones(2, 4), reduction="none")
        for x in (student, changed)
    )
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3] != after[:, 3]).all()
    assert (before[:, 0] == 0).all()


def test_a_sequence_without_tokens_counts_nothing() -> None:
    student, teacher = normal(2, 2, 4, 3).requires_grad_(), normal(2, 2, 4, 3, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    loss = o.value_relation(student, teacher, mask=mask)
    torch.testing.assert_close(loss, o.value_relation(student[:1], teacher[:1]))
    loss.backward()
    assert student.grad.isfinite().all() and (student.grad[1] == 0).all()


# The rest


def test_skd_direction_is_its_formula_and_flat_at_the_teacher() -> None:
    student, teacher = normal(5, 4), normal(5, 6, seed=1)

    def plain(s: torch.Tensor) -> torch.Tensor:
        g = [(u := F.normalize(x, dim=1)) @ u.T for x in (s, teacher)]
        d = g[0] - g[1]
        inverse = torch.linalg.inv(torch.cov(d.T) + 0.1 * torch.eye(5, dtype=torch.float64))
        return torch.einsum("bi,ij,bj->b", d, inverse, d).sqrt().mean()

    agree(lambda s: o.skd_direction(s, teacher), plain, student)
    leaf = student.clone().requires_grad_()
    o.skd_direction(leaf, student).backward()
    assert (leaf.grad == 0).all()


def test_sskd_keeps_the_share_of_wrong_views_that_it_is_told() -> None:
    student, teacher = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    labels = torch.tensor([0, 1, 2])
    p, q = (teacher[:, 1:] / 4).softmax(2), (student[:, 1:] / 4).softmax(2)
    each = 16 * (p * (p / q).log()).sum(2)
    truth = teacher[:, 1:].gather(2, labels.view(3, 1, 1).expand(3, 3, 1))
    rank = (teacher[:, 1:] > truth).sum(2).flatten()
    doubt = 1 - teacher[:, 1:].softmax(2).gather(2, labels.view(3, 1, 1).expand(3, 3, 1)).flatten()
    right = int((rank == 0).sum())
    for ratio in (0.0, 0.5, 1.0):
        kept = (rank + doubt).argsort()[: right + int((9 - right) * ratio)]
        value = o.sskd_transformed(student, teacher, labels=labels, ratio=ratio)
        expected = each.flatten()[kept].mean() if len(kept) else torch.zeros(())
        torch.testing.assert_close(value, expected.double())
    twice = o.sskd_transformed(student, teacher, labels=labels.view(3, 1).expand(3, 4))
    torch.testing.assert_close(twice, value)


def test_sskd_with_nothing_kept_is_zero() -> None:
    student = normal(2, 2, 3).requires_grad_()
    teacher = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[-1.0, 0.1], [1.0, 0.0]]]).double()
    loss = o.sskd_similarity(student, teacher, ratio=0.0)
    loss.backward()
    assert loss == 0 and (student.grad == 0).all()
