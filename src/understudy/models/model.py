"""A model as the rest of the package knows it: the module and what goes with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn


class Preprocess(Protocol):
    """Turns raw samples into what one model's forward takes. Belongs to the model, never shared by assumption."""

    def __call__(self, raw: Any, device: torch.device) -> Any:
        """Encode `raw` for the model, on `device`.

        `raw` is what a data source gives: images [B, C, H, W] in uint8 or float in [0, 1], texts, or
        plain tensors.
        """

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values; equal configurations mean equal preprocessing."""


@dataclass
class Model:
    """A built model.

    Attributes:
        module: the network; its forward takes what `preprocess` gives.
        preprocess: raw samples -> inputs.
        name: the name it was asked for by, such as "kd:resnet20".
        config: JSON values (name and keywords) from which `models.build` makes it again; None for a live object.
        weights: where the initial weights came from, for the log.
        classes: class names in logit order when the model carries them, else None.
    """

    module: nn.Module
    preprocess: Preprocess
    name: str
    config: dict[str, Any] | None = None
    weights: str = "random"
    classes: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def fingerprint(module: nn.Module) -> str:
    """Return a hash over the names, shapes and bytes of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype}".encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
