"""From raw samples to what one model's forward takes. Belongs to the model, and says what it is as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional

from understudy.errors import ModelError, suggestion, unknown_name
from understudy.models.tokenizer import load_tokenizer, tokenizer_fingerprint

Kind = Literal["image", "text", "tensor"]
Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, images in [0, 1]."""

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _EqualByConfig:
    """Two preprocessings are equal when their configurations are."""

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values."""
        raise TypeError(f"{type(self).__name__} does not say what it is.")

    def __eq__(self, other: object) -> bool:
        """Compare configurations."""
        return isinstance(other, _EqualByConfig) and self.config() == other.config()

    def __hash__(self) -> int:
        """Hash the configuration."""
        return hash(repr(sorted(self.config().items(), key=lambda item: item[0])))

    def __repr__(self) -> str:
        """Show the configuration."""
        return f"{type(self).__name__}({self.config()})"


class _Affine:
    """x -> x * scale + shift along dimension 1, with the constants kept on each device that was used."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], unit: float) -> None:
        """Compute (x / unit - mean) / std in one multiplication and one addition."""
        self._scale = [1.0 / (unit * deviation) for deviation in std]
        self._shift = [-average / deviation for average, deviation in zip(mean, std, strict=True)]
        self._constants: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, values: torch.Tensor, *, in_place: bool) -> torch.Tensor:
        """Apply to float32 [B, C, ...]; `in_place` may only be set for a tensor that nobody else holds."""
        place = (str(values.device), values.dim())
        if place not in self._constants:
            shape = (1, -1, *([1] * (values.dim() - 2)))
            # Made outside of inference mode, whatever mode the first caller is in: a later one may want gradients.
            with torch.inference_mode(False):
                self._constants[place] = (
                    torch.tensor(self._scale, device=values.device).view(shape),
                    torch.tensor(self._shift, device=values.device).view(shape),
                )
        scale, shift = self._constants[place]
        if in_place and scale.shape[1] in (1, values.shape[1]):
            return torch.addcmul(shift, values, scale, out=values)
        return torch.addcmul(shift, values, scale)


