"""The `kd:` family by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from understudy.errors import unknown_name
from understudy.models.kd.mobilenet import MobileNetV2
from understudy.models.kd.network import CifarNetwork
from understudy.models.kd.resnet import ResNet
from understudy.models.kd.shufflenet_v1 import ShuffleNetV1
from understudy.models.kd.shufflenet_v2 import ShuffleNetV2
from understudy.models.kd.vgg import VGG
from understudy.models.kd.wide_resnet import WideResNet

_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)

_NETWORKS: dict[str, Callable[..., CifarNetwork]] = {
    "resnet8": partial(ResNet, 8, _NARROW),
    "resnet14": partial(ResNet, 14, _NARROW),
    "resnet20": partial(ResNet, 20, _NARROW),
    "resnet32": partial(ResNet, 32, _NARROW),
    "resnet44": partial(ResNet, 44, _NARROW),
    "resnet56": partial(ResNet, 56, _NARROW),
    "resnet110": partial(ResNet, 110, _NARROW),
    "resnet8x4": partial(ResNet, 8, _WIDE),
    "resnet32x4": partial(ResNet, 32, _WIDE),
    "wrn16_1": partial(WideResNet, 16, 1),
    "wrn16_2": partial(WideResNet, 16, 2),
    "wrn40_1": partial(WideResNet, 40, 1),
    "wrn40_2": partial(WideResNet, 40, 2),
    "vgg8": partial(VGG, 1),
    "vgg13": partial(VGG, 2),
    "mobilenetv2_half": MobileNetV2,
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
}

_PUBLISHED_NAMES = {
    "wrn_16_1": "wrn16_1",
    "wrn_16_2": "wrn16_2",
    "wrn_40_1": "wrn40_1",
    "wrn_40_2": "wrn40_2",
    "MobileNetV2": "mobilenetv2_half",
    "ShuffleV1": "shufflenetv1",
    "ShuffleV2": "shufflenetv2",
}


def names() -> list[str]:
    """Return the names of the family, sorted."""
    return sorted(_NETWORKS)


def build(
    name: str,
    *,
    classes: int,
    in_channels: int = 3,
    width: float = 1.0,
    **unknown: object,
) -> CifarNetwork:
    """Build a network of the family with fresh weights, drawn from PyTorch's global generator.

    Args:
        name: one of `names()`, or RepDistiller's name for it (`wrn_40_2`, `ShuffleV1`, ...).
        classes: number of logits.
        in_channels: channels of the images.
        width: factor on all channels; 1.0 is the published size, 0.25 suits 8x8 digits.
        unknown: nothing else is taken; a misspelt keyword is answered with the right one.

    Returns:
        A module from images [B, in_channels, H, W] to logits [B, classes].

    Raises:
        UnknownName: the network or a keyword does not exist.
        ModelError: a keyword is out of range.
    """
    constructor = _NETWORKS.get(_PUBLISHED_NAMES.get(name, name))
    if constructor is None:
        raise unknown_name("kd model", name, _NETWORKS)
    for keyword in unknown:
        raise unknown_name(f"keyword of kd:{name}", keyword, ("classes", "in_channels", "width"))
    return constructor(classes=classes, in_channels=in_channels, width=width)
