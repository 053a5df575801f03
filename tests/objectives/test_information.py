"""Objectives of information theory against numbers of the authors' code, closed forms and their own laws."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from understudy import objectives
from understudy.objectives.information.mutual_information import _log_mean_of_others

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(
    system: str, name: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, float]]:
    """Return the tensors of a case, its hyper-parameters and its tolerance."""
    cases = json.loads((GOLDEN / system / "cases.json").read_text())["cases"]
    (case,) = (case for case in cases if case["case"] == name)
    keywords = next(case[key] for key in ("hyperparameters", "hyper_parameters") if key in case)
    return load_file(GOLDEN / system / f"{name}.safetensors"), keywords, case["tolerance"]


# Interpolated lower bound


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", ["bound_B6_scale1", "bound_B2_scale1"])
def test_mi_alpha_reproduces_the_bound_of_distiller(name: str, alpha: float) -> None:
    tensors, _, tolerance = golden("distiller", name)
    label = str(alpha).replace(".", "p")
    scores, baseline = tensors["scores"].requires_grad_(), tensors["log_baseline"].requires_grad_()
    loss = objectives.mi_alpha(scores, baseline, alpha=alpha)
    expected = -tensors[f"bound_alpha{label}"].reshape(())
    torch.testing.assert_close(loss.detach(), expected, **tolerance)
    found = torch.autograd.grad(loss, [scores, baseline], allow_unused=True, materialize_grads=True)
    for name, gradient in zip(("scores", "baseline"), found, strict=True):
        # Theirs is the gradient of the bound, which is maximised.
        theirs = tensors[f"grad_{name}_bound_alpha{label}"]
        torch.testing.assert_close(-gradient, theirs, **tolerance)


def plain_bound(scores: torch.Tensor, baseline: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return I_alpha by loops, from the formula."""
    count = len(scores)
    others = [[k for k in range(count) if k != i] for i in range(count)]
    loo = [[scores[i, others[j]].exp().mean() for j in range(count)] for i in range(count)]
    u = [
        [(alpha * loo[i][j] + (1 - alpha) * baseline[i].exp()).log() for j in range(count)]
        for i in range(count)
    ]
    pairs = [(i, j) for i in range(count) for j in others[i]]
    joint = torch.stack([scores[i, i] - u[i][j] for i, j in pairs]).mean()
    marginal = torch.stack([(scores[i, j] - u[i][i]).exp() for i, j in pairs]).mean()
    return 1 + joint - marginal


