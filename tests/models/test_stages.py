"""The stages of models that do not name them themselves."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from understudy.models.description import describe


class Block(nn.Module):
    """Self-attention whose heads go through a module of their own, as normalised queries do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads, self.out = nn.Identity(), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        split = self.heads(tokens.unflatten(2, (2, -1)).transpose(1, 2))
        weights = (split @ split.mT).softmax(dim=-1)
        return tokens + self.out((weights @ split).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Tokens from patches, of which a stem of `stem` convolutions makes the map."""

    def __init__(self, stem: int, depth: int) -> None:
        super().__init__()
        widths = [1, *[8] * stem]
        self.stem = nn.Sequential(*(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths)))
        self.blocks = nn.Sequential(*(Block(8) for _ in range(depth)))
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.blocks(self.stem(images).flatten(2).transpose(1, 2))
        return self.head(tokens.mean(dim=1))


@pytest.mark.parametrize(
    ("stem", "depth", "stages"),
    [
        # The one map is that of the patches; what has four dimensions in a block is no map.
        (1, 3, ["blocks.0", "blocks.1", "blocks.2"]),
        # A network that has maps of several sizes has these for stages.
        (2, 3, ["stem.0", "stem"]),
        (1, 1, ["stem"]),
    ],
)
def test_blocks_are_the_stages_of_a_vision_transformer(
    stem: int, depth: int, stages: list[str]
) -> None:
    images = torch.randn(2, 1, 16, 16)
    found = describe(Transformer(stem, depth), lambda m: m(images), input_height=16)
    assert [stage.tap for stage in found.stages] == stages
    assert (found.stages[0].stride is None) == (stages[0] == "blocks.0")
