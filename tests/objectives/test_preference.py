"""Preferences and orders against published code, plain formulas and their own laws."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid, softplus

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden" / "llm_surveys"


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(found: torch.Tensor, expected: torch.Tensor, *inputs: torch.Tensor) -> None:
    """Compare values and gradients."""
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, retain_graph=True),
        torch.autograd.grad(expected, inputs, retain_graph=True),
    )


# Pairs of responses


def pair() -> tuple[torch.Tensor, ...]:
    """Return log-probabilities: student, teacher, and both of the rejected responses."""
    student, teacher, rejected, other = (draw(6, seed=seed) - 3 for seed in range(4))
    return student.requires_grad_(), teacher, rejected.requires_grad_(), other


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_forms_of_dpo_equal_the_plain_formulas(beta: float) -> None:
    student, teacher, rejected, other = pair()
    h = (student - teacher) - (rejected - other)
    plain = {
        "sigmoid": -logsigmoid(beta * h),
        "ipo": (h - 1 / (2 * beta)) ** 2,
        "hinge": (1 - beta * h).clamp_min(0),
    }
    weight = draw(6, seed=5).abs()
    for form, each in plain.items():
        found = objectives.dpo(
            student, teacher, rejected, other, form=form, beta=beta, weight=weight
        )
        same(found, (weight * each).sum() / weight.sum(), student, rejected)
    smoothed = objectives.dpo(student, teacher, rejected, other, beta=beta, label_smoothing=0.2)
    expected = (-0.8 * logsigmoid(beta * h) - 0.2 * logsigmoid(-beta * h)).mean()
    same(smoothed, expected, student, rejected)


def test_dpo_at_the_reference_is_log_2_and_pulls_both_ways() -> None:
    student, _, rejected, _ = pair()
    loss = objectives.dpo(student, student.detach(), rejected, rejected.detach(), reduction="sum")
    torch.testing.assert_close(loss.detach(), torch.tensor(6 * math.log(2)).double())
    first, second = torch.autograd.grad(loss, (student, rejected))
    torch.testing.assert_close(first, torch.full((6,), -0.05).double())
    torch.testing.assert_close(second, torch.full((6,), 0.05).double())


def test_ipo_stops_at_a_finite_gap() -> None:
    zeros = torch.zeros(1)
    gap = torch.tensor([5.0], requires_grad=True)
    loss = objectives.dpo(gap, zeros, zeros, zeros, form="ipo", beta=0.1)
    assert loss == 0 and torch.autograd.grad(loss, gap)[0] == 0


def test_simpo_has_a_margin_and_no_reference() -> None:
    student, _, rejected, _ = pair()
    found = objectives.simpo(student, rejected, beta=2.5, margin=1.4)
    same(found, -logsigmoid(2.5 * (student - rejected) - 1.4).mean(), student, rejected)
    same(
        objectives.simpo(student, rejected, beta=1.0, margin=0.0),
        objectives.dpo(student, student * 0, rejected, student * 0, beta=1.0),
        student,
        rejected,
    )


def test_log_probabilities_of_responses() -> None:
    tokens = torch.tensor([[-1.0, -2.0, torch.nan], [-3.0, torch.nan, torch.nan], [torch.nan] * 3])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert objectives.sequence_log_probabilities(tokens, mask).tolist() == [-3, -3, 0]
    assert objectives.sequence_log_probabilities(tokens, mask, mean=True).tolist() == [-1.5, -3, 0]
    assert objectives.sequence_log_probabilities(tokens[:, 0]).isnan()
    assert objectives.sequence_log_probabilities(tokens[0, :2], mean=True) == -1.5


# Pairs at each token


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("form", ["sigmoid", "ipo", "hinge"])
def test_dpkd_is_dpo_at_every_token(form: str, reference: bool) -> None:
    student, teacher = draw(2, 3, 5).requires_grad_(), draw(2, 3, 5, seed=1)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    rows = []
    for i, t in itertools.product(range(2), range(3)):
        right, wrong = int(teacher[i, t].argmax()), int(student[i, t].argmax())
        ours = log_p[i, t] if reference else torch.zeros(5).double()
        rows.append([values[at] for at in (right, wrong) for values in (log_q[i, t], ours)])
    chosen, chosen_teacher, other, other_teacher = (
        torch.stack(column) for column in zip(*rows, strict=True)
    )
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = objectives.dpo(
        chosen, chosen_teacher, other, other_teacher, form=form, weight=mask.flatten()
    )
    found = objectives.dpkd(student, teacher, form=form, reference=reference, weight=mask)
    same(found, expected, student)


def test_dpkd_has_nothing_to_say_where_both_agree() -> None:
    teacher = draw(4, 6)
    student = (0.1 * teacher + 2).requires_grad_()
    loss = objectives.dpkd(student, teacher)
    torch.testing.assert_close(loss.detach(), torch.tensor(math.log(2)).double())
    assert (torch.autograd.grad(loss, student)[0] == 0).all()
    away = objectives.dpkd(-teacher, teacher, reduction="none")
    assert (away > math.log(2)).all()


# Orders


def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "distillkit_sparse.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.mark.parametrize(
    ("objective", "name"),
    [(objectives.top_k_hinge, "hinge"), (objectives.top_k_ranking, "ranking")],
)
def test_orders_of_top_k_are_those_of_distillkit(objective: object, name: str) -> None:
    assert callable(objective)
    case = golden()
    student = case["student_logits"].clone().requires_grad_()
    loss = objective(student, case["topk_logprobs"], case["topk_ids"], weight=case["mask"])
    torch.testing.assert_close(loss.detach(), case[name], rtol=5e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, case[f"grad_{name}"], rtol=5e-5, atol=1e-6)


def test_orders_equal_loops() -> None:
    student = draw(2, 5).requires_grad_()
    # The second token has two equal probabilities and an entry that is none.
    values = torch.tensor([[0.5, 0.3, 0.1], [0.4, 0.4, 0.0]], dtype=torch.float64).log()
    indices = torch.tensor([[4, 0, 2], [1, 3, 0]])
    q, p = student.softmax(-1), values.exp()
    for margin in (None, 0.3):
        rows = []
        for row in range(2):
            terms = [
                (
                    (p[row, k] - p[row, m] if margin is None else margin)
                    - (q[row, indices[row, k]] - q[row, indices[row, m]])
                ).clamp_min(0)
                for k, m in itertools.permutations(range(3), 2)
                if p[row, k] > p[row, m] > 0
            ]
            rows.append(sum(terms) / max(len(terms), 1) + 0 * student.sum())
        found = objectives.top_k_hinge(student, values, indices, margin=margin)
        same(found, torch.stack(rows).mean(), student)
    ordered = [student[0, [4, 0, 2]][list(two)] for two in ((0, 1), (0, 2), (1, 2))]
    expected = torch.stack([softplus(low - high) for high, low in ordered]).mean() / 2
    same(objectives.top_k_ranking(student, values, indices), expected, student)


def test_hinge_is_0_where_the_student_is_the_teacher() -> None:
    teacher = draw(3, 8)
    values, indices = teacher.log_softmax(-1).topk(4)
    assert objectives.top_k_hinge(teacher, values, indices) < 1e-12
    assert objectives.top_k_hinge(-teacher, values, indices) > 0.01
    # A margin on logits that are ordered as the teacher's are.
    assert objectives.top_k_ranking(1e4 * teacher, values, indices) < 1e-2


def test_rrhf_by_hand() -> None:
    scores = torch.tensor([[-1.0, -3.0, -2.0]], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([[0.1, 0.9, 0.5]])
    # Best is the second: (first - second) + (first - third) + (third - second), and 3 for the best one.
    found = objectives.rrhf(scores, rewards)
    torch.testing.assert_close(found.detach(), torch.tensor(2.0 + 1.0 + 1.0 + 3.0).double())
    (gradient,) = torch.autograd.grad(found, scores)
    assert gradient.tolist() == [[2.0, -3.0, 0.0]]
    assert objectives.rrhf(scores, rewards, likelihood=0.5).item() == pytest.approx(5.5)
    without = torch.tensor([[-torch.inf, 0.9, 0.5]])
    assert objectives.rrhf(scores, without).item() == pytest.approx(4.0)
    assert objectives.rrhf(scores, torch.ones(1, 3), likelihood=0.0) == 0


def test_plackett_luce_is_the_probability_of_the_order() -> None:
    scores = draw(2, 4).requires_grad_()
    rewards = torch.tensor([[0.2, 0.9, 0.1, 0.5], [4.0, 3.0, 2.0, 1.0]])
    total = torch.zeros(2).double()
    for row, order in enumerate(((1, 3, 0, 2), (0, 1, 2, 3))):
        left = scores[row].exp()
        for place, at in enumerate(order):
            rest = sum(left[other] for other in order[place:])
            total[row] = total[row] - (left[at] / rest).log()
    same(objectives.plackett_luce(scores, rewards), total.mean(), scores)
    # The probabilities of all orders sum to 1.
    every = sum(
        (-objectives.plackett_luce(scores[:1], -torch.tensor([order]).double())).exp()
        for order in itertools.permutations(range(4))
    )
    assert every.item() == pytest.approx(1.0)
    two = objectives.plackett_luce(scores[:, :2], torch.tensor([[1.0, 0.0]] * 2))
    torch.testing.assert_close(two, -logsigmoid(scores[:, 0] - scores[:, 1]).mean())


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: objectives.dpo(ONES, ONES, ONES, ONES, form="x"), "form is 'x'"),
        (lambda: objectives.dpo(ONES, ONES, ONES, ONES, beta=0.0), "beta is 0.0"),
        (
            lambda: objectives.dpo(ONES, ONES, ONES, ONES, label_smoothing=0.5),
            "label_smoothing is 0.5",
        ),
        (
            lambda: objectives.dpo(ONES, ONES, ONES, ONES, form="ipo", label_smoothing=0.1),
            "'ipo' has none",
        ),
        (lambda: objectives.dpo(ONES, ONES, ONES[0], ONES), r"\(2, 3\).*\(3,\)"),
        (lambda: objectives.simpo(ONES, ONES, margin=-1.0), "margin is -1.0"),
        (lambda: objectives.simpo(ONES, ONES, beta=-1.0), "beta is -1.0"),
        (lambda: objectives.dpkd(ONES, ONES, label_smoothing=-0.1), "label_smoothing is -0.1"),
        (lambda: objectives.rrhf(ONES, ONES, likelihood=-1.0), "likelihood is -1.0"),
        (lambda: objectives.rrhf(ONES, ONES[0]), r"\(2, 3\).*\(3,\)"),
        (lambda: objectives.plackett_luce(ONES, ONES[:, :2]), r"\(2, 3\).*\(2, 2\)"),
        (
            lambda: objectives.top_k_hinge(ONES, ONES[:, :2], torch.zeros(2, 1).long()),
            r"\(2, 3\).*\(2, 2\).*\(2, 1\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=words):
        call()
