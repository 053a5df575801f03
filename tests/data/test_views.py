"""Views are functions of (seed, id, view) and of nothing else."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.data.draws import Draw
from understudy.data.transforms.colour_jitter import ColourJitter
from understudy.data.transforms.cutmix import Cutmix
from understudy.data.transforms.horizontal_flip import HorizontalFlip
from understudy.data.transforms.mixup import Mixup
from understudy.data.transforms.mixup_or_cutmix import MixupOrCutmix
from understudy.data.transforms.rand_augment import RandAugment
from understudy.data.transforms.random_crop import RandomCrop
from understudy.data.transforms.random_erasing import RandomErasing
from understudy.data.transforms.random_resized_crop import RandomResizedCrop
from understudy.data.views import Deterministic, Transform, Views, soft_labels
from understudy.errors import DataError, UnderstudyError

POPULATION = 48


def everything(seed: int = 0, mixing: bool = False, hue: float = 0.0) -> Views:
    parts = [
        RandomCrop(padding=2),
        HorizontalFlip(),
        ColourJitter(hue=hue),
        RandAugment(operations=3),
        RandomErasing(),
        RandomResizedCrop(size=10),
        RandomCrop(padding=1, mode="reflect"),
    ]
    if mixing:
        parts.insert(4, MixupOrCutmix())  # type: ignore[arg-type]
    return Views(parts, seed=seed)


def images_of(ids: torch.Tensor, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """The picture of an id: always the same."""
    pool = np.random.default_rng(0).integers(0, 256, (POPULATION, 3, 13, 11), dtype=np.uint8)
    images = torch.from_numpy(pool)[ids]
    return images if dtype == torch.uint8 else images.to(dtype) / 255


pairs = st.lists(
    st.tuples(st.integers(0, POPULATION - 1), st.integers(0, 5)), min_size=1, max_size=24
)


@settings(deadline=None, max_examples=25)
@given(pairs, st.sampled_from([torch.uint8, torch.float32]), st.integers(0, 3))
def test_a_view_does_not_depend_on_its_batch(
    wanted: list[tuple[int, int]], dtype: torch.dtype, seed: int
) -> None:
    pytest.importorskip("kornia")
    pipeline = everything(seed, hue=0.2)
    ids, views = torch.tensor(wanted).unbind(1)
    batch = pipeline(images_of(ids, dtype), ids, views)
    assert isinstance(batch, torch.Tensor)
    for place in range(len(ids)):
        one = slice(place, place + 1)
        alone = pipeline(images_of(ids[one], dtype), ids[one], views[one])
        assert torch.equal(batch[one], alone)


@settings(deadline=None, max_examples=15)
@given(pairs, st.sampled_from([torch.uint8, torch.float32]))
def test_a_mixed_view_does_not_depend_on_its_batch(
    wanted: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    pipeline = everything(mixing=True)
    ids, views = torch.tensor(wanted).unbind(1)

    def build(ids: torch.Tensor, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        partners = pipeline.partner_positions(ids, views, POPULATION)
        return pipeline.mixed(
            images_of(ids, dtype), ids, views, images_of(partners, dtype), partners
        )

    batch, share = build(ids, views)
    for place in range(len(ids)):
        one = slice(place, place + 1)
        alone, own = build(ids[one], views[one])
        assert torch.equal(batch[one], alone) and torch.equal(share[one], own)


def test_large_batches_on_several_threads_change_nothing() -> None:
    ids = torch.arange(192)
    images = torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (192, 3, 32, 32), dtype=np.uint8)
    )
    pipeline = Views([RandomCrop(), HorizontalFlip(), RandAugment(), Mixup()], seed=5)
    before = Views([RandomCrop(), HorizontalFlip(), RandAugment()], seed=5)
    zeros = torch.zeros_like(ids)
    whole = before(images, ids, zeros)
    mixed, _ = pipeline.mixed(images, ids, zeros, images.flip(0), ids.flip(0))
    assert isinstance(whole, torch.Tensor)
    for part in (slice(0, 1), slice(3, 10), slice(100, 192)):
        assert torch.equal(before(images[part], ids[part], zeros[part]), whole[part])
        again, _ = pipeline.mixed(
            images[part], ids[part], zeros[part], images.flip(0)[part], ids.flip(0)[part]
        )
        assert torch.equal(again, mixed[part])


DIGEST = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
torch.manual_seed(int(sys.argv[2]))
from test_views import everything, images_of
ids = torch.arange(20)
made = everything(3)(images_of(ids), ids, ids % 4)
print(hashlib.sha256(made.numpy().tobytes()).hexdigest())
"""