@given(st.integers(2, 6), st.sampled_from([0.0, 0.3, 0.9, 1.0]), st.integers(0, 50))
def test_mi_alpha_equals_the_plain_formula(count: int, alpha: float, seed: int) -> None:
    torch.manual_seed(seed)
    scores = (3 * torch.randn(count, count, dtype=torch.float64)).requires_grad_()
    baseline = torch.randn(count, dtype=torch.float64).requires_grad_()
    plain = -plain_bound(scores, baseline, alpha)
    loss = objectives.mi_alpha(scores, baseline, alpha=alpha)
    torch.testing.assert_close(loss, plain)
    ours = torch.autograd.grad(loss, [scores, baseline], allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(
        plain, [scores, baseline], allow_unused=True, materialize_grads=True
    )
    torch.testing.assert_close(ours, theirs)


def test_mi_alpha_1_ignores_the_baseline_and_knows_nothing_from_two_samples() -> None:
    scores = 1000 * torch.eye(8) + torch.randn(8, 8)
    loss = objectives.mi_alpha(scores, torch.randn(8), alpha=1.0)
    torch.testing.assert_close(loss, objectives.mi_alpha(scores, torch.randn(8), alpha=1.0))
    assert -loss == pytest.approx(math.log(7), rel=1e-5)  # the bound, which perfect scores reach
    two = objectives.mi_alpha(torch.randn(2, 2, dtype=torch.float64), torch.zeros(2), alpha=1.0)
    assert two.abs() < 1e-14


def test_mi_alpha_keeps_the_digits_that_a_subtraction_would_lose() -> None:
    # One score dominates: the mean of the others is exactly that of what is left.
    scores = torch.tensor([[60.0, 1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    loss = objectives.mi_alpha(scores, torch.zeros(3), alpha=1.0)
    expected = objectives.mi_alpha(scores.double(), torch.zeros(3), alpha=1.0)
    torch.testing.assert_close(loss, expected.float())
    plain = -plain_bound(scores.double(), torch.zeros(3).double(), 1.0)
    torch.testing.assert_close(expected, plain)


def test_alpha_trades_bias_for_variance_on_gaussians() -> None:
    # d = 5 and correlation 0.9 have a mutual information of 4.152; critic and baseline are the optimal ones.
    torch.manual_seed(0)
    d, rho, batch, repeats = 5, 0.9, 32, 100
    values: dict[float, list[float]] = {0.0: [], 0.5: [], 1.0: []}
    for _ in range(repeats):
        x = torch.randn(batch, d, dtype=torch.float64)
        y = rho * x + math.sqrt(1 - rho**2) * torch.randn_like(x)
        gap = (y.unsqueeze(0) - rho * x.unsqueeze(1)).square().sum(-1) / (2 * (1 - rho**2))
        scores = y.square().sum(-1) / 2 - gap - d / 2 * math.log(1 - rho**2)
        for alpha, found in values.items():
            found.append(-objectives.mi_alpha(scores, torch.zeros(batch), alpha=alpha).item())
    mean = {alpha: torch.tensor(found).mean().item() for alpha, found in values.items()}
    spread = {alpha: torch.tensor(found).std().item() for alpha, found in values.items()}
    assert mean == pytest.approx({0.0: 4.21, 0.5: 3.59, 1.0: 2.91}, abs=0.2)
    assert spread[0.0] > spread[0.5] > spread[1.0]


def test_masked_samples_are_neither_pairs_nor_negatives() -> None:
    scores = torch.randn(5, 5, dtype=torch.float64)
    baseline = torch.randn(5, dtype=torch.float64)
    kept = [0, 2, 3]
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    scores[1], scores[:, 4], baseline[1] = torch.nan, torch.inf, torch.nan
    for alpha in (0.0, 0.5, 1.0):
        torch.testing.assert_close(
            objectives.mi_alpha(scores, baseline, alpha=alpha, weight=weight),
            objectives.mi_alpha(scores[kept][:, kept], baseline[kept], alpha=alpha),
        )


def test_a_weight_of_2_counts_twice_among_the_negatives() -> None:
    scores, baseline = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    # Row 0: negatives 1 (twice) and 2 (once).
    tilted = scores + weight.log()
    loo_00 = (tilted[0, 1:].logsumexp(0) - math.log(3)).item()
    assert _log_mean_of_others(scores, weight)[0, 0].item() == pytest.approx(loo_00)
    whole = objectives.mi_alpha(scores, baseline, weight=weight)
    torch.testing.assert_close(whole, objectives.mi_alpha(scores, baseline, weight=7 * weight))
    assert not torch.isclose(whole, objectives.mi_alpha(scores, baseline))


def test_mi_alpha_refuses() -> None:
    with pytest.raises(ValueError, match="alpha is 1.5"):
        objectives.mi_alpha(torch.randn(3, 3), torch.randn(3), alpha=1.5)
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3,\)"):
        objectives.mi_alpha(torch.randn(3, 4), torch.randn(3))
    with pytest.raises(ValueError, match="at least 2"):
        objectives.mi_alpha(torch.randn(1, 1), torch.randn(1))


# Conditional mutual information


@pytest.mark.parametrize(
    "name", ["mcmi_minibatch_stale_centroids", "mcmi_batch1", "mcmi_one_class"]
)
def test_conditional_mutual_information(name: str) -> None:
    tensors, keywords, tolerance = golden("mcmi", name)
    logits = tensors["logits"].requires_grad_()
    centroids = tensors["centroids"].requires_grad_()
    divergence = objectives.conditional_mutual_information(logits, centroids, tensors["labels"])
    torch.testing.assert_close(
        divergence.detach(), tensors["kl_to_centroid"].reshape(()), **tolerance
    )
    hard = objectives.cross_entropy(logits, tensors["labels"])
    total = hard - keywords["lambda_paper"] * divergence
    torch.testing.assert_close(total.detach(), tensors["total"].reshape(()), **tolerance)
    total.backward()
    torch.testing.assert_close(logits.grad, tensors["grad_logits"], **tolerance)
    assert centroids.grad is None


def test_centroids_of_a_full_pass_in_batches() -> None:
    tensors, keywords, tolerance = golden("mcmi", "centroids_full_pass")
    size, classes = keywords["batch"], keywords["num_classes"]
    sums, counts = torch.zeros(classes, classes, dtype=torch.float64), torch.zeros(classes).double()
    for start in range(0, len(tensors["labels"]), size):
        part = slice(start, start + size)
        more, number = objectives.class_sums(tensors["logits"][part], tensors["labels"][part])
        sums, counts = sums + more, counts + number
    torch.testing.assert_close(counts.long(), tensors["labels"].bincount(minlength=classes))
    centroids = objectives.class_centroids(sums, counts)
    torch.testing.assert_close(centroids, tensors["centroids"], **tolerance)


def test_against_its_own_centroids_it_is_a_difference_of_entropies() -> None:
    logits = 3 * torch.randn(40, 5, dtype=torch.float64)
    labels = torch.arange(40) % 4  # class 4 has no samples
    centroids = objectives.class_centroids(
        *objectives.class_sums(logits, labels), allow_missing=True
    )
    value = objectives.conditional_mutual_information(logits, centroids, labels)

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return -(p * p.log()).sum(-1)

    expected = entropy(centroids[:4]).mean() - entropy(logits.softmax(-1)).mean()
    torch.testing.assert_close(value, expected)
    assert 0 <= value <= math.log(5)


def test_two_samples_of_one_class_have_the_closed_form() -> None:
    small = 0.1
    p = torch.tensor([[1 - small, small], [small, 1 - small]], dtype=torch.float64)
    labels = torch.zeros(2, dtype=torch.int64)
    centroids = objectives.class_centroids(
        *objectives.class_sums(p.log(), labels), allow_missing=True
    )
    value = objectives.conditional_mutual_information(p.log(), centroids, labels)
    expected = math.log(2) + small * math.log(small) + (1 - small) * math.log(1 - small)
    assert value.item() == pytest.approx(expected)


def test_identical_samples_carry_no_information_and_get_no_gradient() -> None:
    logits = torch.randn(1, 4, dtype=torch.float64).repeat(6, 1).requires_grad_()
    labels = torch.full((6,), 2)
    centroids = objectives.class_centroids(
        *objectives.class_sums(logits, labels), allow_missing=True
    )
    value = objectives.conditional_mutual_information(logits, centroids, labels)
    value.backward()
    assert value.abs() < 1e-12 and logits.grad.abs().max() < 1e-12


def test_a_class_without_samples_is_named_and_its_row_poisons_who_asks() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 2, -1])
    sums, counts = objectives.class_sums(logits, labels)
    assert counts.tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="no samples of class 1;"):
        objectives.class_centroids(sums, counts)
    centroids = objectives.class_centroids(sums, counts, allow_missing=True)
    assert centroids[1].isnan().all() and centroids[[0, 2]].isfinite().all()
    assert objectives.conditional_mutual_information(logits, centroids, labels).isfinite()
    asked = objectives.conditional_mutual_information(
        logits, centroids, torch.tensor([0, 1, 2, -1])
    )
    assert asked.isnan()


