"""Exits: branches from the middle of a model to class logits, for training only."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from understudy.errors import ModelError

GRID = 7
"""Side to which token grids are merged, as long as it can be halved: that of the last stage at 224 pixels."""
HEADS = 4
"""Attention heads of a token exit."""


class MapExit(nn.Module):
    """Halves a map by separable convolutions until it is as small as the model's last one, and classifies its mean.

    A map that is small enough already goes through a 1x1 convolution.

    Args:
        channels: of the map.
        halvings: how many times its sides are halved; channels double with each but for the last, which gives `width`.
        width: of the vector that is classified.
        classes: number of logits.

    Source: Hao et al., "One-for-All", NeurIPS 2023, the authors' code, with their initial weights.
    """

    def __init__(self, channels: int, halvings: int, width: int, classes: int) -> None:
        """Make the layers."""
        super().__init__()
        widths = [channels * 2**number for number in range(halvings)] + [width]
        self.reduce = nn.Sequential(*(_separable(*pair) for pair in pairwise(widths)))
        if not halvings:
            self.reduce.append(nn.Conv2d(channels, width, 1))
        self.classifier = nn.Linear(width, classes)
        _initialise(self)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] for a map [B, channels, H, W]."""
        logits: torch.Tensor = self.classifier(self.reduce(feature).mean(dim=(2, 3)))
        return logits


class TokenExit(nn.Module):
    """Merges a grid of tokens two by two down to about 7x7, and classifies it after a few transformer blocks.

    Tokens before the grid (class token, registers) are left out of the merging. What is classified is the first of
    them, or the mean over the grid where there are none.

    Args:
        tokens: how many there are, those before the grid included.
        channels: width of a token.
        width: of the blocks; equal to `channels` where nothing is merged, or where there are tokens before the grid.
        blocks: number of transformer blocks.
        classes: number of logits.

    Raises:
        ModelError: the grid cannot be halved as often as it should, or widths do not fit.

    Source: as `MapExit`.
    """

    def __init__(self, tokens: int, channels: int, width: int, blocks: int, classes: int) -> None:
        """Make the layers."""
        super().__init__()
        side = int(tokens**0.5)
        self.before = tokens - side * side
        merges = max(0, (side // GRID).bit_length() - 1)
        if side % 2**merges:
            raise ModelError(
                f"An exit halves a grid of {side}x{side} tokens {merges} time(s), which {side} cannot be. "
                "Choose another image size, or leave this stage out."
            )
        if channels != width and (self.before or not merges):
            raise ModelError(
                f"An exit from {tokens} tokens of width {channels} needs that width to be the model's last, {width}, "
                "because not all of these tokens are merged. Leave this stage out."
            )
        if width % HEADS:
            raise ModelError(
                f"An exit has {HEADS} attention heads, which {width} is no multiple of."
            )
        self.merge = nn.Sequential(
            *(
                # No bend after the last merging, but after an only one; so the authors' code.
                Merging(
                    width if number else channels, width, bend=not number or number < merges - 1
                )
                for number in range(merges)
            )
        )
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.classifier = nn.Linear(width, classes)
        _initialise(self)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] for tokens [B, tokens, channels]."""
        tokens = self.merge(feature[:, self.before :])
        if self.before:
            tokens = torch.cat([feature[:, : self.before], tokens], dim=1)
        tokens = self.blocks(tokens)
        logits: torch.Tensor = self.classifier(tokens[:, 0] if self.before else tokens.mean(dim=1))
        return logits


class Merging(nn.Module):
    """Merges each 2x2 tokens of a square grid into one: layer norm and a linear map, then GELU if there is a bend."""

    def __init__(self, channels: int, width: int, *, bend: bool) -> None:
        """Map [B, H * H, channels] to [B, H * H / 4, width]."""
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, width, bias=False)
        self.activation = nn.GELU() if bend else nn.Identity()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the merged tokens."""
        batch, count, channels = tokens.shape
        side = int(count**0.5)
        # Of each 2x2: down the first column, then down the second.
        cells = tokens.view(batch, side // 2, 2, side // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        merged: torch.Tensor = self.activation(
            self.reduction(self.norm(cells.reshape(batch, count // 4, 4 * channels)))
        )
        return merged


class Block(nn.Module):
    """A pre-norm transformer block: four heads without bias, and a perceptron of four times the width."""

    def __init__(self, width: int) -> None:
        """Map [B, T, width] to the same shape."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        batch, count, width = tokens.shape
        parts = self.qkv(self.norm1(tokens)).view(batch, count, 3, HEADS, width // HEADS)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        tokens = tokens + self.proj(attended.transpose(1, 2).reshape(batch, count, width))
        output: torch.Tensor = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return output


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """Return two depthwise-separable convolutions, of which the first halves the map."""
    layers: list[nn.Module] = []
    for stride, given in ((2, inputs), (1, outputs)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, given, 1, bias=False),
            # Exits are never evaluated, so that running statistics would only have to be synchronised.
            nn.BatchNorm2d(given, track_running_stats=False),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
