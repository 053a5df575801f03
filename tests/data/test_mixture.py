"""Domain mixtures against the paper's equations and their own laws."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy.data.mixture import (
    DomainMixture,
    initial_log_weights,
    perplexity_ratios,
    updated_log_weights,
)
from understudy.errors import DataError

GOLDEN = Path(__file__).parent.parent / "golden" / "ddk"


@pytest.mark.parametrize("name", ["factor_init", "factor_equal_domains", "factor_single_domain"])
def test_weights_are_those_of_the_equations(name: str) -> None:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        case = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    ratios = case["student_ppl"] / case["teacher_ppl"]
    first = initial_log_weights(ratios)
    torch.testing.assert_close(first.exp(), case["r0"], rtol=1e-12, atol=1e-15)
    if "r1" in case:
        second = updated_log_weights(first, ratios, 0.5)
        torch.testing.assert_close(second.exp(), case["r1"], rtol=1e-13, atol=0)


def test_an_update_is_the_plain_formula() -> None:
    weights, ratios = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([1.2, 1.5, 0.7]).double()
    grown = weights * ratios.exp()
    expected = 0.3 * grown / grown.sum() + 0.7 / 3
    found = updated_log_weights(weights.log(), ratios, 0.3).exp()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(updated_log_weights(weights.log(), ratios + 4, 0.3).exp(), expected)
    assert not torch.allclose(updated_log_weights(weights.log(), ratios * 2, 0.3).exp(), expected)
    pure = updated_log_weights(weights.log(), ratios, 1.0).exp()
    torch.testing.assert_close(pure, grown / grown.sum())
    uniform = updated_log_weights(weights.log(), ratios, 0.0).exp()
    torch.testing.assert_close(uniform, torch.full((3,), 1 / 3).double())


def test_one_domain_far_off_saturates_and_comes_back() -> None:
    mixture = DomainMixture.start({"far": 5000.0} | {f"d{number}": 1.0 for number in range(9)})
    assert mixture.log_weights[1] == pytest.approx(-4999.0)
    mixture = mixture.updated({domain: mixture.updates + 1.0 for domain in mixture.domains})
    assert mixture.weights()["far"] == pytest.approx(0.55)
    assert min(mixture.weights().values()) == pytest.approx(0.05)
    assert sum(mixture.weights().values()) == pytest.approx(1.0)


def test_ratios_come_from_cross_entropies() -> None:
    found = perplexity_ratios({"b": 2.0, "a": 1000.0, "c": 1.0}, {"a": 1.0, "b": 2.0, "c": 1.5})
    assert list(found) == ["b", "a", "c"]
    assert found == {"b": 1.0, "a": math.inf, "c": pytest.approx(math.exp(-0.5))}


def test_a_checkpoint_goes_on_bit_for_bit() -> None:
    mixture = DomainMixture.start({"a": 1.3, "b": 2.0}, smoothing=0.4).updated({"b": 1.9, "a": 1.2})
    again = DomainMixture.from_state(json.loads(json.dumps(mixture.state())))
    assert again == mixture and again.updates == 1 and again.smoothing == 0.4
    assert again.draw(50, seed=3) == mixture.draw(50, seed=3)
    after = mixture.updated({"a": 1.0, "b": 1.5})
    assert again.updated({"a": 1.0, "b": 1.5}) == after
    assert after.draw(50, seed=3) != mixture.draw(50, seed=3)


def test_domains_are_drawn_as_often_as_they_weigh() -> None:
    mixture = DomainMixture(("a", "b", "c"), (math.log(0.7), math.log(0.2), math.log(0.1)))
    drawn = Counter(mixture.draw(20000, seed=0))
    for domain, share in mixture.weights().items():
        assert drawn[domain] / 20000 == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: perplexity_ratios({"a": 1.0}, {"b": 1.0}), r"missing are \['a'\].*\['b'\]"),
        (lambda: perplexity_ratios({"a": math.nan}, {"a": 1.0}), "domain 'a'.*nan"),
        (lambda: DomainMixture.start({}), r"\(0,\)"),
        (lambda: DomainMixture.start({"a": 1.0}, smoothing=1.5), "smoothing is 1.5"),
        (lambda: DomainMixture.start({"a": 1.0, "b": math.inf}), "domain 'b' is inf"),
        (lambda: DomainMixture.start({"a": 0.0}), "domain 'a' is 0.0"),
        (lambda: DomainMixture.start({"a": 1.0}).updated({"c": 1.0}), r"\['a'\]"),
        (lambda: DomainMixture.start({"a": 1.0}).draw(-1, 0), "count is -1"),
        (lambda: updated_log_weights(torch.zeros(2), torch.ones(3)), r"\(2,\).*\(3,\)"),
        (lambda: updated_log_weights(torch.zeros(2), torch.ones(2), -0.1), "smoothing is -0.1"),
        (
            lambda: DomainMixture.from_state(
                {"domains": ["a"], "log_weights": [], "updates": 0, "smoothing": 0.5}
            ),
            "0 weights for 1 domains",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=words):
        call()
