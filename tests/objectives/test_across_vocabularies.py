"""Distillation across vocabularies against the authors' code, plain loops and its own laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden" / "llm_surveys"


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_uld_is_that_of_the_authors() -> None:
    with np.load(GOLDEN / "uld_cross_tokenizer_original.npz", allow_pickle=False) as arrays:
        case = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    logits = case["student_logits"].clone().requires_grad_()
    length = min(logits.shape[1], case["teacher_logits"].shape[1])
    ours = objectives.aligned_answers(logits, case["student_labels"], length=length)
    theirs = objectives.aligned_answers(
        case["teacher_logits"], case["teacher_labels"], length=length
    )
    loss = objectives.uld(
        ours.logits, theirs.logits, weight=objectives.sequence_weights(ours.mask & theirs.mask)
    )
    torch.testing.assert_close(loss.detach(), case["loss"].double(), rtol=1e-6, atol=1e-8)
    (gradient,) = torch.autograd.grad(loss, logits)
    # Their loss passes through float32.
    torch.testing.assert_close(gradient, case["grad_student_logits"], rtol=1e-6, atol=1e-8)


def test_uld_sees_no_order_and_no_missing_tokens() -> None:
    teacher = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    assert objectives.uld(teacher[..., order], teacher).item() == pytest.approx(0, abs=1e-6)
    small = torch.tensor([[[0.0, 0.0]]])
    large = torch.zeros(1, 1, 4)
    assert objectives.uld(small, large).item() == pytest.approx(1.0)
    assert objectives.uld(large, small).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"\(1, 1, 2\).*\(2, 3, 7\)"):
        objectives.uld(small, teacher)


# Where answers and tokens lie


def test_answers_begin_at_the_first_place() -> None:
    logits = torch.arange(24.0).reshape(3, 4, 2)
    labels = torch.tensor([[-100, -100, 5, 6], [7, 8, -100, -100], [-100, -100, -100, -100]])
    found = objectives.aligned_answers(logits, labels)
    assert found.tokens.tolist() == [[5, 6, 0, 0], [7, 8, 0, 0], [0, 0, 0, 0]]
    # Nothing predicts the very first token of a sequence.
    assert found.mask.int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(found.logits[0, :2], logits[0, 1:3])
    assert torch.equal(found.logits[1, 1], logits[1, 0])
    shifted = objectives.aligned_answers(logits, labels, length=2, predicting=False)
    assert shifted.mask.int().tolist() == [[1, 1], [1, 1], [0, 0]]
    assert torch.equal(shifted.logits[0], logits[0, 2:])
    assert torch.equal(shifted.logits[1], logits[1, :2])


def test_spans_end_where_tokens_of_both_do() -> None:
    # "under|stand|ing|!" and "un|derst|anding|!", and an end of sequence of the teacher alone.
    ours, theirs = objectives.common_spans([5, 10, 13, 14], [2, 7, 13, 14, 14])
    assert ours == [0, 0, 0, 1] and theirs == [0, 0, 0, 1, -1]
    # Both have one.
    assert objectives.common_spans([3, 3], [1, 3, 3]) == ([0, 1], [0, 0, 1])
    # A text that was cut short on one side.
    assert objectives.common_spans([2, 4], [2, 3]) == ([0, -1], [0, -1])
    assert objectives.common_spans([], [1]) == ([], [-1])


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=12),
    st.lists(st.integers(1, 4), min_size=1, max_size=12),
)
def test_spans_of_both_hold_the_same_text(first: list[int], second: list[int]) -> None:
    ends = [list(np.cumsum(lengths)) for lengths in (first, second)]
    groups = objectives.common_spans(*ends)
    common = sorted(set(ends[0]) & set(ends[1]))
    for numbers, places in zip(groups, ends, strict=True):
        last = {number: end for number, end in zip(numbers, places, strict=True) if number >= 0}
        assert [last[number] for number in sorted(last)] == common
        assert [number for number in numbers if number >= 0] == sorted(
            number for number in numbers if number >= 0
        )


GROUPS = torch.tensor([[0, 0, 0, 1, -1], [0, 1, 1, -1, -1]])


@pytest.mark.parametrize("merge", ["observed", "bayesian"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_spans_equal_the_loop(merge: str, temperature: float) -> None:
    logits = draw(2, 5, 4).requires_grad_()
    tokens = torch.tensor([[0, 3, 2, 1, 0], [2, 2, 0, 0, 0]])
    found = objectives.spans(logits, tokens, GROUPS, count=3, merge=merge, temperature=temperature)
    assert found.mask.int().tolist() == [[1, 1, 0], [1, 1, 0]]
    p = (logits / temperature).softmax(-1)
    for row in range(2):
        for span in range(2):
            places = (GROUPS[row] == span).nonzero().flatten().tolist()
            stands = places[0 if merge == "observed" else -1]
            others = [at for at in places if at != stands]
            product = torch.ones((), dtype=torch.float64)
            for at in others:
                product = product * p[row, at, tokens[row, at]]
            whole = p[row, stands] * product
            ours = (found.logits[row, span] / temperature).softmax(-1) * found.rest[row, span].exp()
            torch.testing.assert_close(ours, whole)
            # The span itself has its true probability.
            true = torch.stack([p[row, at, tokens[row, at]] for at in places]).prod()
            torch.testing.assert_close(ours[tokens[row, stands]], true)
    (gradient,) = torch.autograd.grad(found.rest.sum(), logits)
    assert (gradient[0, 4] == 0).all() and (gradient[0, 1] != 0).any()


# GOLD


def plain_gold(
    q: torch.Tensor, p: torch.Tensor, shared: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both parts of one token from probabilities."""
    ours, theirs = q[shared[:, 0]], p[shared[:, 1]]
    m = beta * theirs + (1 - beta) * ours
    alike = (
        beta * (theirs * (theirs / m).log()).sum() + (1 - beta) * (ours * (ours / m).log()).sum()
    )
    rest = []
    for each, taken in ((q, shared[:, 0]), (p, shared[:, 1])):
        left = [at for at in range(len(each)) if at not in taken.tolist()]
        rest.append(each[left].sort(descending=True).values)
    size = max(map(len, rest))
    padded = [torch.cat([each, each.new_zeros(size - len(each))]) for each in rest]
    return alike, (padded[0] - padded[1]).abs().sum()