class ImagePreprocess(_EqualByConfig):
    """Normalises images, after resizing them if they have another size.

    Args:
        mean: of each channel, for images in [0, 1].
        std: standard deviation of each channel, for images in [0, 1].
        size: height and width that the model takes (one number: both), None for the size of the data.
            Resizing is antialiased and does not crop.
        interpolation: "bilinear", "bicubic" or "nearest".
        channels: channels that the model takes, by default as many as `mean` has. Grey images are repeated to fill them.
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
        """Check the settings."""
        self.channels = channels if channels is not None else len(mean)
        self.mean, self.std = _checked_statistics(mean, std, self.channels)
        self.size = _checked_size(size)
        if interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
        self.interpolation = interpolation
        self.channels_last = channels_last
        self._from_bytes = _Affine(self.mean, self.std, 255.0)
        self._from_floats = _Affine(self.mean, self.std, 1.0)

    def __call__(self, raw: Any, device: torch.device) -> torch.Tensor:
        """Return float32 [B, channels, H, W] on `device` from uint8, or float in [0, 1], [B, C, H, W]."""
        if not isinstance(raw, torch.Tensor) or raw.dim() != 4:
            shape = tuple(raw.shape) if isinstance(raw, torch.Tensor) else type(raw).__name__
            raise ModelError(f"Images come as a tensor [B, C, H, W], not as {shape}.")
        if raw.shape[1] not in (1, self.channels):
            raise ModelError(
                f"The model takes {self.channels} channels, the images have {raw.shape[1]} "
                f"(shape {tuple(raw.shape)}). One channel can be repeated, other numbers cannot be converted."
            )
        if raw.dtype != torch.uint8 and not raw.is_floating_point():
            raise ModelError(f"Images are uint8 or float in [0, 1], not {raw.dtype}.")
        affine = self._from_bytes if raw.dtype == torch.uint8 else self._from_floats
        # Bytes travel to the device, floats are made there.
        moved = raw.to(device, non_blocking=True)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        values = moved.to(torch.float32, memory_format=layout)
        if self.size is not None and tuple(values.shape[2:]) != self.size:
            values = self._resized(values, 255.0 if raw.dtype == torch.uint8 else 1.0)
        fresh = values.data_ptr() != raw.data_ptr() and not values.requires_grad
        result = affine(values, in_place=fresh)
        return result.contiguous(memory_format=layout)

    def _resized(self, values: torch.Tensor, largest: float) -> torch.Tensor:
        if self.interpolation == "nearest":
            return functional.interpolate(values, self.size, mode="nearest-exact")
        resized = functional.interpolate(
            values, self.size, mode=self.interpolation, align_corners=False, antialias=True
        )
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


class TensorPreprocess(_EqualByConfig):
    """Normalises plain tensors along dimension 1, or leaves them as they are.

    Args:
        mean: of each feature or channel (one value: of all), None for no normalisation.
        std: standard deviation likewise.
    """

    def __init__(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        """Check the settings."""
        if (mean is None) != (std is None):
            raise ModelError("Give both `mean` and `std`, or neither.")
        self.mean: tuple[float, ...] | None = None
        self.std: tuple[float, ...] | None = None
        self._affine: _Affine | None = None
        if mean is not None and std is not None:
            self.mean, self.std = _checked_statistics(mean, std, len(mean))
            self._affine = _Affine(self.mean, self.std, 1.0)

    def __call__(self, raw: Any, device: torch.device) -> torch.Tensor:
        """Return float32 [B, ...] on `device` from a tensor [B, ...]."""
        if not isinstance(raw, torch.Tensor) or raw.dim() < 1:
            raise ModelError(f"Samples come as a tensor [B, ...], not as {type(raw).__name__}.")
        values = raw.to(device, non_blocking=True).to(torch.float32)
        if self._affine is None:
            return values
        count = len(self.mean or ())
        if values.dim() < 2 or count not in (1, values.shape[1]):
            raise ModelError(
                f"The preprocessing has statistics for {count} features, the samples have shape {tuple(raw.shape)}."
            )
        fresh = values.data_ptr() != raw.data_ptr() and not values.requires_grad
        return self._affine(values, in_place=fresh)

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values."""
        return {
            "type": "tensor",
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
        }


class TextPreprocess(_EqualByConfig):
    """Encodes texts, or pairs of texts, by a tokenizer.

    Args:
        tokenizer: a `transformers` tokenizer with a padding token.
        max_length: longest encoding in tokens; a longer text is cut. None: whatever the tokenizer gives.
        inputs: which of "input_ids", "attention_mask" and "token_type_ids" the model takes.
        dynamic: pad to the longest text of the batch; otherwise always to `max_length`.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None = None,
        inputs: Sequence[str] = ("input_ids", "attention_mask"),
        dynamic: bool = True,
    ) -> None:
        """Check the settings."""
        for name in inputs:
            if name not in TEXT_INPUTS:
                raise unknown_name("text input", name, TEXT_INPUTS)
        if "input_ids" not in inputs:
            raise ModelError("A text model takes at least 'input_ids'.")
        if tokenizer.pad_token_id is None:
            raise ModelError(
                "The tokenizer has no padding token, so texts of different lengths cannot share a batch. "
                "Set its `pad_token`."
            )
        if max_length is not None and max_length < 1:
            raise ModelError(f"'max_length' is {max_length}; it must be at least 1.")
        if not dynamic and max_length is None:
            raise ModelError("Padding to a fixed length (dynamic: false) needs 'max_length'.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.inputs = tuple(name for name in TEXT_INPUTS if name in inputs)
        self.dynamic = dynamic
        self._fingerprint = tokenizer_fingerprint(tokenizer)

    def __call__(self, raw: Any, device: torch.device) -> dict[str, torch.Tensor]:
        """Return int64 [B, L] tensors by input name, on `device`, from strings or pairs of strings."""
        first, second = _texts(raw)
        encoded = self.tokenizer(
            first,
            second,
            padding="longest" if self.dynamic else "max_length",
            truncation=self.max_length is not None,
            max_length=self.max_length,
            return_attention_mask=True,
            return_token_type_ids="token_type_ids" in self.inputs,
            return_tensors="pt",
        )
        return {name: encoded[name].to(device, non_blocking=True) for name in self.inputs}

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values; the tokenizer stands there by a hash of its content."""
        return {
            "type": "text",
            "tokenizer": self._fingerprint,
            "max_length": self.max_length,
            "inputs": list(self.inputs),
            "dynamic": self.dynamic,
        }


