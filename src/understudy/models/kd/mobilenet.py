"""MobileNetV2 for small images."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from understudy.models.kd.network import (
    CifarNetwork,
    check_keywords,
    convolution,
    initialise,
    scaled,
)

_STAGES = (
    # (widened by the expansion?, channels, blocks, stride of the first block)
    (False, 16, 1, 1),
    (True, 24, 2, 1),
    (True, 32, 3, 2),
    (True, 64, 4, 2),
    (True, 96, 3, 1),
    (True, 160, 3, 2),
    (True, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 convolution up, 3x3 depthwise, 1x1 down; plus the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride].

        Inside, it has inputs * expansion channels.
        """
        super().__init__()
        hidden = inputs * expansion
        self.conv = nn.Sequential(
            convolution(inputs, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            convolution(hidden, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the block's output, not activated."""
        output: torch.Tensor = self.conv(features)
        return features + output if self.adds_input else output


class MobileNetV2(CifarNetwork):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381, table 2) for CIFAR-100.

    Deviations from the paper, as in RepDistiller and mdistiller: the second stage has stride 1, the
    first block keeps its 1x1 convolution at expansion 1, and activations are ReLU, not ReLU6.

    Stages at 32x32 input and multiplier 0.5: `conv1` [B, 16, 16, 16], `blocks.1` [B, 12, 16, 16],
    `blocks.2` [B, 16, 8, 8], `blocks.4` [B, 48, 4, 4], `blocks.6` [B, 160, 2, 2]. The pooled
    feature has 1280 channels.

    Initial weights as in RepDistiller's `mobilenetv2.py`: see `initialise`; the classifier is
    normal with standard deviation 0.01, bias 0.
    """

    stage_paths: ClassVar[tuple[str, ...]] = (
        "conv1",
        "blocks.1",
        "blocks.2",
        "blocks.4",
        "blocks.6",
    )
    classifier_path: ClassVar[str] = "classifier.0"

    def __init__(
        self,
        multiplier: float = 0.5,
        expansion: int = 6,
        *,
        classes: int,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        """Build a MobileNetV2.

        Args:
            multiplier: the paper's width multiplier; the last convolution keeps 1280 channels.
            expansion: the paper's t, how much wider a block is inside than at its ends.
            classes: number of logits.
            in_channels: channels of the images.
            width: further factor on all channels, the last convolution's too.

        Raises:
            ModelError: a keyword is out of range.
        """
        super().__init__()
        check_keywords(classes, in_channels, width)
        inputs = scaled(32, multiplier * width)
        last = scaled(1280, width)
        self.conv1 = _activated(in_channels, inputs, 3, stride=2)
        self.blocks = nn.ModuleList()
        for widened, channels, count, stride in _STAGES:
            outputs = scaled(channels, multiplier * width)
            stage = nn.Sequential()
            for position in range(count):
                stage.append(
                    InvertedResidual(
                        outputs if position else inputs,
                        outputs,
                        stride=1 if position else stride,
                        expansion=expansion if widened else 1,
                    )
                )
            self.blocks.append(stage)
            inputs = outputs
        self.conv2 = _activated(inputs, last, 1, stride=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        # A sequence of one, as in the published checkpoints.
        linear = nn.Linear(last, classes)
        self.classifier = nn.Sequential(linear)
        initialise(self)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] for `images` [B, in_channels, H, W]."""
        features = self.conv1(images)
        for stage in self.blocks:
            features = stage(features)
        features = self.conv2(features)
        logits: torch.Tensor = self.classifier(self.flatten(self.avgpool(features)))
        return logits


def _activated(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), nn.ReLU()
    )
