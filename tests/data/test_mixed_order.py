"""The order of samples that are drawn by domain."""

from __future__ import annotations

import math

import pytest
import torch

from understudy.data.mixed_order import MixedOrder
from understudy.data.mixture import DomainMixture, Mixture
from understudy.errors import DataError, UnderstudyError

NAMES = ("tales", "sums", "nothing", "noise")
LABELS = torch.tensor([0] * 60 + [1] * 30 + [3] * 10)


def order(seed: int = 1, population: torch.Tensor | None = None) -> MixedOrder:
    chosen = torch.arange(100) if population is None else population
    return MixedOrder(LABELS, chosen, names=NAMES, batch_size=20, seed=seed)


def mixture(*shares: float) -> DomainMixture:
    return DomainMixture(("tales", "sums", "noise"), tuple(map(math.log, shares)), updates=1)


def drawn(made: MixedOrder, steps: range) -> list[tuple[list[int], list[int]]]:
    return [tuple(column.tolist() for column in made.batch(step)) for step in steps]  # type: ignore[misc]


def test_it_begins_with_the_shares_of_the_data_and_leaves_out_empty_domains() -> None:
    made = order()
    assert made.domains == ("tales", "sums", "noise") and made.smallest_batch == 20
    assert made.mixture.weights() == pytest.approx({"tales": 0.6, "sums": 0.3, "noise": 0.1})
    samples = torch.cat([made.batch(step)[0] for step in range(200)])
    shares = torch.bincount(LABELS[samples], minlength=4) / len(samples)
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.0, 0.1]), atol=0.03, rtol=0)


def test_a_domain_is_gone_through_before_it_begins_again() -> None:
    made = order()
    pairs = [made.batch(step) for step in range(100)]
    samples, passes = (torch.cat(column) for column in zip(*pairs, strict=True))
    for label, count in ((0, 60), (1, 30), (3, 10)):
        own = samples[LABELS[samples] == label]
        turn = passes[LABELS[samples] == label]
        assert turn.tolist() == [number // count for number in range(len(own))]
        for first in range(0, len(own) - count, count):
            assert len(own[first : first + count].unique()) == count
    whole = sum(
        made.passes[name] * count for name, count in (("tales", 60), ("sums", 30), ("noise", 10))
    )
    assert whole == pytest.approx(99 * 20)  # what lies before the last batch


def test_a_batch_is_a_function_of_seed_step_and_mixture() -> None:
    first, second = order(), order()
    expected = drawn(first, range(12))
    assert drawn(second, range(11, -1, -1))[::-1] == expected
    assert drawn(order(seed=2), range(12)) != expected


def test_another_mixture_holds_from_its_step_on_and_goes_on_in_each_domain() -> None:
    made = order()
    before = torch.cat([made.batch(step)[0] for step in range(4)])
    made.change(mixture(0.01, 0.01, 0.98), 4)
    after = torch.cat([made.batch(step)[0] for step in range(4, 20)])
    assert (LABELS[after] == 3).float().mean() > 0.9
    noise = torch.cat([before, after])
    noise = noise[LABELS[noise] == 3]
    assert len(noise[:10].unique()) == 10
    with pytest.raises(UnderstudyError, match="another mixture"):
        made.batch(3)


def test_its_state_brings_it_back() -> None:
    made, again = order(), order()
    made.change(mixture(0.2, 0.5, 0.3), 5)
    again.load(made.state())
    assert drawn(made, range(5, 15)) == drawn(again, range(5, 15))
    made.change(mixture(0.5, 0.2, 0.3), 15)
    again.change(mixture(0.5, 0.2, 0.3), 15)
    assert drawn(made, range(15, 18)) == drawn(again, range(15, 18))


def test_only_its_population_is_drawn() -> None:
    part = torch.tensor([0, 1, 2, 60, 61])
    made = order(population=part)
    assert made.domains == ("tales", "sums")
    assert set(torch.cat([made.batch(step)[0] for step in range(5)]).tolist()) == set(part.tolist())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="1 of 4 training samples have no domain"):
        MixedOrder(torch.tensor([0, 1, -1, 0]), torch.arange(4), names=NAMES, batch_size=2, seed=0)
    with pytest.raises(DataError, match="has the domains"):
        order().change(DomainMixture(("tales",), (0.0,)), 0)
    for wrong in ({"name": "other"}, {"name": "ddk", "every": 0}, {"name": "ddk", "smoothing": 2}):
        with pytest.raises(UnderstudyError):
            Mixture(**wrong)
