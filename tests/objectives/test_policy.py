"""Estimators of a divergence and GRPO with a teacher, against closed forms and their own laws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden" / "kdrl"


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    cases = json.loads((GOLDEN / "cases.json").read_text())["cases"]
    (case,) = (case for case in cases if case["case"] == name)
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}, case["tolerance"]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("name", ["estimators_v5", "estimators_equal"])
def test_estimators_are_the_closed_forms(name: str, estimator: str) -> None:
    case, tolerance = golden(name)
    logits = case["student_logits"].clone().requires_grad_()
    tokens = torch.arange(len(logits))
    student, teacher = (
        objectives.token_log_probabilities(each.expand(len(logits), -1), tokens)
        for each in (logits, case["teacher_logits"])
    )
    torch.testing.assert_close(
        objectives.log_ratio(student, teacher).detach(), case["log_ratio"], **tolerance
    )
    each = objectives.sampled_kl(student, teacher, estimator=estimator, reduction="none")
    torch.testing.assert_close(each.detach(), case[estimator], **tolerance)
    rows = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in each]
    torch.testing.assert_close(torch.stack(rows), case[f"grad_{estimator}"], **tolerance)
    expected = case["student_probs"] @ torch.stack(rows)
    exact = {
        "k1": torch.zeros_like(expected),
        "k2": case["grad_reverse_kl"],
        "k3": case["grad_forward_kl"],
    }
    torch.testing.assert_close(expected, exact[estimator], rtol=1e-10, atol=1e-12)
    if estimator != "k2":
        value = case["student_probs"] @ each.detach()
        torch.testing.assert_close(value, case["reverse_kl"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("level", ["none", "response", "group"])
def test_kdrl_is_the_joint_objective(level: str) -> None:
    case, tolerance = golden("objective_small")
    logits = case["student_logits"].clone().requires_grad_()
    student = objectives.token_log_probabilities(logits, case["token_ids"])
    teacher = objectives.token_log_probabilities(case["teacher_logits"], case["token_ids"])
    advantages = objectives.group_advantages(case["reward"])
    torch.testing.assert_close(advantages, case["advantage"], **tolerance)
    distilled = objectives.reward_guided_mask(case["reward"], level)
    mask = case["token_mask"]
    loss = objectives.kdrl(
        student, teacher, advantages, beta=0.002, distilled=distilled, weight=mask
    )
    torch.testing.assert_close(loss.detach(), case[f"loss_{level}"], **tolerance)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, case[f"grad_{level}"], **tolerance)
    kd = objectives.sampled_kl(student, teacher, weight=mask, reduction="none")
    kd = (kd * distilled[..., None]).sum() / mask.sum()
    torch.testing.assert_close(kd.detach(), case[f"kd_{level}"], **tolerance)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -torch.rand(shape, generator=generator, dtype=torch.float64) - 0.1


def test_without_beta_it_is_grpo_and_the_teacher_is_not_read() -> None:
    student, old, advantages = draw(3, 4), draw(3, 4, seed=1), draw(3, seed=2) + 0.6
    teacher = torch.full_like(student, torch.nan)
    found = objectives.kdrl(student, teacher, advantages, beta=0.0, old=old)
    assert torch.equal(found, objectives.clipped_policy(student, advantages, old=old))


def test_equal_rewards_leave_only_distillation() -> None:
    student, teacher = draw(3, 4), draw(3, 4, seed=1)
    advantages = objectives.group_advantages(torch.full((3,), 0.1))
    assert torch.equal(advantages, torch.zeros(3))
    found = objectives.kdrl(student, teacher, advantages, beta=0.5)
    torch.testing.assert_close(found, 0.5 * objectives.sampled_kl(student, teacher))


def test_deviation_of_a_sample_is_larger() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]])
    population = objectives.group_advantages(rewards)
    torch.testing.assert_close(population.square().mean(), torch.tensor(1.0))
    sample = objectives.group_advantages(rewards, deviation="sample")
    torch.testing.assert_close(population, sample * math.sqrt(5 / 4))
    assert objectives.group_advantages(torch.ones(2, 1), deviation="sample").tolist() == [[0], [0]]


def test_divergence_in_the_reward_has_the_gradient_of_k2_at_ratio_1() -> None:
    teacher, advantages = draw(3, 4, seed=1), draw(3, seed=2) + 0.6
    distilled = torch.tensor([1.0, 0.0, 1.0])
    gradients = []
    for in_reward in (True, False):
        student = draw(3, 4).requires_grad_()
        if in_reward:
            total = objectives.distilled_advantages(
                student, teacher, advantages, beta=0.3, distilled=distilled
            )
            assert not total.requires_grad
            loss = objectives.clipped_policy(student, total)
        else:
            loss = objectives.kdrl(student, teacher, advantages, beta=0.3, distilled=distilled)
        gradients.append(torch.autograd.grad(loss, student)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("k", [None, 5])
def test_the_exact_divergence_has_the_expected_gradient_of_the_drawn_one(k: int | None) -> None:
    """One position, all tokens that may be drawn, each with its probability; k = 5 are all of them."""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    tokens = torch.arange(5)
    advantages = torch.randn(5, 1, generator=generator, dtype=torch.float64)
    student, theirs = (
        objectives.token_log_probabilities(each.expand(5, 5), tokens)[:, None]
        for each in (logits, teacher)
    )
    q = student.detach().exp()
    drawn = (q * objectives.kdrl(student, theirs, advantages, beta=0.7, reduction="none")).sum()
    policy = (q * objectives.clipped_policy(student, advantages, reduction="none")).sum()
    if k is None:
        exact = objectives.reverse_kl(logits, teacher)
    else:
        exact = objectives.top_k_divergence(logits, *teacher.log_softmax(-1).topk(k))
    torch.testing.assert_close(
        torch.autograd.grad(drawn, logits, retain_graph=True),
        torch.autograd.grad(policy + 0.7 * exact, logits),
    )


def test_one_hook_serves_its_relatives() -> None:
    """Published mixtures of reward and teacher are masks of the two (c: right, d: the teacher's log-ratio)."""
    student, teacher, rewards = (
        draw(2, 3, 4),
        draw(2, 3, 4, seed=1),
        torch.tensor([[1, 0, 0], [0, 0, 0]]),
    )
    advantages, d = draw(2, 3, seed=2), (teacher - student)
    right = rewards.double()

    def mixed(reward: torch.Tensor, beta: float, distilled: torch.Tensor | None) -> torch.Tensor:
        return objectives.distilled_advantages(
            student, teacher, reward, beta=beta, distilled=distilled
        )

    a, c = advantages[..., None], right[..., None]
    wrong = objectives.reward_guided_mask(rewards)
    torch.testing.assert_close(mixed(advantages, 0.2, None), a + 0.2 * d)  # KDRL
    torch.testing.assert_close(mixed(advantages, 0.2, wrong), a + (1 - c) * 0.2 * d)  # masked
    hard = objectives.reward_guided_mask(rewards, "group")
    nobody = torch.tensor([[[0.0]], [[1.0]]]).double()
    torch.testing.assert_close(mixed(advantages, 0.2, hard), a + nobody * 0.2 * d)  # HDPO
    torch.testing.assert_close(mixed(right * advantages, 1.0, wrong), c * a + (1 - c) * d)  # SRPO
    torch.testing.assert_close(mixed(0 * advantages, 1.0, None), d)  # distillation alone


def test_clipping_stops_what_already_paid() -> None:
    old = torch.zeros(4, dtype=torch.float64)
    student = torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    loss = objectives.clipped_policy(student, advantages, old=old, reduction="none")
    torch.testing.assert_close(loss.detach(), torch.tensor([-1.2, -0.5, 1.5, 0.8]).double())
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -0.5, 1.5, 0.0]).double())
    far = torch.full((4,), 1e4, requires_grad=True)
    loss = objectives.clipped_policy(far, advantages, old=torch.zeros(4))
    assert loss.isfinite() and torch.autograd.grad(loss, far)[0].isfinite().all()