def _texts(raw: Any) -> tuple[list[str], list[str] | None]:
    """Split a batch into first texts and second texts (None: no pairs)."""
    if not isinstance(raw, list | tuple) or not raw:
        raise ModelError(
            f"Texts come as a list of strings or of pairs of strings, not as {type(raw).__name__}."
        )
    if all(isinstance(item, str) for item in raw):
        return list(raw), None
    for item in raw:
        pair = isinstance(item, list | tuple) and len(item) == 2
        if not pair or not all(isinstance(part, str) for part in item):
            raise ModelError(
                "A batch of texts holds strings only, or pairs of strings only; "
                f"this one holds {item!r:.80}."
            )
    return [item[0] for item in raw], [item[1] for item in raw]


AnyPreprocess = ImagePreprocess | TextPreprocess | TensorPreprocess


def from_config(config: Mapping[str, Any], *, tokenizer: Any = None) -> AnyPreprocess:
    """Rebuild what `config()` described.

    Args:
        config: the description; an unknown setting names the valid ones.
        tokenizer: for texts, the tokenizer or the folder that holds it. It must be the one that was described.
    """
    settings = dict(config)
    kind = settings.pop("type", None)
    kinds: dict[Any, type[AnyPreprocess]] = {
        "image": ImagePreprocess,
        "text": TextPreprocess,
        "tensor": TensorPreprocess,
    }
    if kind not in kinds:
        raise unknown_name("kind of preprocessing", str(kind), kinds)
    if kind != "text":
        return kinds[kind](**_known(kind, settings))
    described = settings.pop("tokenizer", None)
    if tokenizer is None:
        raise ModelError("Text preprocessing needs its tokenizer.")
    if not callable(tokenizer):
        tokenizer = load_tokenizer(tokenizer)
    if described is not None and tokenizer_fingerprint(tokenizer) != described:
        raise ModelError("The tokenizer is not the one that the model was used with before.")
    return TextPreprocess(tokenizer, **_known(kind, settings))


def adjusted(base: AnyPreprocess, settings: Mapping[str, Any] | None) -> AnyPreprocess:
    """Return `base` with some of its settings replaced, such as {"size": 64} or {"max_length": 128}."""
    if not settings:
        return base
    config = base.config()
    if settings.get("type", config["type"]) != config["type"]:
        raise ModelError(
            f"The preprocessing given is for {settings['type']} data, the model takes {config['type']} data."
        )
    if isinstance(base, TextPreprocess):
        changes = {name: value for name, value in settings.items() if name != "tokenizer"}
        return from_config({**config, **changes}, tokenizer=base.tokenizer)
    if isinstance(base, ImagePreprocess) and "mean" in settings and "channels" not in settings:
        config["channels"] = max(base.channels, len(settings["mean"]))
    result = from_config({**config, **settings})
    if isinstance(result, ImagePreprocess) and isinstance(base, ImagePreprocess):
        result.channels_last = base.channels_last
    return result


_SETTINGS = {
    "image": ("mean", "std", "size", "interpolation", "channels", "channels_last"),
    "text": ("tokenizer", "max_length", "inputs", "dynamic"),
    "tensor": ("mean", "std"),
}


def _known(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    for name in settings:
        if name not in _SETTINGS[kind]:
            raise unknown_name(f"setting of {kind} preprocessing", name, _SETTINGS[kind])
    return settings
