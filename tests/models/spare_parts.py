"""Grafts, heads and odd networks for tests; a file of its own, so that a fresh process finds them by name."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from understudy.models.grafts import Graft
from understudy.models.heads import Head


class Templates(Graft):
    """x + alpha * values(relu(norm(scores(x)))) on maps [B, C, H, W], tokens [B, T, C] or vectors [B, C]."""

    def __init__(self, channels: int, templates: int = 5, alpha: float = 1.0) -> None:
        super().__init__()
        self.channels, self.templates, self.alpha = channels, templates, alpha
        self.scores = nn.Linear(channels, templates)
        self.norm = nn.BatchNorm1d(templates)
        self.values = nn.Linear(templates, channels)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        last = given.movedim(1, -1) if given.dim() == 4 else given
        scores = self.scores(last)
        found = self.norm(scores.flatten(0, -2)).view_as(scores).relu()
        added = self.values(found)
        return given + self.alpha * (added.movedim(-1, 1) if given.dim() == 4 else added)


class Convolved(Graft):
    """A convolution, to see memory formats and to count."""

    def __init__(self, channels: int, outputs: int | None = None, kernel: int = 1) -> None:
        super().__init__()
        self.channels, self.outputs, self.kernel = channels, outputs, kernel
        padding = kernel // 2
        self.map = nn.Conv2d(channels, outputs or channels, kernel, padding=padding, bias=False)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.map(given)


class Forgetful(Graft):
    """Does not keep its keyword."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given


class Holding(Forgetful):
    """Keeps a tensor as its keyword."""

    def __init__(self, channels: torch.Tensor) -> None:
        super().__init__(1)
        self.channels = channels


class Doubled(Head):
    """A head that is not linear."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.first = nn.Linear(in_features, 4)
        self.last = nn.Linear(4, out_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(features).relu())


class Odd(nn.Module):
    """A network with every place in which nothing can be grafted."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.functional = nn.Conv2d(4, 4, 1)
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.ReLU()])
        self.same = self.also = nn.Conv2d(4, 4, 1)
        self.pair = _Pair()
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.walked = _Walked()
        self.helper = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.fc = nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.twice(self.twice(self.stem(x)))
        maps = F.conv2d(maps, self.functional.weight, self.functional.bias)
        for block in self.blocks:
            maps = block(maps)
        maps, _ = self.pair(self.walked(self.also(self.same(maps))))
        vector = self.recurrent(maps.mean(dim=3).transpose(1, 2))[0].mean(dim=1)
        if self.training:
            vector = vector + 0 * self.helper(vector)
        return self.fc(vector)


class _Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x * 2


class _Walked(nn.Module):
    """Runs whatever children it has."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            x = child(x)
        return x


class Wrapped(nn.Module):
    """A classifier whose code goes on after its last linear layer, or ties it, or shares it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 8 if how in ("tied", "shared") else 3)
        if how == "tied":
            self.body.weight = self.fc.weight
        if how == "shared":
            self.again = self.fc

    def forward(self, x: torch.Tensor) -> Any:
        x = self.body(x).relu()
        if self.how == "after":
            return self.fc(x).log_softmax(dim=-1)
        if self.how == "functional":
            return F.linear(x, self.fc.weight, self.fc.bias)
        if self.how == "shared":
            x = self.again(x)
        if self.how == "reads":
            return self.fc(x) + 0 * self.fc.weight.sum()
        return self.fc(x)