def test_a_token_that_the_teacher_rules_out_is_infinite_limited_or_masked() -> None:
    student = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    teacher = torch.tensor([[-1.5, -torch.inf]])
    assert objectives.sampled_kl(student, teacher).isinf()
    limited = objectives.sampled_kl(student, teacher, limit=20.0, reduction="none")
    torch.testing.assert_close(limited.detach(), torch.tensor([[0.125, 200.0]]))
    (gradient,) = torch.autograd.grad(limited.sum(), student)
    torch.testing.assert_close(gradient, torch.tensor([[0.5, 20.0]]))
    masked = objectives.sampled_kl(student, teacher, weight=torch.tensor([[1, 0]]))
    torch.testing.assert_close(masked.detach(), torch.tensor(0.125))
    for distilled in (torch.tensor([0.0]), torch.tensor([[1.0, 0.0]])):
        joint = objectives.kdrl(student, teacher, torch.ones(1), distilled=distilled)
        assert torch.autograd.grad(joint, student)[0].isfinite().all() and joint.isfinite()
    raised = objectives.distilled_advantages(
        student, teacher, torch.ones(1), beta=0.5, limit=4.0, weight=torch.ones(1, 2)
    )
    torch.testing.assert_close(raised, torch.tensor([[0.75, -1.0]]))


