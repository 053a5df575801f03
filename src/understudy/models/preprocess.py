"""From raw samples to what one model's forward takes. Belongs to the model, and says what it is as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional

from understudy.errors import ModelError, unknown_name
from understudy.models.configured import Configured, construct
from understudy.models.language_masked import MaskedPreprocess
from understudy.models.language_pairs import PairPreprocess
from understudy.models.language_preprocess import CausalPreprocess
from understudy.models.normalisation import (
    Normaliser,
    Statistics,
    channel_statistics,
    checked_statistics,
)
from understudy.models.text_preprocess import TEXT_INPUTS, TextPreprocess
from understudy.models.tokenizer import load_tokenizer

__all__ = [
    "TEXT_INPUTS",
    "AnyPreprocess",
    "ImagePreprocess",
    "Kind",
    "LanguagePreprocess",
    "Statistics",
    "TensorPreprocess",
    "TextPreprocess",
    "adjusted",
    "channel_statistics",
    "from_config",
    "plain_preprocess",
]

Kind = Literal["image", "text", "tensor"]
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


class ImagePreprocess(Configured):
    """Normalises images, after resizing them if they have another size.

    Args:
        mean: of each channel, for images in [0, 1].
        std: standard deviation of each channel, for images in [0, 1].
        size: height and width that the model takes (one number: both), None for the size of the data.
            Resizing is antialiased and does not crop.
        interpolation: "bilinear", "bicubic" or "nearest".
        channels: channels that the model takes, by default as many as `mean` has. Grey images are repeated to fill
            them.
        channels_last: whether to give the result in channels-last memory format. The numbers are the same, so this
            is no part of `config()`.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | Sequence[int] | None = None,
        interpolation: str = "bilinear",
        channels: int | None = None,
        channels_last: bool = False,
    ) -> None:
        self.channels = channels if channels is not None else len(mean)
        self.mean, self.std = checked_statistics(mean, std, self.channels)
        self.size = _checked_size(size)
        if interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
        self.interpolation = interpolation
        self.channels_last = channels_last
        self._bytes = Normaliser(self.mean, self.std, 255.0)
        self._floats = Normaliser(self.mean, self.std, 1.0)

    def __call__(self, raw: Any, device: torch.device) -> torch.Tensor:
        """Return float32 [B, channels, H, W] on `device` from uint8, or float in [0, 1], [B, C, H, W]."""
        if not isinstance(raw, torch.Tensor) or raw.dim() != 4:
            given = tuple(raw.shape) if isinstance(raw, torch.Tensor) else type(raw).__name__
            raise ModelError(f"Images come as a tensor [B, C, H, W], not as {given}.")
        if raw.shape[1] not in (1, self.channels):
            raise ModelError(
                f"The model takes {self.channels} channels, the images have {raw.shape[1]} "
                f"(shape {tuple(raw.shape)}). One channel can be repeated, other numbers cannot be converted."
            )
        if raw.dtype != torch.uint8 and not raw.is_floating_point():
            raise ModelError(f"Images are uint8 or float in [0, 1], not {raw.dtype}.")
        is_bytes = raw.dtype == torch.uint8
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        # Bytes travel to the device, floats are made there.
        moved = raw.to(device, non_blocking=True)
        values = moved.to(torch.float32, memory_format=layout)
        if self.size is not None and tuple(values.shape[2:]) != self.size:
            values = self._resized(values, 255.0 if is_bytes else 1.0)
        own = values is not raw and not values.requires_grad
        normalise = self._bytes if is_bytes else self._floats
        return normalise(values, in_place=own).contiguous(memory_format=layout)

    def _resized(self, values: torch.Tensor, largest: float) -> torch.Tensor:
        size = list(self.size or ())
        if self.interpolation == "nearest":
            return functional.interpolate(values, size, mode="nearest-exact")
        resized = functional.interpolate(values, size, mode=self.interpolation, antialias=True)
        # A cubic kernel overshoots; image libraries cut that off when they round to bytes.
        return resized.clamp(0.0, largest) if self.interpolation == "bicubic" else resized

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values."""
        return {
            "type": "image",
            "mean": list(self.mean),
            "std": list(self.std),
            "size": None if self.size is None else list(self.size),
            "interpolation": self.interpolation,
            "channels": self.channels,
        }


class TensorPreprocess(Configured):
    """Normalises plain tensors along dimension 1, or leaves them as they are.

    Args:
        mean: of each feature or channel (one value: of all), None for no normalisation.
        std: standard deviation likewise.
    """

    def __init__(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        if (mean is None) != (std is None):
            raise ModelError("Give both 'mean' and 'std', or neither.")
        self.mean: tuple[float, ...] | None = None
        self.std: tuple[float, ...] | None = None
        self._normalise: Normaliser | None = None
        if mean is not None and std is not None:
            self.mean, self.std = checked_statistics(mean, std, len(mean))
            self._normalise = Normaliser(self.mean, self.std, 1.0)

    def __call__(self, raw: Any, device: torch.device) -> torch.Tensor:
        """Return float32 [B, ...] on `device` from a tensor [B, ...]."""
        if not isinstance(raw, torch.Tensor) or raw.dim() < 1:
            raise ModelError(f"Samples come as a tensor [B, ...], not as {type(raw).__name__}.")
        values = raw.to(device, non_blocking=True).to(torch.float32)
        if self._normalise is None:
            return values
        count = len(self.mean or ())
        if values.dim() < 2 or count not in (1, values.shape[1]):
            raise ModelError(
                f"The preprocessing has statistics for {count} features, the samples have shape {tuple(raw.shape)}."
            )
        return self._normalise(values, in_place=values is not raw and not values.requires_grad)

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values."""
        return {
            "type": "tensor",
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
        }


