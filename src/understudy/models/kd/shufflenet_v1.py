"""ShuffleNet (the first version) for small images."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from understudy.models.kd.network import (
    ChannelShuffle,
    CifarNetwork,
    check_keywords,
    convolution,
    scaled,
)


class ShuffleUnit(nn.Module):
    """Grouped 1x1 convolution, shuffle, 3x3 depthwise, grouped 1x1 convolution, and a shortcut.

    At stride 2 the shortcut is average-pooled and concatenated, else it is added; the input of
    `relu3` is the feature before the activation.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, groups: int, first_groups: int
    ) -> None:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride].

        Args:
            inputs: channels that come in.
            outputs: channels that go out; at stride 2 the last `inputs` of them are the shortcut.
            stride: 1 or 2.
            groups: of the second 1x1 convolution.
            first_groups: of the first 1x1 convolution and of the shuffle.
        """
        super().__init__()
        produced = outputs - inputs if stride == 2 else outputs
        hidden = produced // 4
        self.conv1 = convolution(inputs, hidden, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.relu1 = nn.ReLU()
        self.shuffle1 = ChannelShuffle(first_groups)
        self.conv2 = convolution(hidden, hidden, 3, stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.relu2 = nn.ReLU()
        self.conv3 = convolution(hidden, produced, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(produced)
        self.shortcut: nn.AvgPool2d | None = None
        if stride == 2:
            self.shortcut = nn.AvgPool2d(3, stride=2, padding=1)
        self.relu3 = nn.ReLU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the unit's output after the activation."""
        produced = self.shuffle1(self.relu1(self.bn1(self.conv1(features))))
        produced = self.relu2(self.bn2(self.conv2(produced)))
        produced = self.bn3(self.conv3(produced))
        output: torch.Tensor
        if self.shortcut is None:
            output = self.relu3(produced + features)
        else:
            output = self.relu3(torch.cat([produced, self.shortcut(features)], dim=1))
        return output


class ShuffleNetV1(CifarNetwork):
    """ShuffleNet 1x with 3 groups (Zhang et al. 2018, arXiv:1707.01083, table 1) for CIFAR-100.

    Deviations from the paper, as in RepDistiller and mdistiller: the stem is a 1x1 convolution at
    full resolution without max-pooling, and there is an activation after the depthwise convolution.

    Stages at 32x32 input: `relu` [B, 24, 32, 32], `layer1` [B, 240, 16, 16], `layer2` [B, 480, 8,
    8], `layer3` [B, 960, 4, 4].

    With `width`, channels are rounded to multiples of 12 (a quarter of them, inside a unit, makes 3
    groups), and each stage has at least 12 more than what comes in.

    Initial weights as in RepDistiller's `ShuffleNetv1.py`: PyTorch's defaults throughout.
    """

    stage_paths: ClassVar[tuple[str, ...]] = ("relu", "layer1", "layer2", "layer3")
    classifier_path: ClassVar[str] = "linear"

    def __init__(self, *, classes: int, in_channels: int = 3, width: float = 1.0) -> None:
        """Build ShuffleNet 1x with 3 groups.

        Args:
            classes: number of logits.
            in_channels: channels of the images.
            width: factor on all channels.

        Raises:
            ModelError: a keyword is out of range.
        """
        super().__init__()
        check_keywords(classes, in_channels, width)
        groups = 3
        multiple = 4 * groups
        stem = scaled(24, width, multiple)
        first = max(scaled(240, width, multiple), stem + multiple)
        second = max(scaled(480, width, multiple), first + multiple)
        third = max(scaled(960, width, multiple), second + multiple)
        self.conv1 = convolution(in_channels, stem, 1)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        # The stem has too few channels to be worth grouping (section 3.2 of the paper).
        self.layer1 = _stage(stem, first, units=4, groups=groups, first_groups=1)
        self.layer2 = _stage(first, second, units=8, groups=groups, first_groups=groups)
        self.layer3 = _stage(second, third, units=4, groups=groups, first_groups=groups)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(third, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] for `images` [B, in_channels, H, W]."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: torch.Tensor = self.linear(self.flatten(self.avgpool(features)))
        return logits


def _stage(inputs: int, outputs: int, units: int, groups: int, first_groups: int) -> nn.Sequential:
    first = ShuffleUnit(inputs, outputs, 2, groups, first_groups)
    rest = (ShuffleUnit(outputs, outputs, 1, groups, groups) for _ in range(units - 1))
    return nn.Sequential(first, *rest)
