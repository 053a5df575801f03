"""ShuffleNetV2 for small images."""

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


class SplitUnit(nn.Module):
    """Half of the channels pass, the other half go through convolutions; then a shuffle."""

    def __init__(self, channels: int) -> None:
        """Map [B, channels, H, W] to the same shape; `channels` is even."""
        super().__init__()
        half = channels // 2
        self.conv1 = convolution(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the shuffled halves."""
        kept, changed = features.chunk(2, dim=1)
        changed = self.relu1(self.bn1(self.conv1(changed)))
        changed = self.bn2(self.conv2(changed))
        changed = self.relu3(self.bn3(self.conv3(changed)))
        output: torch.Tensor = self.shuffle(torch.cat([kept, changed], dim=1))
        return output


class DownsamplingUnit(nn.Module):
    """Two branches at stride 2, each giving half of the output channels; then a shuffle."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Map [B, inputs, H, W] to [B, outputs, H / 2, W / 2]; `outputs` is even."""
        super().__init__()
        half = outputs // 2
        self.conv1 = convolution(inputs, inputs, 3, 2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = convolution(inputs, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv3 = convolution(inputs, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = convolution(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = convolution(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the shuffled branches."""
        short = self.bn1(self.conv1(features))
        short = self.relu2(self.bn2(self.conv2(short)))
        long = self.relu3(self.bn3(self.conv3(features)))
        long = self.bn4(self.conv4(long))
        long = self.relu5(self.bn5(self.conv5(long)))
        output: torch.Tensor = self.shuffle(torch.cat([short, long], dim=1))
        return output


class ShuffleNetV2(CifarNetwork):
    """ShuffleNetV2 1x (Ma et al. 2018, arXiv:1807.11164, table 5) for CIFAR-100.

    Deviation from the paper, as in RepDistiller and mdistiller: the stem is a 1x1 convolution at
    full resolution without max-pooling.

    Stages at 32x32 input: `relu` [B, 24, 32, 32], `layer1` [B, 116, 16, 16], `layer2` [B, 232, 8,
    8], `layer3` [B, 464, 4, 4]. The pooled feature has 1024 channels.

    With `width`, the channels of the stages are rounded to multiples of 2.

    Initial weights as in RepDistiller's `ShuffleNetv2.py`: PyTorch's defaults throughout.
    """

    stage_paths: ClassVar[tuple[str, ...]] = ("relu", "layer1", "layer2", "layer3")
    classifier_path: ClassVar[str] = "linear"

    def __init__(self, *, classes: int, in_channels: int = 3, width: float = 1.0) -> None:
        """Build ShuffleNetV2 1x.

        Args:
            classes: number of logits.
            in_channels: channels of the images.
            width: factor on all channels, the last convolution's too.

        Raises:
            ModelError: a keyword is out of range.
        """
        super().__init__()
        check_keywords(classes, in_channels, width)
        stem = scaled(24, width)
        first, second, third = (scaled(count, width, multiple=2) for count in (116, 232, 464))
        last = scaled(1024, width)
        self.conv1 = convolution(in_channels, stem, 1)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(stem, first, units=4)
        self.layer2 = _stage(first, second, units=8)
        self.layer3 = _stage(second, third, units=4)
        self.conv2 = convolution(third, last, 1)
        self.bn2 = nn.BatchNorm2d(last)
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(last, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] for `images` [B, in_channels, H, W]."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        features = self.relu2(self.bn2(self.conv2(features)))
        logits: torch.Tensor = self.linear(self.flatten(self.avgpool(features)))
        return logits


def _stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(
        DownsamplingUnit(inputs, outputs), *(SplitUnit(outputs) for _ in range(units - 1))
    )
