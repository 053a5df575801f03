"""`torchvision:` classification models of torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from understudy.errors import ModelError, suggestion, unknown_name
from understudy.models.build import (
    Request,
    builders,
    call_constructor,
    load_file,
    refuse_reserved,
)
from understudy.models.model import Model
from understudy.models.optional import first_line, require
from understudy.models.preprocess import AnyPreprocess, ImagePreprocess, adjusted

_CHANNELS = 3
_RESERVED = {
    "num_classes": "the number of classes comes from the data",
    "progress": "nothing is printed",
    "weights_backbone": "give `weights`",
}


@builders.register("torchvision")
class TorchvisionBuilder:
    """`torchvision:resnet18`; keywords as in torchvision, `weights` a name such as DEFAULT, or a file."""

    def names(self) -> list[str]:
        """Return the names of torchvision's classification models."""
        torchvision = require("torchvision", "vision")
        return list(torchvision.models.list_models(module=torchvision.models))

    def build(self, request: Request) -> Model:
        """Make the model. Its three input channels are fixed; grey images are repeated to fill them."""
        models = require("torchvision", "vision").models
        refuse_reserved(request, _RESERVED)
        listed = self.names()
        if request.name not in listed:
            raise unknown_name("torchvision model", request.name, listed)
        if request.image_channels() not in (1, _CHANNELS):
            raise ModelError(
                f"'{request.full_name}' takes {_CHANNELS} channels, the data have {request.image_channels()}."
            )
        keywords = dict(request.keywords)
        drop_head = bool(keywords.pop("drop_head", False))
        offered = models.get_model_weights(request.name)
        chosen = _chosen(offered, request)

        def valid() -> Iterable[str]:
            with torch.device("meta"):
                example = models.get_model(request.name, weights=None)
            taken = set(inspect.signature(type(example).__init__).parameters)
            return (taken | {"drop_head"}) - {"self", "args", "kwargs", *_RESERVED}

        module = call_constructor(
            models.get_model,
            request.full_name,
            keywords,
            valid,
            name=request.name,
            weights=None,
            num_classes=request.classes,
        )
        preprocess = _preprocess(module, request, chosen)
        weights = (
            load_file(module, request, drop_head)
            if chosen is None
            else _load_chosen(module, request, chosen)
        )
        config = request.rebuilt_by(preprocess, **keywords)
        return Model(module, preprocess, request.full_name, config, weights, request.class_names)


def _chosen(offered: Any, request: Request) -> Any:
    """Return the member of torchvision's weights that was asked for, None for a file or for nothing."""
    wanted = request.weights
    if wanted is None or "/" in wanted or "." in wanted:
        return None
    valid = ["DEFAULT", *offered.__members__]
    if wanted not in offered.__members__:
        raise ModelError(
            f"'{request.full_name}' has no weights called '{wanted}'. {suggestion(wanted, valid)} "
            "A file is named by a path with a '/' or an extension."
        )
    return offered[wanted]


def _load_chosen(module: Any, request: Request, chosen: Any) -> str:
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"The weights {chosen} of '{request.full_name}' are neither in the local cache nor could they be fetched "
            f"({first_line(error)}). Without a network, give a file as `weights`."
        ) from error
    before = len(chosen.meta["categories"])
    head = ""
    if before != request.classes:
        own = module.state_dict()
        state = {name: value for name, value in state.items() if value.shape == own[name].shape}
        head = f", classifier new ({before} -> {request.classes} classes)"
    module.load_state_dict(state, strict=before == request.classes)
    return f"torchvision {chosen}{head}"


def _preprocess(module: Any, request: Request, chosen: Any) -> AnyPreprocess:
    """Take the statistics and size that the weights were trained with; a fresh model takes the data's."""
    if request.kind != "image":
        return request.plain()
    if chosen is not None:
        preset = chosen.transforms()
        base: AnyPreprocess = ImagePreprocess(
            preset.mean, preset.std, preset.crop_size[0], str(preset.interpolation.value), _CHANNELS
        )
        return adjusted(base, request.preprocess)
    # Transformers are built for one size of image.
    fixed = getattr(module, "image_size", None)
    if isinstance(fixed, int) and "size" not in (request.preprocess or {}):
        return adjusted(request.plain(_CHANNELS), {"size": fixed})
    return request.plain(_CHANNELS)
