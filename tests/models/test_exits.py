"""Branches from a student's middle to logits: their sizes, and what they refuse. Numbers: `tests/methods/`."""

from __future__ import annotations

import pytest
import torch

from understudy.errors import ModelError
from understudy.models.exits import MapExit, TokenExit


@pytest.mark.parametrize(("side", "halvings", "convolutions"), [(32, 3, 12), (8, 1, 4), (4, 0, 1)])
def test_a_map_is_halved_as_often_as_asked(side: int, halvings: int, convolutions: int) -> None:
    leave = MapExit(6, halvings, 20, 5)
    assert leave(torch.randn(2, 6, side, side)).shape == (2, 5)
    assert sum(isinstance(part, torch.nn.Conv2d) for part in leave.modules()) == convolutions
    assert leave.classifier.in_features == 20


@pytest.mark.parametrize(
    ("tokens", "merges", "before"), [(49, 0, 0), (64, 0, 0), (197, 1, 1), (198, 1, 2), (784, 2, 0)]
)
def test_a_grid_of_tokens_is_merged_to_about_seven(tokens: int, merges: int, before: int) -> None:
    leave = TokenExit(tokens, 8, 8, 1, 5)
    assert (len(leave.merge), leave.before) == (merges, before)
    assert leave(torch.randn(2, tokens, 8)).shape == (2, 5)


def test_the_class_token_is_read_where_there_is_one_and_the_mean_otherwise() -> None:
    first, mean = TokenExit(50, 8, 8, 0, 3), TokenExit(49, 8, 8, 0, 3)
    tokens = torch.randn(2, 50, 8)
    torch.testing.assert_close(first(tokens), first.classifier(tokens[:, 0]))
    torch.testing.assert_close(mean(tokens[:, 1:]), mean.classifier(tokens[:, 1:].mean(dim=1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((15 * 15, 8, 8, 1, 3), r"halves a grid of 15x15 tokens 1 time\(s\), which 15 cannot be"),
        ((64, 4, 8, 1, 3), "from 64 tokens of width 4 needs that width to be the model's last, 8"),
        ((197, 4, 8, 1, 3), "from 197 tokens of width 4"),
        ((49, 6, 6, 1, 3), "4 attention heads, which 6 is no multiple of"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TokenExit(*arguments)


def test_an_exit_keeps_no_statistics() -> None:
    assert not list(MapExit(4, 2, 8, 3).buffers())
