"""Draws depend on names and ids, never on what was drawn before."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy import seeding


def test_uniform_is_a_pure_function_of_each_sample() -> None:
    ids, views = torch.tensor([5, 9, 2**62, 0]), torch.tensor([0, 3, 1, 0])
    whole = seeding.uniform(7, ids, views, "crop", 3)
    single = torch.cat(
        [seeding.uniform(7, ids[i : i + 1], views[i : i + 1], "crop", 3) for i in range(4)]
    )
    assert torch.equal(whole, single)
    assert ((whole >= 0) & (whole < 1)).all()


def test_uniform_on_a_device_gives_the_same_numbers() -> None:
    ids, views = torch.tensor([5, 9, 2**62, 0, -7, 2**63 - 1]), torch.tensor([0, 3, 1, 0, 2**40, 8])
    for seed, purpose in ((7, "crop"), (2**40, "negatives"), (0, "")):
        drawn = seeding.uniform_on_device(seed, ids, views, purpose, 50)
        assert torch.equal(drawn, seeding.uniform(seed, ids, views, purpose, 50))


def test_uniform_differs_by_seed_id_view_purpose_and_position() -> None:
    ids, views = torch.arange(2000), torch.zeros(2000, dtype=torch.int64)
    base = seeding.uniform(0, ids, views, "a", 2)
    others = [
        seeding.uniform(1, ids, views, "a", 2),
        seeding.uniform(0, ids + 5000, views, "a", 2),
        seeding.uniform(0, ids, views + 1, "a", 2),
        seeding.uniform(0, ids, views, "b", 2),
        base.flip(1),
    ]
    for other in others:
        correlation = torch.corrcoef(torch.stack([base[:, 0], other[:, 0]]))[0, 1]
        assert abs(float(correlation)) < 0.1


def test_uniform_is_uniform() -> None:
    ids = torch.arange(20000)
    values = seeding.uniform(3, ids, torch.zeros_like(ids), "flip").flatten()
    counts = torch.histc(values, bins=20, min=0, max=1)
    expected = 1000.0
    assert (
        float(((counts - expected) ** 2 / expected).sum()) < 45
    )  # chi-square, 19 degrees, p about 0.001


@given(st.integers(0, 2**40), st.text(max_size=20))
def test_derive_fits_a_seed(seed: int, name: str) -> None:
    value = seeding.derive(seed, name)
    assert 0 <= value < 2**63
    torch.Generator().manual_seed(value)


def test_isolated_gives_the_global_generator_back() -> None:
    before = torch.get_rng_state()
    with seeding.isolated(0, "student"):
        first = torch.randn(3)
    assert torch.equal(before, torch.get_rng_state())
    with seeding.isolated(0, "student"):
        assert torch.equal(first, torch.randn(3))
    with seeding.isolated(0, "teacher"):
        assert not torch.equal(first, torch.randn(3))
