"""Wide ResNets: pre-activated blocks, with the stages widened."""

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


class PreActivationBlock(nn.Module):
    """Two pre-activated 3x3 convolutions and a shortcut.

    Where stride or channels change, the shortcut is a 1x1 convolution that reads the activated
    input relu1(bn1(x)); elsewhere it is the identity on x itself. The output is the bare sum, not
    activated.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = convolution(outputs, outputs, 3)
        # Spelled as in the published checkpoints.
        self.convShortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != outputs:
            self.convShortcut = convolution(inputs, outputs, 1, stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the sum of shortcut and residual."""
        activated = self.relu1(self.bn1(features))
        residual: torch.Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        shortcut = features if self.convShortcut is None else self.convShortcut(activated)
        return residual + shortcut


class WideStage(nn.Module):
    """A run of pre-activation blocks, held in `layer` as in the published checkpoints."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride] in `blocks` blocks."""
        super().__init__()
        first = PreActivationBlock(inputs, outputs, stride)
        rest = (PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the last block's sum, not activated."""
        output: torch.Tensor = self.layer(features)
        return output


class WideResNet(CifarNetwork):
    """WRN-depth-k without dropout (Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1).

    Stages at 32x32 input: `conv1` [B, 16, 32, 32], `block1` [B, 16k, 32, 32],
    `block2` [B, 32k, 16, 16], `block3` [B, 64k, 8, 8], each before batch norm and activation. What
    the pooling reads is `relu`.

    Initial weights as in RepDistiller's `wrn.py`: see `initialise`; the classifier has PyTorch's
    default weight and bias 0.
    """

    stage_paths: ClassVar[tuple[str, ...]] = ("conv1", "block1", "block2", "block3")
    classifier_path: ClassVar[str] = "fc"

    def __init__(
        self,
        depth: int,
        widening: int,
        *,
        classes: int,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        """Build WRN-`depth`-`widening`.

        Args:
            depth: 6n + 4, for n blocks per stage.
            widening: the paper's k, the factor on the channels of the stages but not of the stem.
            classes: number of logits.
            in_channels: channels of the images.
            width: further factor on all channels, the stem's too.

        Raises:
            ModelError: `depth` is not of the form 6n + 4, or a keyword is out of range.
        """
        super().__init__()
        check_keywords(classes, in_channels, width)
        if depth < 10 or (depth - 4) % 6:
            raise ModelError(
                f"A Wide ResNet has 6n + 4 layers (10, 16, 22, 28, 40, ...), not {depth}."
            )
        blocks = (depth - 4) // 6
        stem = scaled(16, width)
        first, second, third = (scaled(count * widening, width) for count in (16, 32, 64))
        self.conv1 = convolution(in_channels, stem, 3)
        self.block1 = WideStage(stem, first, blocks, stride=1)
        self.block2 = WideStage(first, second, blocks, stride=2)
        self.block3 = WideStage(second, third, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(third)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(third, classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] for `images` [B, in_channels, H, W]."""
        features = self.block3(self.block2(self.block1(self.conv1(images))))
        features = self.relu(self.bn1(features))
        logits: torch.Tensor = self.fc(self.flatten(self.avgpool(features)))
        return logits
