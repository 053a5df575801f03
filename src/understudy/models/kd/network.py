"""What the `kd:` networks share: tap points, keywords, initial weights and small layers."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from understudy.errors import ModelError


class CifarNetwork(nn.Module):
    """Base of the small networks that distillation papers compare on CIFAR-100.

    A subclass maps images [B, in_channels, H, W] to logits [B, classes], whatever H and W from 8
    up. None of its modules works in place and none is called twice in a forward, so each may be
    tapped on its input or its output.

    Attributes:
        stage_paths: module paths of the stem and the stages, in the order in which they run.
        pooled_path: module path whose output is what the classifier reads, pooled [B, D].
        classifier_path: module path of the last linear layer.
    """

    stage_paths: ClassVar[tuple[str, ...]]
    pooled_path: ClassVar[str] = "flatten"
    classifier_path: ClassVar[str]

    def tap_stages(self) -> list[str]:
        """Return the module paths of the stem and of each stage, in the order in which they run.

        They are the places where RepDistiller and mdistiller take features, so that published
        settings carry over.
        """
        return list(self.stage_paths)


def check_keywords(classes: int, in_channels: int, width: float) -> None:
    """Refuse keywords from which no network can be built.

    Raises:
        ModelError: `classes` or `in_channels` is not a whole number of at least 1, or `width` is
            not a finite number above 0.
    """
    for name, value in (("classes", classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"'{name}' is {value!r}; it must be a whole number of at least 1.")
    is_number = isinstance(width, int | float) and not isinstance(width, bool)
    if not is_number or not math.isfinite(width) or width <= 0:
        raise ModelError(
            f"'width' is {width!r}; it must be a number above 0 (1.0 is as published)."
        )


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Return `channels` * `width`, rounded to the nearest multiple of `multiple` above 0."""
    return max(1, int(channels * width / multiple + 0.5)) * multiple


def initialise(network: nn.Module) -> None:
    """Draw the weights of convolutions and batch norms in `network` as He et al. do.

    Convolutions: normal with variance 2 / (kernel area * output channels) ("fan out", He et al.
    2015, arXiv:1502.01852, eq. 14); grouped ones count all output channels, as the published code
    does. Convolution biases are 0, batch norms start at scale 1 and shift 0 (also the last one of a
    residual branch). Linear layers are left alone.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias that keeps the size of the map at stride 1."""
    return nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )


class ChannelShuffle(nn.Module):
    """Interleaves the channels of `groups` groups, so that the next grouped layer sees all of them.

    [B, C, H, W] -> the same shape, where output channel j * groups + g is input channel g * (C /
    groups) + j (Zhang et al. 2018, arXiv:1707.01083, fig. 1).
    """

    def __init__(self, groups: int) -> None:
        """Shuffle between `groups` groups; the number of channels must be a multiple of it."""
        super().__init__()
        self.groups = groups

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return `features` with the channels interleaved."""
        batch, channels, height, width = features.shape
        grouped = features.reshape(batch, self.groups, channels // self.groups, height, width)
        return grouped.transpose(1, 2).reshape(batch, channels, height, width)

    def extra_repr(self) -> str:
        """Return what is shown between the brackets when a network is printed."""
        return f"groups={self.groups}"
