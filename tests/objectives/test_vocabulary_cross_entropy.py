"""The cross-entropy from hidden states equals that of the logits, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from understudy.objectives import Head, vocabulary_cross_entropy

TOKENS, WIDTH, WORDS = 11, 6, 13


@pytest.mark.parametrize("chunk", [1, 4, None])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equals_the_plain_formula(chunk: int | None, reduction: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(WORDS, WIDTH, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(WORDS, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(WORDS - 1, (TOKENS,))
    labels[3] = -100
    weight = torch.rand(TOKENS, dtype=torch.float64)
    weight[5] = 0
    head = Head(matrix, bias, scale=0.7, soft_cap=3.0, vocabulary=WORDS - 1)

    plain = functional.cross_entropy(head.logits(hidden), labels, reduction="none") * weight
    plain = {"mean": plain.sum() / weight.sum(), "sum": plain.sum(), "none": plain}[reduction]
    found = vocabulary_cross_entropy(
        hidden, head, labels, weight=weight, reduction=reduction, chunk=chunk
    )
    assert torch.allclose(found, plain, rtol=1e-10)
    upstream = torch.randn_like(plain)
    inputs = (hidden, matrix, bias)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, upstream),
        torch.autograd.grad(plain, inputs, upstream),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_label_out_of_range_is_named() -> None:
    head = Head(torch.randn(5, 3))
    with pytest.raises(ValueError, match="labels hold 5"):
        vocabulary_cross_entropy(torch.randn(2, 3), head, torch.tensor([1, 5]))
