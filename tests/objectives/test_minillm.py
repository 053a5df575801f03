"""Returns, whitening, importance and loss of MiniLLM against published code, plain loops and their own laws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden" / "llm_surveys"


@pytest.mark.parametrize(
    ("name", "gamma", "length"),
    [
        ("adv_g0.0_norm", 0.0, "discounted"),
        ("adv_g0.9_norm", 0.9, "discounted"),
        ("adv_g0.9_sum", 0.9, "none"),
        ("adv_g1.0_norm", 1.0, "discounted"),
    ],
)
def test_advantages_are_those_of_trl(name: str, gamma: float, length: str) -> None:
    cases = json.loads((GOLDEN / "cases.json").read_text())["cases"]
    (tolerance,) = (case["tolerance"] for case in cases if case["case"] == "trl_minillm_advantage")
    with np.load(GOLDEN / "trl_minillm_advantage.npz", allow_pickle=False) as arrays:
        case = {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    def advantages(official: bool) -> torch.Tensor:
        return objectives.minillm_advantages(
            case["student_logp"],
            case["teacher_logp"],
            gamma=gamma,
            length=length,
            scale=1.0,
            limit=None,
            whiten=False,
            weight=case["mask"],
            official=official,
        )

    torch.testing.assert_close(advantages(True), case[name], **tolerance)
    # By default padding counts 0 instead of 1e-4, and a sum begins anew at each token.
    ours = advantages(False)
    if length == "none":
        ours = ours * gamma ** torch.arange(5)
        torch.testing.assert_close(ours, case[name], **tolerance)
    else:
        torch.testing.assert_close(ours, case[name], rtol=1e-3, atol=1e-4)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("length", ["tokens", "discounted", "none"])
@pytest.mark.parametrize("own", [True, False])
def test_returns_equal_the_loop(gamma: float, length: str, own: bool) -> None:
    rewards = draw(3, 7)
    expected = torch.zeros_like(rewards)
    for row in range(3):
        last = int(MASK[row].sum())
        for t in range(last if own else last - 1):
            begin = t if own else t + 1
            ahead = range(begin, last)
            total = sum(gamma ** (i - begin) * rewards[row, i] for i in ahead)
            sizes = {
                "tokens": last - begin,
                "discounted": sum(gamma ** (i - begin) for i in ahead),
                "none": 1,
            }
            expected[row, t] = total / sizes[length]
    rewards[MASK == 0] = torch.nan
    found = objectives.returns_to_go(rewards, gamma=gamma, length=length, own=own, weight=MASK)
    torch.testing.assert_close(found, expected)
    whole = objectives.returns_to_go(rewards[0], gamma=gamma, length=length, own=own)
    torch.testing.assert_close(whole, expected[0])


def test_the_authors_returns_take_padding_as_it_is() -> None:
    rewards = draw(2, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    found = objectives.returns_to_go(rewards, gamma=0.5, weight=mask, official=True)
    sums = [
        sum(0.5 ** (i - t) * rewards[0, i] for i in range(t, 4)) / size
        for t, size in enumerate((2, 1, 1, 1))
    ]
    torch.testing.assert_close(found[0], torch.stack(sums))  # type: ignore[arg-type]


def test_whitening_runs_over_valid_tokens() -> None:
    values = draw(3, 7)
    values[MASK == 0] = torch.nan
    found = objectives.whitened(values, MASK)
    valid = values[MASK == 1]
    torch.testing.assert_close(
        found[MASK == 1], (valid - valid.mean()) / (valid.var() + 1e-8).sqrt()
    )
    assert (found[MASK == 0] == 0).all()
    assert torch.equal(objectives.whitened(torch.ones(1, 1)), torch.zeros(1, 1))
    assert torch.equal(objectives.whitened(values, 0 * MASK), torch.zeros(3, 7).double())


def test_the_authors_whiten_over_padding_too() -> None:
    values = draw(3, 7).masked_fill(MASK == 0, 0.0)
    variance, mean = torch.var_mean(values)
    expected = (values - mean) * torch.rsqrt(variance + 1e-8)
    torch.testing.assert_close(objectives.whitened(values, MASK, official=True), expected)
    assert not torch.allclose(objectives.whitened(values, MASK), expected)


def test_advantages_are_whitened_returns_of_limited_rewards() -> None:
    student, teacher = -draw(3, 7).abs(), -draw(3, 7, seed=1).abs()
    teacher[0, 0] = -torch.inf
    found = objectives.minillm_advantages(student, teacher, limit=3.0, weight=MASK)
    rewards = ((teacher - student) / 0.5).clamp(-3, 3)
    returns = objectives.returns_to_go(rewards, gamma=0.95, weight=MASK)
    torch.testing.assert_close(found, objectives.whitened(returns, MASK))
    assert not found.requires_grad and found.isfinite().all()


def test_importance_of_tokens_from_a_mixture() -> None:
    q, p, rollout = (draw(2, 3, seed=seed).sigmoid() for seed in range(3))
    found = objectives.teacher_mixed_importance(q.log(), p.log(), rollout.log(), share=0.3)
    torch.testing.assert_close(found, q / (0.7 * rollout + 0.3 * p))
    same = objectives.teacher_mixed_importance(q.log(), p.log())
    torch.testing.assert_close(same, q / (0.8 * q + 0.2 * p))
    assert (same <= 1.25).all()
    alone = objectives.teacher_mixed_importance(q.log(), p.log(), share=0.0)
    torch.testing.assert_close(alone, torch.ones_like(q))
    impossible = objectives.teacher_mixed_importance(q.log(), torch.full_like(q, -torch.inf))
    torch.testing.assert_close(impossible, torch.full_like(q, 1.25))


def test_importance_makes_up_for_the_mixture() -> None:
    """The mean of w * A over what the mixture draws is the mean of A over what the student draws."""
    q, p = (draw(6, seed=seed).softmax(-1) for seed in (0, 1))
    w = objectives.teacher_mixed_importance(q.log(), p.log(), share=0.4)
    advantages = draw(6, seed=2)
    mixture = 0.6 * q + 0.4 * p
    torch.testing.assert_close((mixture * w * advantages).sum(), (q * advantages).sum())


def test_importance_multiplies_the_ratio_before_it_is_clipped() -> None:
    old = torch.zeros(4, dtype=torch.float64)
    student = torch.tensor([1.0, 1.0, 1.5, 0.9], dtype=torch.float64).log().requires_grad_()
    importance = torch.tensor([1.5, 0.5, 0.6, 1.0], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 2.0, 1.0], dtype=torch.float64)
    loss = objectives.clipped_policy(
        student, advantages, old=old, importance=importance, reduction="none"
    )
    torch.testing.assert_close(loss.detach(), torch.tensor([-1.2, 0.8, -1.8, -0.9]).double())
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, -1.8, -0.9]).double())
    masked = objectives.clipped_policy(
        student,
        advantages,
        old=old,
        importance=torch.tensor([1.5, torch.nan, 0.6, 1.0]),
        weight=torch.tensor([1, 0, 1, 1]),
    )
    torch.testing.assert_close(masked.detach(), torch.tensor(-(1.2 + 1.8 + 0.9) / 3).double())
    with pytest.raises(ValueError, match=r"importance weights have shape \(3,\)"):
        objectives.clipped_policy(student, advantages, importance=torch.ones(3))


def test_the_loss_is_the_sum_of_its_two_parts() -> None:
    student, teacher = draw(2, 3, 5).requires_grad_(), draw(2, 3, 5, seed=1)
    tokens = torch.tensor([[0, 4, 2], [1, 1, 3]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    advantages, importance = draw(2, 3, seed=2), draw(2, 3, seed=3).abs()
    log_q = student.log_softmax(-1)
    drawn = log_q.gather(-1, tokens[..., None]).squeeze(-1)
    old = drawn.detach() + 0.3 * draw(2, 3, seed=4)
    ratio = (drawn - old).exp() * importance
    policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
    exact = (log_q.exp() * (log_q - teacher.log_softmax(-1))).sum(-1)
    for share in (0.0, 0.5, 1.0):
        expected = ((policy + share * exact) * mask).sum() / 4
        found = objectives.minillm(
            student,
            teacher,
            tokens,
            advantages,
            old=old,
            importance=importance,
            exact=share,
            weight=mask,
        )
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, student),
            torch.autograd.grad(expected, student, retain_graph=True),
        )


def test_the_expected_gradient_is_that_of_the_reverse_divergence() -> None:
    """One token, all that may be drawn: policy gradient of the log-ratio and exact term have the same gradient."""
    logits, teacher = draw(6).requires_grad_(), draw(6, seed=1)
    tokens = torch.arange(6)
    student = logits.expand(6, 6)
    log_q = objectives.token_log_probabilities(student, tokens)
    log_p = objectives.token_log_probabilities(teacher.expand(6, 6), tokens)
    rewards = objectives.minillm_advantages(
        log_q[:, None], log_p[:, None], scale=1.0, limit=None, whiten=False
    )
    each = objectives.clipped_policy(log_q[:, None], rewards, reduction="none").squeeze(-1)
    (drawn,) = torch.autograd.grad((log_q.detach().exp() * each).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad(objectives.reverse_kl(logits, teacher), logits)
    torch.testing.assert_close(drawn, exact)


def test_what_stands_at_padding_counts_nothing() -> None:
    student, teacher = draw(2, 3, 5), draw(2, 3, 5, seed=1)
    tokens, mask = torch.tensor([[0, 4, 2], [1, 1, 3]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    advantages = draw(2, 3, seed=2)
    clean = objectives.minillm(student, teacher, tokens, advantages, weight=mask)
    padding = mask == 0
    student[padding], teacher[padding], advantages[padding] = torch.nan, torch.nan, torch.nan
    tokens[padding] = -100
    student.requires_grad_()
    found = objectives.minillm(student, teacher, tokens, advantages, weight=mask)
    torch.testing.assert_close(found, clean)
    (gradient,) = torch.autograd.grad(found, student)
    assert gradient.isfinite().all() and (gradient[padding] == 0).all()


def test_with_the_later_rewards_alone_nothing_is_counted_twice() -> None:
    """Two tokens, all that may be drawn: exact term and later returns together have the gradient of the divergence."""
    tables = [draw(3, seed=seed) for seed in range(2)]  # first token; second, given the first
    student = [tables[0].requires_grad_(), draw(3, 3, seed=2).requires_grad_()]
    teacher = [draw(3, seed=3), draw(3, 3, seed=4)]
    tokens = torch.cartesian_prod(torch.arange(3), torch.arange(3))

    def logits(of: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([of[0].expand(9, 3), of[1][tokens[:, 0]]], dim=1)

    log_q = objectives.token_log_probabilities(logits(student), tokens)
    log_p = objectives.token_log_probabilities(logits(teacher), tokens)
    q = log_q.sum(-1).exp()
    divergence = (q * (log_q - log_p).sum(-1)).sum()
    for own, holds in ((False, True), (True, False)):
        advantages = objectives.minillm_advantages(
            log_q, log_p, gamma=1.0, length="none", own=own, scale=1.0, limit=None, whiten=False
        )
        each = objectives.minillm(
            logits(student), logits(teacher), tokens, advantages, reduction="none"
        )
        drawn = (q.detach() * each.sum(-1)).sum()
        for ours, exact in zip(
            torch.autograd.grad(drawn, student, retain_graph=True),
            torch.autograd.grad(divergence, student, retain_graph=True),
            strict=True,
        ):
            assert torch.allclose(ours, exact) is holds


LOG = torch.log(torch.tensor([[0.5, 0.25]]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: objectives.returns_to_go(LOG, gamma=1.1), "gamma is 1.1"),
        (lambda: objectives.returns_to_go(LOG, length="words"), "length is 'words'"),
        (lambda: objectives.returns_to_go(LOG, weight=torch.ones(2)), r"\(2,\)"),
        (lambda: objectives.whitened(LOG, torch.ones(2)), r"\(2,\)"),
        (lambda: objectives.minillm_advantages(LOG, LOG, scale=0.0), "scale is 0.0"),
        (lambda: objectives.minillm_advantages(LOG, LOG, limit=-1.0), "limit -1.0"),
        (lambda: objectives.minillm_advantages(LOG, LOG[0]), r"\(1, 2\).*\(2,\)"),
        (lambda: objectives.teacher_mixed_importance(LOG, LOG, share=1.0), "share is 1.0"),
        (lambda: objectives.teacher_mixed_importance(LOG, LOG, LOG[0]), r"\(1, 2\).*\(2,\)"),
        (
            lambda: objectives.minillm(
                torch.ones(1, 2, 3), torch.ones(1, 2, 3), LOG.long(), LOG, exact=math.nan
            ),
            "exact is nan",
        ),
        (
            lambda: objectives.minillm(
                torch.ones(1, 2, 3), torch.ones(1, 2, 3), LOG.long(), LOG[0]
            ),
            r"\(1, 2, 3\) and advantages \(2,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=words):
        call()