def test_k3_goes_on_along_its_tangent() -> None:
    student = torch.tensor([-60.0, -75.0, -1e4], requires_grad=True)
    each = objectives.sampled_kl(student, torch.zeros(3), estimator="k3", reduction="none")
    slope = math.expm1(70.0)
    expected = torch.tensor([math.expm1(60.0) - 60, slope - 70 + 5 * slope, slope * 9931 - 70])
    torch.testing.assert_close(each.detach(), expected)
    (gradient,) = torch.autograd.grad(each.sum(), student)
    torch.testing.assert_close(gradient, -torch.tensor([math.expm1(60.0), slope, slope]))


def test_masks_follow_correctness() -> None:
    correct = torch.tensor([[1, 0, 0], [0, 0, 0]])
    assert objectives.reward_guided_mask(correct, "none").tolist() == [[1, 1, 1], [1, 1, 1]]
    assert objectives.reward_guided_mask(correct).tolist() == [[0, 1, 1], [1, 1, 1]]
    assert objectives.reward_guided_mask(correct, "group").tolist() == [[0, 0, 0], [1, 1, 1]]


def test_coefficient_falls_to_its_floor() -> None:
    settings = {"start": 5e-3, "decrement": 5e-5, "floor": 1e-3}
    found = [objectives.annealed_coefficient(step, **settings) for step in (0, 40, 80, 81, 280)]
    assert found == pytest.approx([5e-3, 3e-3, 1e-3, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: objectives.group_advantages(torch.ones(2, 0)), r"\(2, 0\)"),
        (lambda: objectives.group_advantages(torch.ones(2), deviation="x"), "deviation is 'x'"),
        (lambda: objectives.reward_guided_mask(torch.ones(2), "x"), "level is 'x'"),
        (lambda: objectives.sampled_kl(draw(2), draw(2), estimator="k4"), "estimator is 'k4'"),
        (lambda: objectives.sampled_kl(draw(2), draw(2), limit=0.0), "limit is 0.0"),
        (lambda: objectives.kdrl(draw(2, 3), draw(2, 3), draw(3)), r"\(3,\).*\(2, 3\)"),
        (lambda: objectives.kdrl(draw(2, 3), draw(2, 3), draw(2), beta=-1.0), "beta is -1.0"),
        (lambda: objectives.kdrl(draw(2, 3), draw(2, 4), draw(2), beta=0.0), r"\(2, 4\)"),
        (lambda: objectives.clipped_policy(draw(2), draw(2), clip=0.0), "clip is 0.0"),
        (lambda: objectives.clipped_policy(draw(2), draw(2), clip=1.0), "clip is 1.0"),
        (lambda: objectives.clipped_policy(draw(2), draw(2), old=draw(3)), r"\(2,\).*\(3,\)"),
        (
            lambda: objectives.token_log_probabilities(draw(2, 3, 5), torch.ones(2, 4).long()),
            r"\(2, 3, 5\).*\(2, 4\)",
        ),
        (
            lambda: objectives.annealed_coefficient(-1, start=1.0, decrement=0.0, floor=0.0),
            "step is -1",
        ),
        (
            lambda: objectives.annealed_coefficient(1, start=1.0, decrement=0.1, floor=2.0),
            "floor is 2.0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=words):
        call()