def test_a_class_that_never_occurs_costs_no_more_than_the_floor() -> None:
    logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    value = objectives.conditional_mutual_information(
        logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0])
    )
    value.backward()
    assert value.item() == pytest.approx(40 - math.log(2)) and logits.grad.isfinite().all()


def test_mixed_labels_and_wrong_centroids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and soft labels \(2, 3\)"):
        objectives.conditional_mutual_information(torch.randn(2, 3), torch.eye(3), torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\) and centroids \(4, 4\)"):
        objectives.conditional_mutual_information(
            torch.randn(2, 3), torch.eye(4), torch.tensor([0, 1])
        )
    with pytest.raises(ValueError, match=r"sums have shape \(3, 2\) and counts \(3,\)"):
        objectives.class_centroids(torch.ones(3, 2), torch.ones(3))


def test_a_small_weight_makes_the_predictions_of_a_class_spread() -> None:
    torch.manual_seed(0)
    logits = F.one_hot(torch.arange(12) % 3, 3).double() * 4 + 0.3 * torch.randn(12, 3).double()
    labels = torch.arange(12) % 3
    centroids = objectives.class_centroids(*objectives.class_sums(logits, labels))
    logits.requires_grad_()
    before = objectives.conditional_mutual_information(logits, centroids, labels)
    (gradient,) = torch.autograd.grad(-before, logits)
    after = objectives.conditional_mutual_information(logits - 0.1 * gradient, centroids, labels)
    assert after > before
