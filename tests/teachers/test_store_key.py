"""A store of something else is refused, and every part of the key tells what differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_store import KEY, write_store

from understudy.data.draws import Draw
from understudy.data.sources.python import from_tensors
from understudy.data.transforms.horizontal_flip import HorizontalFlip
from understudy.data.transforms.mixup import Mixup
from understudy.data.transforms.random_crop import RandomCrop
from understudy.data.views import Deterministic, Transform, Views
from understudy.errors import StoreError
from understudy.teachers.store import Store
from understudy.teachers.store.key import Key, data_identity, view_recipe

IMAGES = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)


def source(images: torch.Tensor = IMAGES, labels: list[int] | None = None) -> Any:
    return from_tensors(
        images[:8],
        labels or [0, 1] * 4,
        test_inputs=images[8:],
        test_labels=[0, 1, 0, 1],
        classes=["a", "b"],
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"teacher": "others"},
            "the teacher's weights: .*fingerprint weights, this teacher has others",
        ),
        (
            {"preprocess": {"name": "image", "mean": [0.4]}},
            r"preprocessing: mean.0 is 0\.5 in the store, here 0\.4",
        ),
        ({"data": "changed"}, "the data: .*samples in the store, here changed"),
        ({"views": {"seed": 2, "count": 3}}, "the views: seed is 1 in the store, here 2"),
        ({"views": {"seed": 1, "count": 4}}, "the views: count is 3 in the store, here 4"),
    ],
)
def test_every_part_of_the_key_is_compared(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    write_store(tmp_path)
    store = Store(tmp_path)
    store.check_key(KEY)
    with pytest.raises(StoreError, match=f"does not match(.|\n)*{named}") as error:
        store.check_key(replace(KEY, **change))
    assert len(str(error.value).splitlines()) == 2


def test_without_a_teacher_its_parts_are_not_compared(tmp_path: Path) -> None:
    write_store(tmp_path)
    Store(tmp_path).check_key(replace(KEY, teacher=None, preprocess=None))
    assert Key.from_json(KEY.json()) == KEY


def test_data_are_the_samples_and_ids_not_the_labels() -> None:
    same = data_identity(source())
    assert data_identity(source(labels=[1, 0] * 4)) == same
    changed = IMAGES.clone()
    changed[3, 0, 0, 0] ^= 1
    assert data_identity(source(changed)) != same
    changed = IMAGES.clone()
    changed[9, 0, 0, 0] ^= 1  # a test sample
    assert data_identity(source(changed)) != same


def recipe(
    *transforms: Any, seed: int = 0, count: int | None = 4, split: Any = None
) -> dict[str, Any]:
    return view_recipe(
        Views(transforms, seed=seed, count=count), source().train if split is None else split
    )


def test_views_are_their_transforms_seed_and_number() -> None:
    base = recipe(RandomCrop(padding=1), HorizontalFlip())
    assert recipe(RandomCrop(padding=1), HorizontalFlip()) == base
    assert recipe(RandomCrop(padding=2), HorizontalFlip()) != base
    assert recipe(HorizontalFlip(), RandomCrop(padding=1)) != base
    assert recipe(RandomCrop(padding=1), HorizontalFlip(), seed=1) != base
    assert recipe(RandomCrop(padding=1), HorizontalFlip(), count=5) != base
    # Where nothing is random neither seed nor number matter.
    assert recipe(seed=1, count=None) == recipe(seed=2, count=7)


def test_fresh_views_are_refused() -> None:
    with pytest.raises(StoreError, match="views: null.*'horizontal_flip'.*data.views to a number"):
        recipe(HorizontalFlip(), count=None)


def test_who_is_mixed_with_whom_counts() -> None:
    split = source().train
    base = recipe(Mixup(), split=split)
    assert recipe(Mixup(), split=split) == base
    fewer = split.with_labels(torch.where(torch.arange(8) < 4, split.labels, -1))
    assert recipe(Mixup(), split=fewer) != base
    assert recipe(Mixup(), split=split.subset(torch.arange(7))) != base
    swapped = split.with_labels(1 - split.labels)
    assert recipe(Mixup(), split=swapped) == base


class Brighter(Transform):
    """A transform from outside the package."""

    def __init__(self, by: int = 1) -> None:
        self.by = by

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        return images + self.by


class Scale(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def extra_repr(self) -> str:
        return f"by={self.by}"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.by


class Silent:
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_code_from_outside_counts() -> None:
    assert recipe(Brighter(1)) != recipe(Brighter(2))
    assert recipe(Brighter(1))["code"] and recipe(HorizontalFlip())["code"] == []
    one: Callable[[torch.Tensor], torch.Tensor] = lambda images: images.flip(-1)  # noqa: E731
    other: Callable[[torch.Tensor], torch.Tensor] = lambda images: images.flip(-2)  # noqa: E731
    assert recipe(Deterministic(one)) != recipe(Deterministic(other))
    assert recipe(Deterministic(Scale(1))) == recipe(Deterministic(Scale(1)))
    assert recipe(Deterministic(Scale(1))) != recipe(Deterministic(Scale(2)))


def test_code_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(StoreError, match="'deterministic'.*repr does not tell its settings"):
        recipe(Deterministic(Silent()))
    with pytest.raises(StoreError, match="cannot go with a store"):
        recipe(Deterministic(torch.square))
