"""Batches in which every image is followed by its rotations."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from understudy.data.batch import UNLABELLED, Batch
from understudy.errors import UnderstudyError

VIEWS = 4
"""An image upright, and turned by 90, 180 and 270 degrees."""


@dataclass(slots=True)
class RotatedBatch(Batch):
    """A batch of B images in 4 B rows: each image upright, then turned by 90, 180 and 270 degrees.

    The turned rows have their image's id, view and weight, but no label.
    """


def rotated(batch: Batch, *, method: str) -> RotatedBatch:
    """Return the batch with every image's rotations, for all models; a rotated one as it is.

    Args:
        batch: the batch.
        method: who asks, for the refusal.

    Raises:
        UnderstudyError: a model takes no images, or the images are not square.
    """
    if isinstance(batch, RotatedBatch):
        return batch
    known: dict[int, torch.Tensor] = {}
    for role, inputs in batch.inputs.items():
        check_square(inputs, role=role, method=method)
        # Models with the same preprocessing share a tensor.
        if id(inputs) not in known:
            known[id(inputs)] = _turned(inputs)
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    fields["inputs"] = {role: known[id(inputs)] for role, inputs in batch.inputs.items()}
    fields["labels"] = None if batch.labels is None else _upright_only(batch.labels)
    for name in ("index", "view", "weight"):
        if fields[name] is not None:
            fields[name] = fields[name].repeat_interleave(VIEWS, dim=0)
    if batch.mask is not None:
        places = batch.mask.dim() > 2
        fields["mask"] = (
            _turned(batch.mask) if places else batch.mask.repeat_interleave(VIEWS, dim=0)
        )
    return RotatedBatch(**fields)


def by_image(rows: torch.Tensor) -> torch.Tensor:
    """Return rows [4 B, ...] of a rotated batch as [B, 4, ...], the upright ones first."""
    return rows.reshape(-1, VIEWS, *rows.shape[1:])


def check_square(inputs: Any, *, role: str, method: str) -> None:
    """Refuse what cannot be turned by a quarter.

    Raises:
        UnderstudyError: what the model of `role` takes is no batch of square images.
    """
    needs = f"Method '{method}' turns images by 90 degrees and needs square ones [B, C, H, H]"
    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 4:
        given = (
            str(tuple(inputs.shape))
            if isinstance(inputs, torch.Tensor)
            else type(inputs).__name__.removesuffix("Type")
        )
        raise UnderstudyError(f"{needs}, but the {role} is given {given} (no images, or a store).")
    height, width = inputs.shape[2:]
    if height != width:
        raise UnderstudyError(
            f"{needs}, but the {role}'s are {height} x {width}. Make them square: `preprocess: {{size: {height}}}` in "
            "both models, or a transform that crops squares."
        )


def _turned(images: torch.Tensor) -> torch.Tensor:
    """Return [4 B, ..., H, H] from [B, ..., H, H], in the same memory format."""
    turns = [torch.rot90(images, quarter, dims=(-2, -1)) for quarter in range(VIEWS)]
    together = torch.stack(turns, dim=1).flatten(0, 1)
    if images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last):
        return together.contiguous(memory_format=torch.channels_last)
    return together


def _upright_only(labels: torch.Tensor) -> torch.Tensor:
    """Return the labels of a rotated batch: "no label" for the turned rows."""
    spread = labels.repeat_interleave(VIEWS, dim=0)
    turned = torch.arange(len(spread), device=labels.device) % VIEWS != 0
    if labels.is_floating_point():
        return spread.masked_fill(turned.unsqueeze(1), 0.0)
    return spread.masked_fill(turned, UNLABELLED)
