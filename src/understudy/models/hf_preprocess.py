"""What the inputs of a transformers model have to look like, read off the model and the files beside it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import nn

from understudy.errors import ModelError
from understudy.models.build import Request
from understudy.models.preprocess import (
    TEXT_INPUTS,
    AnyPreprocess,
    ImagePreprocess,
    TextPreprocess,
    adjusted,
)

_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_UNLIMITED = 10**9


def text_preprocess(request: Request, module: Any, tokenizer: Any) -> AnyPreprocess:
    """Encode texts by `tokenizer`, cut to what the model has positions for."""
    taken = inspect.signature(module.forward).parameters
    inputs = [name for name in TEXT_INPUTS if name in taken]
    if "token_type_ids" in inputs and not _has_segments(module.config):
        inputs.remove("token_type_ids")
    limits = [limit for limit in (positions(module), tokenizer.model_max_length) if limit]
    longest = min(limits) if limits and min(limits) < _UNLIMITED else None
    preprocess = adjusted(TextPreprocess(tokenizer, longest, inputs), request.preprocess)
    assert isinstance(preprocess, TextPreprocess)
    limit = positions(module)
    if limit is not None and (preprocess.max_length is None or preprocess.max_length > limit):
        raise ModelError(
            f"'{request.full_name}' has positions for {limit} tokens; 'max_length' is {preprocess.max_length}."
        )
    return preprocess


def positions(module: nn.Module) -> int | None:
    """Return how many tokens a transformers text model has positions for; None where there is no limit."""
    limit = getattr(module.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    return limit - first_position(module)


def first_position(module: nn.Module) -> int:
    """Return the position of a sequence's first token in a transformers text model."""
    for name, part in module.named_modules():
        # In RoBERTa and its kin, positions are counted from behind the padding index.
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return int(part.padding_idx) + 1
    return 0


def _has_segments(config: Any) -> bool:
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1 or config.model_type == "xlnet"


def image_preprocess(request: Request, module: Any, place: str | None) -> AnyPreprocess:
    """Normalise as the model's preprocessor file says; a fresh model takes the data's statistics."""
    channels = int(getattr(module.config, "num_channels", 3))
    if place is None:
        base = request.plain(channels)
        size = _fixed_size(module)
        if size is not None and "size" not in (request.preprocess or {}):
            return adjusted(base, {"size": size})
        return base
    return adjusted(_from_file(request, place, channels), request.preprocess)


def _from_file(request: Request, place: str, channels: int) -> ImagePreprocess:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(place)
    except OSError as error:
        if (
            Path(place).is_dir()
            and request.preprocess
            and {"mean", "std"} <= set(request.preprocess)
        ):
            return ImagePreprocess((0.0,), (1.0,), channels=channels)
        raise ModelError(
            f"'{request.full_name}' has no preprocessor_config.json, so its mean, standard deviation and input size "
            "are not known. Give them as `preprocess: {mean: ..., std: ..., size: ...}`."
        ) from error
    normalised = settings.get("do_normalize", True)
    mean = settings.get("image_mean") if normalised else None
    std = settings.get("image_std") if normalised else None
    # 255 * x * factor is what the model's own processor normalises; ours normalises x in [0, 1].
    factor = (
        255.0 * settings.get("rescale_factor", 1 / 255)
        if settings.get("do_rescale", True)
        else 255.0
    )
    if settings.get("rescale_offset"):
        raise ModelError(
            f"The processor of '{request.full_name}' shifts pixel values ('rescale_offset'); give `preprocess` instead."
        )
    mean = [value / factor for value in (mean or [0.0] * channels)]
    std = [value / factor for value in (std or [1.0] * channels)]
    size = _size(
        settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    )
    wanted = settings.get("resample", 2)
    if wanted not in _RESAMPLING and "interpolation" not in (request.preprocess or {}):
        raise ModelError(
            f"The processor of '{request.full_name}' resizes by filter {wanted}, which is none of nearest, bilinear "
            "and bicubic. Choose one as `preprocess: {interpolation: bicubic}`."
        )
    return ImagePreprocess(
        mean,
        std,
        size if settings.get("do_resize", True) else None,
        _RESAMPLING.get(wanted, "bicubic"),
        channels,
    )


def _size(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, list | tuple):
        return (int(size[0]), int(size[1]))
    if isinstance(size, dict) and "height" in size:
        return (int(size["height"]), int(size["width"]))
    if isinstance(size, dict) and "shortest_edge" in size:
        return (int(size["shortest_edge"]), int(size["shortest_edge"]))
    return None


def _fixed_size(module: Any) -> tuple[int, int] | None:
    """Return the size that a fresh model is built for, None where any size will do (no learnt positions)."""
    size = getattr(module.config, "image_size", None)
    if size is None or not any("position" in name for name, _ in module.named_parameters()):
        return None
    return _size(size)
