"""The three losses of the study of fidelity, MiniPLM's distillation and their means, against the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(system: str, name: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    cases = json.loads((GOLDEN / system / "cases.json").read_text())["cases"]
    (case,) = (case for case in cases if case["case"] == name)
    with np.load(GOLDEN / system / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}, case["tolerance"]


FORWARD = {
    "seqkd_T1": 1.0,
    "seqkd_T2": 2.0,
    "seqkd_T5": 5.0,
    "seqkd_large_logits_batch1": 1.0,
    "seqkd_vocab1": 2.0,
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_kl_of_the_study(name: str) -> None:
    case, tolerance = golden("fidelity", name)
    student = case["student_logits"].clone().requires_grad_()
    mask = case.get("pad_mask", torch.ones(student.shape[:2], dtype=torch.float64))
    weight = objectives.sequence_weights(mask)
    loss = objectives.forward_kl(
        student,
        case["teacher_logits"],
        temperature=FORWARD[name],
        epsilon=1e-9,
        weight=weight,
    )
    torch.testing.assert_close(loss.detach(), case["loss"], **tolerance)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, case["grad_student_logits"], **tolerance)
    # Without their epsilon it is the divergence itself, which differs by as little.
    exact = objectives.forward_kl(
        student, case["teacher_logits"], temperature=FORWARD[name], weight=weight
    )
    torch.testing.assert_close(exact, loss, rtol=0, atol=5e-6)


def test_gkd_of_the_study_has_the_shares_swapped() -> None:
    case, tolerance = golden("fidelity", "gkd_beta0.3_T2")
    student = case["student_logits"].clone().requires_grad_()
    loss = objectives.jensen_shannon(
        student,
        case["teacher_logits"],
        beta=0.3,
        crossed=True,
        temperature=2.0,
        weight=case["labels"] != -100,
    )
    # Theirs has no T^2.
    torch.testing.assert_close(loss.detach() / 4, case["loss"], **tolerance)
    (gradient,) = torch.autograd.grad(loss / 4, student)
    torch.testing.assert_close(gradient, case["grad_student_logits"], **tolerance)


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = 2 * torch.randn(
        2, 2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return student.requires_grad_(), teacher


def test_epsilon_is_that_of_the_formula() -> None:
    student, teacher = draw()
    q, p = (student / 2).softmax(-1), (teacher / 2).softmax(-1)
    forward = 4 * ((p + 0.1) * ((p + 0.1).log() - q.log())).sum(-1).mean()
    reverse = 4 * ((q + 0.1) * (q.log() - p.log())).sum(-1).mean()
    for objective, expected in (
        (objectives.forward_kl, forward),
        (objectives.reverse_kl, reverse),
    ):
        found = objective(student, teacher, temperature=2.0, epsilon=0.1)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, student),
            torch.autograd.grad(expected, student, retain_graph=True),
        )


def test_a_crossed_mixture() -> None:
    student, teacher = draw()
    q, p = student.softmax(-1), teacher.softmax(-1)
    for beta in (0.2, 0.5, 0.9):
        m = (1 - beta) * p + beta * q
        expected = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
        found = objectives.jensen_shannon(
            student, teacher, beta=beta, crossed=True, reduction="none"
        )
        torch.testing.assert_close(found, expected)
    # Without exceptions at the ends, these are the two divergences the other way round.
    for beta, plain in ((0.0, objectives.reverse_kl), (1.0, objectives.forward_kl)):
        found = objectives.jensen_shannon(student, teacher, beta=beta, crossed=True)
        torch.testing.assert_close(found, plain(student, teacher))
    with pytest.raises(ValueError, match="crossed"):
        objectives.jensen_shannon(student, teacher, crossed=True, normalised=True)


def test_gradient_and_limit_of_forward_kl() -> None:
    student, teacher = draw()
    loss = objectives.forward_kl(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, (student.softmax(-1) - teacher.softmax(-1)).detach() / 6)
    hot = objectives.forward_kl(student, teacher, temperature=1e4)
    gap = student - teacher
    centred = gap - gap.mean(-1, keepdim=True)
    torch.testing.assert_close(hot, (centred.square().sum(-1) / 5 / 2).mean(), rtol=1e-3, atol=0)


def test_every_sequence_counts_the_same() -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 1]])
    weight = objectives.sequence_weights(mask)
    assert weight.tolist() == [[0, 0.5, 0.5], [0, 0, 0], [0, 0, 1]]
    losses = torch.tensor([[torch.nan, 1.0, 2.0], [torch.nan, 9.0, 9.0], [torch.nan, 9.0, 5.0]])
    logits = torch.stack([losses, torch.zeros_like(losses)], dim=-1)
    each = objectives.forward_kl(logits, torch.zeros_like(logits), reduction="none")
    found = objectives.forward_kl(logits, torch.zeros_like(logits), weight=weight)
    torch.testing.assert_close(found, (each[0, 1:].mean() + each[2, 2]) / 2)
    with pytest.raises(ValueError, match=r"shape \(\)"):
        objectives.sequence_weights(torch.tensor(1.0))


def test_distillation_beside_pretraining_of_miniplm() -> None:
    case, tolerance = golden("miniplm", "vanilla_kd_large_logits_batch1")
    student = case["student_logits"].clone().requires_grad_()
    weight = objectives.sequence_weights(case["loss_mask"])
    supervised = objectives.cross_entropy(
        student.flatten(0, 1), case["labels"].flatten(), weight=weight.flatten()
    )
    arguments = (student, case["teacher_logits"])
    cross = objectives.soft_cross_entropy(*arguments, temperature=1.0, weight=weight)
    loss = 0.5 * supervised + 0.5 * cross
    for found, name in ((loss, "loss"), (supervised, "lm_loss"), (cross, "kd_loss")):
        torch.testing.assert_close(found.detach(), case[name].double(), **tolerance)
    (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
    torch.testing.assert_close(gradient, case["grad_student_logits"], **tolerance)
    # What they call distillation is above the divergence by the teacher's entropy.
    divergence = objectives.forward_kl(*arguments, weight=weight)
    torch.testing.assert_close(
        (cross - divergence).detach(), case["kd_entropy"].double(), **tolerance
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_loss_of_ddk_is_a_sum_of_two(direction: str, temperature: float) -> None:
    """Labels and 0.2 times a divergence of whole distributions, without T^2, mean over tokens."""
    student, teacher = draw()
    labels = torch.tensor([[0, 4, -1], [2, 2, 1]])
    log_q, log_p = ((each / temperature).log_softmax(-1) for each in (student, teacher))
    first, second = (log_p, log_q) if direction == "forward" else (log_q, log_p)
    divergence = (first.exp() * (first - second)).sum(-1)
    mask = labels >= 0
    nll = -student.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
    expected = (nll + 0.2 * divergence)[mask].mean()
    objective = objectives.forward_kl if direction == "forward" else objectives.reverse_kl
    found = objectives.cross_entropy(student.flatten(0, 1), labels.flatten()) + (
        0.2 / temperature**2
    ) * objective(student, teacher, temperature=temperature, weight=mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, student, retain_graph=True),
        torch.autograd.grad(expected, student),
    )


def test_hidden_states_of_mapped_layers() -> None:
    """DistillKit's losses: of each pair of layers, over real tokens (and the width), then the mean over pairs."""
    generator = torch.Generator().manual_seed(0)
    layers = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64, generator=generator)
    student, teacher = layers[0].requires_grad_(), layers[1]
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    pairs = [(0, 0), (2, 1)]
    squared = [((student[i] - teacher[j]).square() * mask[..., None]).sum() / 20 for i, j in pairs]
    cosines = [
        ((1 - torch.cosine_similarity(student[i], teacher[j], dim=-1)) * mask).sum() / 4
        for i, j in pairs
    ]
    for objective, expected in ((objectives.mse, squared), (objectives.cosine, cosines)):
        found = [objective(student[i], teacher[j], weight=mask) for i, j in pairs]
        torch.testing.assert_close(sum(found) / 2, sum(expected) / 2)
        torch.testing.assert_close(
            torch.autograd.grad(sum(found), student),
            torch.autograd.grad(sum(expected), student, retain_graph=True),
        )
