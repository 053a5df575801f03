"""Time of augmenting a batch: ours, kornia's modules and torchvision v2.

    python benchmarks/transforms.py [--rounds 9]

Every contender gets the same uint8 batch and gives float32 in [0, 1]. Rounds are interleaved; the table has medians,
and ratios to ours. "once per batch" draws one augmentation for all images, which is not what training wants; it is
there for reference.

What is measured is processor time on one thread: it says how much work there is, also while others use the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from understudy.data.transforms.horizontal_flip import HorizontalFlip
from understudy.data.transforms.rand_augment import RandAugment
from understudy.data.transforms.random_crop import RandomCrop
from understudy.data.views import Transform, Views

BATCHES = ((256, 32), (64, 224))
OURS = "understudy"

Contender = Callable[[torch.Tensor], torch.Tensor]


def as_float(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def ours(*parts: Transform) -> Contender:
    """Return a contender that shows a new view at each call."""
    views = Views(parts, seed=0)
    calls = iter(range(10**9))

    def run(images: torch.Tensor) -> torch.Tensor:
        ids = torch.arange(len(images))
        made = views(images, ids, torch.full_like(ids, next(calls)))
        assert isinstance(made, torch.Tensor)
        return as_float(made)

    return run


def crop_and_flip(size: int) -> dict[str, Contender]:
    """Return the contenders for crop (4 pixels of padding) and flip."""
    import kornia.augmentation as kornia
    from torchvision.transforms import v2

    modules = torch.nn.Sequential(
        kornia.RandomCrop((size, size), padding=4, same_on_batch=False),
        kornia.RandomHorizontalFlip(same_on_batch=False),
    )
    vision = v2.Compose([v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()])
    return {
        OURS: ours(RandomCrop(), HorizontalFlip()),
        "kornia modules": lambda images: modules(as_float(images)),
        "torchvision v2, image by image": lambda images: as_float(
            torch.stack([vision(image) for image in images])
        ),
        "torchvision v2, once per batch": lambda images: as_float(vision(images)),
    }


def rand_augment(size: int) -> dict[str, Contender]:
    """Return the contenders for RandAugment with two operations at magnitude 9."""
    from kornia.augmentation.auto import RandAugment as KorniaRandAugment
    from torchvision.transforms import v2

    module = KorniaRandAugment(n=2, m=9)
    vision = v2.RandAugment()
    return {
        OURS: ours(RandAugment()),
        "kornia modules": lambda images: module(as_float(images)),
        "torchvision v2, image by image": lambda images: as_float(
            torch.stack([vision(image) for image in images])
        ),
        "torchvision v2, once per batch": lambda images: as_float(vision(images)),
    }


def measure(
    contenders: dict[str, Contender], images: torch.Tensor, rounds: int
) -> dict[str, float]:
    """Return the median seconds of processor time of each contender."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            start = time.process_time()
            contender(images)
            if turn > 0:  # the first is a warm-up
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    print("| batch | augmentation | contender | median, ms of processor time | ratio |")
    print("|---|---|---|---:|---:|")
    for count, size in BATCHES:
        images = torch.randint(0, 256, (count, 3, size, size), generator=generator)
        images = images.to(torch.uint8)
        for title, make in (("crop, flip", crop_and_flip), ("RandAugment", rand_augment)):
            result = measure(make(size), images, rounds)
            for name, median in result.items():
                print(
                    f"| {count} x 3 x {size} x {size} | {title} | {name} | "
                    f"{median * 1e3:.1f} | {median / result[OURS]:.1f} |"
                )


if __name__ == "__main__":
    main()