LanguagePreprocess = CausalPreprocess | MaskedPreprocess | PairPreprocess
AnyPreprocess = ImagePreprocess | TextPreprocess | TensorPreprocess | LanguagePreprocess

_WITH_TOKENIZER: dict[str, type[TextPreprocess | LanguagePreprocess]] = {
    "text": TextPreprocess,
    "causal_lm": CausalPreprocess,
    "masked_lm": MaskedPreprocess,
    "seq2seq": PairPreprocess,
}


def plain_preprocess(
    kind: Kind, *, channels: int = 1, statistics: Statistics | None = None
) -> ImagePreprocess | TensorPreprocess:
    """Return the preprocessing of a model that brings none along: the data's own statistics, else no normalisation."""
    if kind == "text":
        raise ModelError(
            "A text model needs a tokenizer: give `preprocess: {tokenizer: FOLDER}` (and max_length, inputs)."
        )
    if kind == "tensor":
        return TensorPreprocess(*statistics) if statistics is not None else TensorPreprocess()
    mean, std = statistics if statistics is not None else ((0.0,), (1.0,))
    return ImagePreprocess(mean, std, channels=channels)


def from_config(config: Mapping[str, Any], *, tokenizer: Any = None) -> AnyPreprocess:
    """Rebuild what `config()` described.

    Args:
        config: the description; an unknown setting names the valid ones.
        tokenizer: for texts, the tokenizer or the folder that holds it. It must be the one that was described.
    """
    settings = dict(config)
    kind = settings.pop("type", None)
    if kind == "image":
        return construct(ImagePreprocess, "image preprocessing", settings)
    if kind == "tensor":
        return construct(TensorPreprocess, "tensor preprocessing", settings)
    if kind not in _WITH_TOKENIZER:
        known = ("image", "tensor", *_WITH_TOKENIZER)
        raise unknown_name("kind of preprocessing", str(kind), known)
    described = settings.pop("tokenizer", None)
    if tokenizer is None:
        raise ModelError("Text preprocessing needs its tokenizer.")
    if not callable(tokenizer):
        tokenizer = load_tokenizer(tokenizer)
    rebuilt = construct(_WITH_TOKENIZER[kind], "text preprocessing", settings, tokenizer)
    if described is not None and rebuilt.config()["tokenizer"] != described:
        raise ModelError("The tokenizer is not the one that the preprocessing was described with.")
    return rebuilt


def adjusted(base: AnyPreprocess, settings: Mapping[str, Any] | None) -> AnyPreprocess:
    """Return `base` with some of its settings replaced, such as {"size": 64} or {"max_length": 128}."""
    if not settings:
        return base
    config = base.config()
    if settings.get("type", config["type"]) != config["type"]:
        raise ModelError(
            f"The preprocessing given is for {settings['type']} data, the model takes {config['type']} data."
        )
    if not isinstance(base, ImagePreprocess | TensorPreprocess):
        changes = {name: value for name, value in settings.items() if name != "tokenizer"}
        return from_config({**config, **changes}, tokenizer=base.tokenizer)
    if isinstance(base, ImagePreprocess):
        config["channels_last"] = base.channels_last
    return from_config({**config, **settings})


def _checked_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ModelError(
            f"'size' is {size!r}; it must be a whole number of pixels, or height and width."
        )
    return (pair[0], pair[1])