def test_another_process_makes_the_same_views() -> None:
    ids = torch.arange(20)
    made = everything(3)(images_of(ids), ids, ids % 4)
    assert isinstance(made, torch.Tensor)
    here = hashlib.sha256(made.numpy().tobytes()).hexdigest()
    answer = subprocess.run(
        [sys.executable, "-c", DIGEST, os.path.dirname(__file__), "99"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert answer.stdout.strip() == here


def test_global_generators_are_neither_read_nor_moved() -> None:
    ids = torch.arange(20)
    torch.manual_seed(1)
    first = everything()(images_of(ids), ids, ids)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    torch.manual_seed(2)
    second = everything()(images_of(ids), ids, ids)
    torch.manual_seed(1)
    everything()(images_of(ids), ids, ids)
    assert torch.equal(first, second)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_seeds_views_and_places_in_the_pipeline_make_a_difference() -> None:
    ids = torch.arange(40)
    zeros = torch.zeros_like(ids)

    def flipped(views: Views, numbers: torch.Tensor) -> list[bool]:
        row = torch.arange(6, dtype=torch.uint8).expand(40, 1, 1, 6)
        made = views(row, ids, numbers)
        assert isinstance(made, torch.Tensor)
        return [bool(image[0, 0, 0] == 5) for image in made]

    flip = HorizontalFlip()
    base = flipped(Views([flip], seed=0), zeros)
    assert base == flipped(Views([flip], seed=0), zeros)
    assert base != flipped(Views([flip], seed=1), zeros)
    assert base != flipped(Views([flip], seed=0), zeros + 1)
    # Two flips that drew the same numbers would cancel.
    assert any(flipped(Views([flip, HorizontalFlip()], seed=0), zeros))


def test_passes_show_views() -> None:
    passes = torch.arange(7)
    assert Views([HorizontalFlip()], seed=0).number(passes).tolist() == list(range(7))
    counted = Views([HorizontalFlip()], seed=0, count=3)
    assert counted.number(passes).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert Views([], seed=0).number(passes).tolist() == [0] * 7
    still = Views([Deterministic(lambda images: images)], seed=0)
    assert still.number(passes).tolist() == [0] * 7
    with pytest.raises(UnderstudyError, match="at least 1"):
        Views([], seed=0, count=0)


def test_without_transforms_anything_passes_and_with_them_only_images() -> None:
    ids = torch.arange(2)
    assert Views([], seed=0)(["a", "b"], ids, ids) == ["a", "b"]
    with pytest.raises(DataError, match="'random_crop' work on images .* is text"):
        Views([RandomCrop()], seed=0)(["a", "b"], ids, ids)
    with pytest.raises(DataError, match=r"a tensor \(2, 5\)"):
        Views([RandomCrop()], seed=0)(torch.zeros(2, 5), ids, ids)


def test_config_is_everything_that_decides_a_view() -> None:
    assert Views([HorizontalFlip(), Cutmix()], seed=4, count=2).config() == {
        "seed": 4,
        "count": 2,
        "transforms": [
            {"name": "horizontal_flip", "probability": 0.5},
            {"name": "cutmix", "alpha": 1.0, "probability": 1.0},
        ],
    }
    assert Deterministic(torch.flatten).config()["function"].endswith("flatten")


def test_bare_callables_are_refused() -> None:
    with pytest.raises(UnderstudyError, match=r"Transform 1 .* Deterministic\(function\)"):
        Views([RandomCrop(), lambda images: images], seed=0)  # type: ignore[list-item]


def test_two_mixing_transforms_are_refused() -> None:
    with pytest.raises(UnderstudyError, match="'mixup' and 'cutmix'.*mixup_or_cutmix"):
        Views([Mixup(), RandomCrop(), Cutmix()], seed=0)


class Careless(Transform):
    """Draws from where it must not."""

    def __init__(self, *, library: str) -> None:
        self.library = library

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        if self.library == "torch":
            return images + torch.rand(1)
        if self.library == "NumPy":
            return images + float(np.random.rand())
        return images + random.random()


@pytest.mark.parametrize("library", ["torch", "NumPy", "Python's random"])
def test_drawing_from_global_state_is_caught(library: str) -> None:
    ids = torch.arange(3)
    views = Views([RandomCrop(), Careless(library=library)], seed=0)
    with pytest.raises(UnderstudyError, match=f"'careless' drew from the global .* {library}"):
        views(images_of(ids), ids, ids)


def test_a_function_that_is_not_deterministic_is_caught() -> None:
    ids = torch.arange(3)
    views = Views([Deterministic(lambda images: images * (torch.rand(1) > 0.5))], seed=0)
    with pytest.raises(UnderstudyError, match="in Deterministic drew from the global"):
        views(images_of(ids), ids, ids)


def test_a_function_that_loses_samples_is_caught() -> None:
    ids = torch.arange(3)
    with pytest.raises(UnderstudyError, match=r"'deterministic' made \(2, 3, 13, 11\) of 3"):
        Views([Deterministic(lambda images: images[1:])], seed=0)(images_of(ids), ids, ids)


class Noise(Transform):
    """A user's own transform, done right."""

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        return images + draw.uniform("level")[:, :, None, None]


def test_a_users_transform_works() -> None:
    ids = torch.arange(5)
    views = Views([Noise()], seed=0)
    made = views(torch.zeros(5, 1, 2, 2), ids, ids)
    assert isinstance(made, torch.Tensor)
    assert len(made[:, 0, 0, 0].unique()) == 5
    assert torch.equal(made[2:3], views(torch.zeros(1, 1, 2, 2), ids[2:3], ids[2:3]))  # type: ignore[arg-type]


def test_partners_are_transformed_by_their_own_draws() -> None:
    ids, views = torch.arange(10), torch.full((10,), 2)
    pipeline = Views([RandomCrop(), HorizontalFlip(), Mixup(alpha=1.0)], seed=0)
    plain = Views([RandomCrop(), HorizontalFlip()], seed=0)
    partners = pipeline.partner_positions(ids, views, POPULATION)
    mixed, share = pipeline.mixed(images_of(ids), ids, views, images_of(partners), partners)
    own, other = plain(images_of(ids), ids, views), plain(images_of(partners), partners, views)
    assert isinstance(own, torch.Tensor) and isinstance(other, torch.Tensor)
    column = share[:, None, None, None]
    torch.testing.assert_close(mixed, (own * column + other * (1 - column)) / 255)


def test_transforms_after_mixing_see_the_mixture() -> None:
    ids = torch.arange(6)
    zeros = torch.zeros_like(ids)
    pipeline = Views([Mixup(), Deterministic(lambda images: 1 - images)], seed=0)
    inner = Views([Mixup()], seed=0)
    made, _ = pipeline.mixed(images_of(ids), ids, zeros, images_of(ids + 6), ids + 6)
    plain, _ = inner.mixed(images_of(ids), ids, zeros, images_of(ids + 6), ids + 6)
    assert torch.equal(made, 1 - plain)


def test_mixing_is_asked_for_by_the_right_call() -> None:
    ids = torch.arange(2)
    with pytest.raises(UnderstudyError, match="'mixup' needs a partner"):
        Views([Mixup()], seed=0)(images_of(ids), ids, ids)
    with pytest.raises(UnderstudyError, match="No transform mixes"):
        Views([], seed=0).mixed(images_of(ids), ids, ids, images_of(ids), ids)


def test_partners_come_from_the_whole_population() -> None:
    views = Views([Mixup()], seed=0)
    ids = torch.arange(3000)
    partners = views.partner_positions(ids, torch.zeros_like(ids), 10)
    counts = torch.bincount(partners, minlength=10)
    assert float(((counts - 300) ** 2 / 300).sum()) < 27.9  # chi squared, 9 degrees, 0.1%
    assert not torch.equal(partners, views.partner_positions(ids, torch.ones_like(ids), 10))


def test_soft_labels() -> None:
    got = soft_labels(
        torch.tensor([0, 1, -1, 2]),
        torch.tensor([2, 1, 0, -1]),
        torch.tensor([0.25, 0.5, 0.5, 0.5]),
        3,
    )
    expected = [[0.25, 0, 0.75], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert torch.equal(got, torch.tensor(expected))
