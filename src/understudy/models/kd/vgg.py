"""VGG with batch norm and one linear layer, for small images."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models.kd.network import CifarNetwork, check_keywords, initialise, scaled

FULL_POOLING_SIZE = 64
"""Image height from which the fourth max-pooling is used; the published code has it at 64 only."""


class VGG(CifarNetwork):
    """VGG (Simonyan and Zisserman 2015, arXiv:1409.1556) in the small form of distillation papers.

    Five blocks of 3x3 convolutions (with bias) and batch norm; max-pooling by 2 after the first
    three, and after the fourth from a height of 64 up; global average pooling; one linear layer in
    place of the paper's three.

    Stages at 32x32 input, each after the activation: `relu0` [B, 64, 32, 32], `relu1` [B, 128, 16,
    16], `relu2` [B, 256, 8, 8], `relu3` and `relu4` [B, 512, 4, 4]. The feature before the
    activation is the output of `block0` to `block4`.

    Initial weights as in RepDistiller's `vgg.py`: see `initialise`; the classifier is normal with
    standard deviation 0.01, bias 0.
    """

    stage_paths: ClassVar[tuple[str, ...]] = ("relu0", "relu1", "relu2", "relu3", "relu4")
    classifier_path: ClassVar[str] = "classifier"

    def __init__(
        self,
        convolutions: int,
        *,
        classes: int,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        """Build a VGG of five equally deep blocks.

        Args:
            convolutions: per block; 1 makes what the field calls VGG-8, 2 makes VGG-13.
            classes: number of logits.
            in_channels: channels of the images.
            width: factor on all channels.

        Raises:
            ModelError: a keyword is out of range.
        """
        super().__init__()
        check_keywords(classes, in_channels, width)
        if convolutions < 1:
            raise ModelError(f"'convolutions' is {convolutions}; a block has at least 1.")
        channels = [in_channels, *(scaled(count, width) for count in (64, 128, 256, 512, 512))]
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(inputs, outputs, convolutions) for inputs, outputs in pairwise(channels)
        )
        self.relu0 = nn.ReLU()
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.relu3 = nn.ReLU()
        self.relu4 = nn.ReLU()
        self.pool0 = nn.MaxPool2d(2)
        self.pool1 = nn.MaxPool2d(2)
        self.pool2 = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels[-1], classes)
        initialise(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] for `images` [B, in_channels, H, W], H and W at least 8."""
        features = self.pool0(self.relu0(self.block0(images)))
        features = self.pool1(self.relu1(self.block1(features)))
        features = self.pool2(self.relu2(self.block2(features)))
        features = self.relu3(self.block3(features))
        if images.shape[-2] >= FULL_POOLING_SIZE:
            features = self.pool3(features)
        features = self.relu4(self.block4(features))
        logits: torch.Tensor = self.classifier(self.flatten(self.avgpool(features)))
        return logits


def _block(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    """Return repeated convolution, batch norm and activation, without the last activation."""
    layers: list[nn.Module] = []
    for position in range(convolutions):
        if position:
            layers.append(nn.ReLU())
        layers.append(nn.Conv2d(outputs if position else inputs, outputs, 3, padding=1))
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers)
