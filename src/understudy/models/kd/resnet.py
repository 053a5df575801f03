"""CIFAR ResNets: three stages of basic blocks on a 3x3 stem."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models.kd.network import (
    CifarNetwork,
    check_keywords,
    convolution,
    initialise,
    scaled,
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: relu2(bn2(conv2(relu1(bn1(conv1(x))))) + shortcut(x)).

    The shortcut is the identity, or a 1x1 convolution with batch norm where stride or channels
    change. The input of `relu2` is the block's feature before the activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        self.relu2 = nn.ReLU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the block's output after the activation."""
        shortcut = features if self.downsample is None else self.downsample(features)
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(features)))))
        output: torch.Tensor = self.relu2(residual + shortcut)
        return output


class ResNet(CifarNetwork):
    """ResNet for small images (He et al. 2016, arXiv:1512.03385, section 4.2).

    Deviation from the paper, as in RepDistiller and mdistiller: shortcuts that change the shape are
    1x1 convolutions with batch norm, where the paper pads with zeros. Parameter names are theirs,
    which are also torchvision's.

    Stages at 32x32 input: `relu` [B, channels[0], 32, 32], `layer1` [B, channels[1], 32, 32],
    `layer2` [B, channels[2], 16, 16], `layer3` [B, channels[3], 8, 8].

    Initial weights as in RepDistiller's `resnet.py`: see `initialise`; the classifier has PyTorch's
    default.
    """

    stage_paths: ClassVar[tuple[str, ...]] = ("relu", "layer1", "layer2", "layer3")
    classifier_path: ClassVar[str] = "fc"

    def __init__(
        self,
        depth: int,
        channels: tuple[int, int, int, int],
        *,
        classes: int,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        """Build a network of `depth` weighted layers.

        Args:
            depth: 6n + 2, for n blocks per stage.
            channels: of the stem and the three stages, before `width`.
            classes: number of logits.
            in_channels: channels of the images.
            width: factor on all channels.

        Raises:
            ModelError: `depth` is not of the form 6n + 2, or a keyword is out of range.
        """
        super().__init__()
        check_keywords(classes, in_channels, width)
        if depth < 8 or (depth - 2) % 6:
            raise ModelError(
                f"A CIFAR ResNet has 6n + 2 layers (8, 14, 20, 32, 44, 56, 110, ...), not {depth}."
            )
        blocks = (depth - 2) // 6
        stem, first, second, third = (scaled(count, width) for count in channels)
        self.conv1 = convolution(in_channels, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(third, classes)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] for `images` [B, in_channels, H, W]."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: torch.Tensor = self.fc(self.flatten(self.avgpool(features)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
