"""Batches in which every image comes as several augmented views."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from understudy import seeding
from understudy.data.batch import Batch
from understudy.errors import UnderstudyError


@dataclass(slots=True)
class ViewBatch(Batch):
    """A batch of B images in V B rows: the V views of an image side by side, with its id, label and weight."""


@dataclass(frozen=True)
class Augment:
    """Random crops, flips and changes of brightness and contrast of images that are normalised already.

    Attributes:
        scale: smallest share of the image's area that a crop shows; the crop is resized to the image's size.
        flip: share of views that are mirrored left to right.
        jitter: strength s of brightness (a shift by up to s / 2 of the image's own standard deviations) and contrast
            (a factor in [1 - s, 1 + s] around the image's mean).
        largest: largest share of the image's area that a crop shows.
    """

    scale: float
    flip: float
    jitter: float
    largest: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale is {self.scale}; it must be in (0, 1]")
        for name, value in {"flip": self.flip, "jitter": self.jitter}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be in [0, 1]")
        if not self.scale <= self.largest <= 1:
            raise ValueError(f"largest is {self.largest}; it must be in [scale, 1]")

    def __call__(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Return a view of each image.

        Args:
            images: float [B, C, H, W].
            drawn: in [0, 1), [B, 6].
        """
        area, across, down, mirror, shift, factor = drawn.to(images.dtype).unbind(dim=1)
        side = (self.scale + (self.largest - self.scale) * area).sqrt()
        free = 1 - side
        theta = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
        theta[:, 0, 0] = torch.where(mirror < self.flip, -side, side)
        theta[:, 1, 1] = side
        theta[:, 0, 2], theta[:, 1, 2] = free * (2 * across - 1), free * (2 * down - 1)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        view = functional.grid_sample(
            images, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        mean = view.mean(dim=(1, 2, 3), keepdim=True)
        spread = (view - mean).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        contrast = (1 + self.jitter * (2 * factor - 1)).view(-1, 1, 1, 1)
        brightness = (self.jitter * (shift - 0.5)).view(-1, 1, 1, 1)
        return mean + contrast * (view - mean) + brightness * spread


def views_of(
    batch: Batch, augments: Sequence[Augment], *, seed: int, count: torch.Tensor, method: str
) -> ViewBatch:
    """Return the batch with views of every image, the same for all models that take images of one size.

    Args:
        batch: the batch.
        augments: what makes each view, in order.
        seed: what the draws depend on, beside the sample's id, the view and `count`.
        count: int64 [], a counter that tells the steps apart.
        method: who asks, for the refusal.

    Raises:
        UnderstudyError: another method has made views already, or a model takes no images.
    """
    if isinstance(batch, ViewBatch):
        raise UnderstudyError(f"Method '{method}' cannot make views of the views of another one.")
    ids, counts = batch.index, count.expand(len(batch))
    drawn = [
        seeding.uniform_on_device(seed, ids.clone(), counts.clone(), f"view {number}", 6)
        for number in range(len(augments))
    ]
    known: dict[int, torch.Tensor] = {}
    for role, inputs in batch.inputs.items():
        check_images(inputs, role=role, method=method)
        # Models with the same preprocessing share a tensor.
        if id(inputs) not in known:
            made = [
                augment(inputs, numbers) for augment, numbers in zip(augments, drawn, strict=True)
            ]
            known[id(inputs)] = _as(inputs, torch.stack(made, dim=1).flatten(0, 1))
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    fields["inputs"] = {role: known[id(inputs)] for role, inputs in batch.inputs.items()}
    for name in ("labels", "index", "view", "weight", "mask"):
        if fields[name] is not None:
            fields[name] = fields[name].repeat_interleave(len(augments), dim=0)
    return ViewBatch(**fields)


def by_image(rows: torch.Tensor, views: int) -> torch.Tensor:
    """Return rows [V B, ...] of a batch of V views as [B, V, ...]."""
    return rows.reshape(-1, views, *rows.shape[1:])


def first_views(images: torch.Tensor, views: int, wanted: int) -> torch.Tensor:
    """Return the first `wanted` of the views [V B, C, H, W] of each image, in the memory format of the images."""
    if wanted == views:
        return images
    return _as(images, images.unflatten(0, (-1, views))[:, :wanted].flatten(0, 1))


def check_images(inputs: Any, *, role: str, method: str) -> None:
    """Refuse what is no batch of images.

    Raises:
        UnderstudyError: it is none.
    """
    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 4:
        given = (
            str(tuple(inputs.shape))
            if isinstance(inputs, torch.Tensor)
            else type(inputs).__name__.removesuffix("Type")
        )
        raise UnderstudyError(
            f"Method '{method}' compares views of an image and needs images [B, C, H, W], but the {role} is given "
            f"{given}."
        )


def _as(images: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Return the views in the memory format of the images."""
    if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
        return views.contiguous(memory_format=torch.channels_last)
    return views
