"""Difference sampling against the authors' code and its own laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from understudy.data.selection import (
    Best,
    difference_scores,
    document_log_likelihoods,
    keep_random,
    keep_top,
)
from understudy.errors import DataError
from understudy.objectives import token_log_probabilities

GOLDEN = Path(__file__).parent.parent / "golden" / "miniplm"


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def test_scores_are_those_of_the_authors() -> None:
    case = golden("difference_scores")
    sums = []
    for who in ("teacher", "ref"):
        each = token_log_probabilities(case[f"{who}_logits"], case["labels"])
        likelihoods, tokens = document_log_likelihoods(each, case["loss_mask"])
        expected = case[f"{who}_nll"].double()
        torch.testing.assert_close(-likelihoods / tokens, expected, rtol=1e-5, atol=1e-6)
        sums.append(likelihoods)
    scores = difference_scores(*sums, tokens)
    torch.testing.assert_close(scores, case["score"].double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(difference_scores(*sums, tokens, per_token=False), scores * tokens)


def test_selection_is_that_of_the_authors() -> None:
    case = golden("selection_even_n")
    assert keep_top(case["scores"], 0.5).tolist() == case["kept_r50"].tolist()


def test_masked_tokens_count_nothing_whatever_stands_there() -> None:
    likelihoods = torch.tensor([[-1.0, torch.nan, -2.0], [-4.0, -1.0, -torch.inf]])
    sums, tokens = document_log_likelihoods(likelihoods, torch.tensor([[1, 0, 1], [1, 1, 0]]))
    assert sums.tolist() == [-3, -5] and tokens.tolist() == [2, 2]


def test_the_whole_corpus_keeps_its_order_and_odd_counts_are_cut() -> None:
    scores = torch.randn(11, generator=torch.Generator().manual_seed(0))
    assert keep_top(scores, 1.0).tolist() == list(range(11))
    assert len(keep_top(scores, 0.5)) == 5


def test_the_first_of_equal_scores_is_kept() -> None:
    assert keep_top(torch.zeros(1000), 0.003).tolist() == [0, 1, 2]
    assert keep_top(torch.tensor([1.0, 2, 1, 2, 1]), 0.6).tolist() == [0, 1, 3]


@pytest.mark.parametrize("size", [1, 7, 20, 50])
def test_a_stream_keeps_what_all_at_once_keeps(size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 6, (40,), generator=generator).double()
    best = Best.of(size)
    for shard in torch.randperm(40, generator=generator).split(9):
        best = best.with_shard(scores[shard], shard)
    assert best.kept().tolist() == keep_top(scores, min(size / 40, 1.0)).tolist()


def test_the_random_control_is_as_large_and_comes_from_its_seed() -> None:
    first = keep_random(100, 0.3, seed=1)
    assert len(first) == 30 and first.tolist() == sorted(set(first.tolist()))
    assert torch.equal(first, keep_random(100, 0.3, seed=1))
    assert not torch.equal(first, keep_random(100, 0.3, seed=2))


ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: keep_top(ONES, 0.0), "ratio is 0.0"),
        (lambda: keep_top(ONES, 1.1), "ratio is 1.1"),
        (lambda: keep_top(ONES, 0.3), "0.3 of 3 documents keeps none"),
        (lambda: keep_top(torch.tensor([0.0, torch.nan]), 0.5), "Document 1 has score nan"),
        (lambda: keep_top(torch.ones(2, 2), 0.5), r"\(2, 2\)"),
        (lambda: difference_scores(ONES, torch.ones(4), ONES), r"\(3,\).*\(4,\)"),
        (lambda: difference_scores(ONES, ONES, torch.tensor([1, 0, 0])), "Document 1 .*2 of 3"),
        (lambda: difference_scores(ONES, ONES * torch.inf, ONES), "inf under the reference"),
        (lambda: difference_scores(ONES * torch.nan, ONES, ONES), "nan under the teacher"),
        (lambda: document_log_likelihoods(torch.ones(2, 3), torch.ones(2, 4)), r"\(2, 4\)"),
        (lambda: Best.of(0), "size is 0"),
        (lambda: Best.of(2).with_shard(ONES, torch.arange(2)), r"\(3,\).*\(2,\)"),
        (lambda: Best.of(2).with_shard(ONES, torch.tensor([1, 2, 1])), "seen before"),
    ],
)
def test_what_cannot_be_selected_from_is_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=words):
        call()
