"""The order of samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.data.order import SampleOrder
from understudy.data.source import Split
from understudy.errors import DataError, UnderstudyError


class Nothing:
    """Samples that nobody fetches."""

    kind = "tensor"
    in_memory = True
    identity = "nothing"

    def __len__(self) -> int:
        return 1000

    def fetch(self, positions: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def split_of(count: int, labelled: int) -> Split:
    labels = torch.full((count,), -1)
    labels[torch.arange(labelled) * (count // max(labelled, 1))] = 0
    return Split(Nothing(), torch.arange(count), labels, torch.arange(count) + 100)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**40), st.integers(0, 3))
def test_an_epoch_is_one_pass_without_its_tail(
    count: int, batch_size: int, seed: int, epoch: int
) -> None:
    order = SampleOrder(torch.arange(count), batch_size=batch_size, seed=seed)
    assert order.steps_per_epoch == max(1, count // batch_size)
    start = epoch * order.steps_per_epoch
    batches = [order.batch(step) for step in range(start, start + order.steps_per_epoch)]
    samples = torch.cat([indices for indices, _ in batches])
    assert {len(indices) for indices, _ in batches} == {min(batch_size, count)}
    assert len(samples.unique()) == len(samples)
    assert all((passes == epoch).all() for _, passes in batches)


def test_the_partial_batch_can_be_kept() -> None:
    order = SampleOrder(torch.arange(10), batch_size=4, seed=0, drop_last=False)
    assert order.steps_per_epoch == 3
    assert order.smallest_batch == 2
    batches = [order.batch(step) for step in range(3)]
    assert [len(indices) for indices, _ in batches] == [4, 4, 2]
    assert sorted(torch.cat([indices for indices, _ in batches]).tolist()) == list(range(10))
    assert (order.batch(3)[1] == 1).all()


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**40))
def test_a_continuous_order_is_passes_laid_end_to_end(
    count: int, batch_size: int, steps: int, seed: int
) -> None:
    population = torch.arange(count) * 3
    order = SampleOrder(population, batch_size=batch_size, seed=seed, steps_per_epoch=steps)
    batches = [order.batch(step) for step in range(2 * steps)]
    samples = torch.cat([indices for indices, _ in batches])
    passes = torch.cat([numbers for _, numbers in batches])
    assert len(samples) == 2 * steps * batch_size
    assert passes.tolist() == [place // count for place in range(len(samples))]
    for one in samples.split(count)[:-1]:
        assert sorted(one.tolist()) == population.tolist()


def test_any_step_can_be_asked_for_in_any_order() -> None:
    def fresh() -> SampleOrder:
        return SampleOrder(torch.arange(23), batch_size=5, seed=7, steps_per_epoch=6)

    walked = fresh()
    expected = [walked.batch(step) for step in range(40)]
    for step in (39, 0, 17, 17, 3):
        for got, wanted in zip(fresh().batch(step), expected[step], strict=True):
            assert torch.equal(got, wanted)
        for got, wanted in zip(walked.batch(step), expected[step], strict=True):
            assert torch.equal(got, wanted)


def test_passes_and_seeds_differ_and_global_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    order = SampleOrder(torch.arange(100), batch_size=100, seed=0)
    first, second = order.batch(0)[0], order.batch(1)[0]
    other = SampleOrder(torch.arange(100), batch_size=100, seed=1).batch(0)[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_a_labelled_stage_gets_as_many_steps_of_the_same_size() -> None:
    split = split_of(50, 6)
    everything = SampleOrder.over(split, batch_size=16, seed=0)
    labelled = SampleOrder.over(split, batch_size=16, seed=0, labelled_only=True)
    assert (labelled.steps_per_epoch, labelled.batch_size) == (3, 16)
    assert (everything.steps_per_epoch, everything.batch_size) == (3, 16)
    indices, passes = labelled.batch(0)
    assert len(indices) == 16
    assert (split.labels[indices] == 0).all()
    assert passes.tolist() == [0] * 6 + [1] * 6 + [2] * 4


def test_a_labelled_stage_matches_a_split_smaller_than_a_batch() -> None:
    labelled = SampleOrder.over(split_of(10, 2), batch_size=16, seed=0, labelled_only=True)
    assert (labelled.steps_per_epoch, labelled.batch_size) == (1, 10)


def test_a_labelled_stage_over_a_fully_labelled_split_is_the_ordinary_one() -> None:
    split = split_of(20, 20)
    one, other = (
        SampleOrder.over(split, batch_size=6, seed=3, labelled_only=flag) for flag in (True, False)
    )
    for step in range(9):
        assert torch.equal(one.batch(step)[0], other.batch(step)[0])


def test_errors() -> None:
    with pytest.raises(DataError, match="no samples"):
        SampleOrder(torch.arange(0), batch_size=1, seed=0)
    with pytest.raises(DataError, match="No training sample has a label"):
        SampleOrder.over(split_of(5, 0), batch_size=2, seed=0, labelled_only=True)
    with pytest.raises(UnderstudyError, match="batch_size"):
        SampleOrder(torch.arange(3), batch_size=0, seed=0)
    with pytest.raises(UnderstudyError, match="steps_per_epoch"):
        SampleOrder(torch.arange(3), batch_size=1, seed=0, steps_per_epoch=0)
    with pytest.raises(UnderstudyError, match="no step -1"):
        SampleOrder(torch.arange(3), batch_size=1, seed=0).batch(-1)