@pytest.mark.parametrize("beta", [0.5, 0.2])
def test_gold_equals_the_plain_formula(beta: float) -> None:
    student, teacher = draw(2, 3, 6).requires_grad_(), draw(2, 3, 9, seed=1)
    ours, theirs = -draw(2, 3, seed=2).abs(), -draw(2, 3, seed=3).abs()
    shared = torch.tensor([[0, 3], [4, 1], [5, 8]])
    q = (student / 2).softmax(-1) * ours.exp()[..., None]
    p = (teacher / 2).softmax(-1) * theirs.exp()[..., None]
    parts = [plain_gold(q[i, t], p[i, t], shared, beta) for i in range(2) for t in range(3)]
    alike, others = (torch.stack(each).reshape(2, 3) for each in zip(*parts, strict=True))
    mask = torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    for matched, unmatched, weights in (
        (None, None, (1 / 3, 2 / 3)),
        (0.6, 0.4, (0.6, 0.4)),
        (1.0, 0.0, (1.0, 0.0)),
    ):
        found = objectives.gold(
            student,
            teacher,
            shared,
            student_rest=ours,
            teacher_rest=theirs,
            beta=beta,
            matched=matched,
            unmatched=unmatched,
            temperature=2.0,
            weight=mask,
        )
        each = weights[0] * alike + weights[1] * others
        expected = (mask * each).sum() / mask.sum()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, student),
            torch.autograd.grad(expected, student, retain_graph=True),
        )


def test_gold_at_its_ends() -> None:
    student, teacher = draw(2, 3, 6), draw(2, 3, 6, seed=1)
    nothing, everything = torch.zeros(0, 2).long(), torch.arange(6)[:, None].expand(6, 2)
    torch.testing.assert_close(
        objectives.gold(student, teacher, nothing), objectives.uld(student, teacher)
    )
    torch.testing.assert_close(
        objectives.gold(student, teacher, everything, beta=0.3),
        objectives.jensen_shannon(student, teacher, beta=0.3),
    )
    order = torch.tensor([2, 0, 1, 5, 4, 3])
    mapped = torch.stack([torch.arange(6), order], dim=1)
    assert objectives.gold(teacher[..., order], teacher, mapped) == pytest.approx(0, abs=1e-12)
    assert objectives.gold(student, teacher, mapped, reduction="none").min() > 0


def test_gold_of_spans_of_two_tokenizations() -> None:
    """One text, its tokens' true probabilities equal: only the counterfactual classes differ."""
    ours, theirs = objectives.common_spans([1, 2, 3], [2, 3])
    student, teacher = draw(1, 3, 5).requires_grad_(), draw(1, 2, 4, seed=1)
    sides = []
    for logits, groups in ((student, ours), (teacher, theirs)):
        tokens = torch.zeros(1, len(groups), dtype=torch.int64)
        sides.append(objectives.spans(logits, tokens, torch.tensor([groups]), count=2))
    loss = objectives.gold(
        sides[0].logits,
        sides[1].logits,
        torch.tensor([[1, 1], [2, 3]]),
        student_rest=sides[0].rest,
        teacher_rest=sides[1].rest,
        weight=sides[0].mask & sides[1].mask,
    )
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss > 0 and (gradient.abs().sum(-1) > 0).all()


def test_whatever_stands_at_padding_counts_nothing() -> None:
    student, teacher, rest = draw(2, 3, 6), draw(2, 3, 9, seed=1), -draw(2, 3, seed=2).abs()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    shared = torch.tensor([[0, 3], [4, 1]])

    def value() -> torch.Tensor:
        return objectives.gold(
            student, teacher, shared, student_rest=rest, teacher_rest=rest, weight=mask
        )

    clean = value()
    for tensor in (student, teacher, rest):
        tensor[mask == 0] = torch.nan
    student.requires_grad_()
    torch.testing.assert_close(value(), clean)
    assert torch.autograd.grad(value(), student)[0].isfinite().all()


LOGITS, TOKENS = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: objectives.aligned_answers(LOGITS, TOKENS[:, :2]), r"\(2, 3, 4\).*\(2, 2\)"),
        (lambda: objectives.aligned_answers(LOGITS, TOKENS, length=0), "length is 0"),
        (lambda: objectives.common_spans([1], [3, 2]), "teacher's token 1 ends at 2, .* 3"),
        (lambda: objectives.spans(LOGITS, TOKENS, TOKENS[:1], count=1), r"\(2, 3\).*\(1, 3\)"),
        (lambda: objectives.spans(LOGITS, TOKENS, TOKENS, count=1, merge="x"), "merge is 'x'"),
        (lambda: objectives.gold(LOGITS, LOGITS, TOKENS), r"shared has shape \(2, 3\)"),
        (lambda: objectives.gold(LOGITS, LOGITS, TOKENS[:, :2], beta=0.0), "beta is 0.0"),
        (
            lambda: objectives.gold(LOGITS, LOGITS, TOKENS[:, :2], student_rest=torch.ones(2)),
            r"\(2, 3, 4\) and the rest \(2,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=words):
        call()
