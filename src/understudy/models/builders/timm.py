"""`timm:` models of the timm library."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from understudy.errors import ModelError, UnknownName, unknown_name
from understudy.models.build import (
    Request,
    builders,
    call_constructor,
    load_file,
    refuse_reserved,
)
from understudy.models.model import Model
from understudy.models.optional import first_line, require
from understudy.models.preprocess import INTERPOLATIONS, AnyPreprocess, ImagePreprocess, adjusted

_RESERVED = {
    "num_classes": "the number of classes comes from the data",
    "checkpoint_path": "give the file as `weights`",
    "features_only": "taps read features without changing the model",
}
_ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")


@builders.register("timm")
class TimmBuilder:
    """`timm:resnet18`, `timm:resnet18.a1_in1k`, `timm:hf-hub:...`; keywords as in `timm.create_model`."""

    def names(self) -> list[str]:
        """Return the names of timm's architectures, without pretrained tags."""
        return list(require("timm", "vision").list_models())

    def build(self, request: Request) -> Model:
        """Make the model, with timm's pretrained weights for `weights: pretrained` (or `pretrained: true`)."""
        timm = require("timm", "vision")
        refuse_reserved(request, _RESERVED)
        keywords = dict(request.keywords)
        drop_head = bool(keywords.pop("drop_head", False))
        pretrained = bool(keywords.pop("pretrained", False)) or request.weights == "pretrained"
        if pretrained and request.weights not in (None, "pretrained"):
            raise ModelError(
                f"'{request.full_name}' was asked for timm's pretrained weights and for those in {request.weights}; "
                "choose one."
            )
        _check_name(timm, request.name)
        channels = request.image_channels()
        # A pretrained network keeps its three channels, and grey images are repeated: the same function as before.
        keywords.setdefault("in_chans", 3 if pretrained and channels == 1 else channels)
        module = self._create(timm, request, keywords, pretrained)
        preprocess = _preprocess(timm, module, request, keywords, pretrained)
        weights = (
            _describe_pretrained(module, request.classes)
            if pretrained
            else load_file(module, request, drop_head)
        )
        config = request.rebuilt_by(preprocess, **keywords)
        if config is not None and request.name.startswith(_ELSEWHERE):
            # Made again without asking the hub or the folder once more: from the architecture that was found there.
            own = {"num_classes", "in_chans"}
            found = {key: value for key, value in module._model_args.items() if key not in own}
            config = {**found, **config, "name": f"timm:{module.pretrained_cfg['architecture']}"}
        return Model(module, preprocess, request.full_name, config, weights, request.class_names)

    def _create(
        self, timm: Any, request: Request, keywords: dict[str, Any], pretrained: bool
    ) -> Any:
        def valid() -> Iterable[str]:
            # Only the constructor's signature is wanted; on the meta device it costs no memory.
            with torch.device("meta"):
                example = timm.create_model(request.name, pretrained=False)
            taken = set(inspect.signature(type(example).__init__).parameters)
            return (taken | {"drop_head", "pretrained"}) - {"self", "args", "kwargs", *_RESERVED}

        try:
            return call_constructor(
                timm.create_model,
                request.full_name,
                keywords,
                valid,
                model_name=request.name,
                num_classes=request.classes,
                pretrained=pretrained,
            )
        except (ModelError, UnknownName):
            raise
        except (OSError, ValueError, RuntimeError) as error:
            if not pretrained and not request.name.startswith(_ELSEWHERE):
                raise ModelError(
                    f"'{request.full_name}' cannot be built: {first_line(error)}"
                ) from error
            raise ModelError(
                f"The pretrained weights of '{request.full_name}' are neither in the local cache nor could they be "
                f"fetched ({first_line(error)}). Without a network, give a file as `weights`."
            ) from error


def _check_name(timm: Any, name: str) -> None:
    if name.startswith(_ELSEWHERE):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name("timm model", architecture, timm.list_models())
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        raise unknown_name(f"pretrained tag of 'timm:{architecture}'", tag, known)


def _preprocess(
    timm: Any, module: Any, request: Request, keywords: dict[str, Any], pretrained: bool
) -> AnyPreprocess:
    """Take timm's data configuration: all of it for pretrained weights, else only an input size that is fixed."""
    if request.kind != "image":
        return request.plain()
    data = timm.data.resolve_model_data_config(module)
    channels = keywords["in_chans"]
    size: tuple[int, int] | None = None
    built_for = getattr(getattr(module, "patch_embed", None), "img_size", None)
    if module.pretrained_cfg.get("fixed_input_size") and not keywords.get("dynamic_img_size"):
        size = built_for or data["input_size"][1:]
    elif pretrained:
        size = data["input_size"][1:]
    mean, std = data["mean"], data["std"]
    if request.statistics is not None and not pretrained:
        mean, std = request.statistics
    if len(mean) not in (1, channels):
        # timm's statistics are those of three colours; for other channels their average is as good as any.
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    interpolation = data["interpolation"] if data["interpolation"] in INTERPOLATIONS else "bicubic"
    base = ImagePreprocess(mean, std, size, interpolation, channels)
    return adjusted(base, request.preprocess)


def _describe_pretrained(module: Any, classes: int) -> str:
    known = module.pretrained_cfg
    source = known.get("hf_hub_id") or known.get("url") or known.get("tag") or "pretrained"
    before = known.get("num_classes")
    head = f", classifier new ({before} -> {classes} classes)" if before != classes else ""
    return f"timm {source}{head}"
