"""Projectors bring two features to one shape."""

from __future__ import annotations

import pytest
import torch

from understudy.errors import ModelError
from understudy.models.projectors import Projector, tokens_to_map


@pytest.mark.parametrize(
    ("student", "teacher", "result"),
    [
        ((8,), (16,), (16,)),
        ((8, 6, 6), (16, 6, 6), (16, 6, 6)),
        ((8, 4, 8), (16, 8, 4), (16, 4, 4)),
        ((8, 2, 2), (16,), (16,)),
        ((8,), (16, 3, 3), (16,)),
        ((7, 8), (5, 16), (5, 16)),
        ((8, 4, 4), (17, 16), (16, 4, 4)),
        ((5, 8), (12,), (12,)),
    ],
)
def test_shapes_agree(
    student: tuple[int, ...], teacher: tuple[int, ...], result: tuple[int, ...]
) -> None:
    projector = Projector(student, teacher)
    left, right = projector(torch.randn(3, *student), torch.randn(3, *teacher))
    assert left.shape == right.shape == (3, *result)


def test_teacher_of_equal_size_is_untouched() -> None:
    teacher = torch.randn(2, 16, 6, 6)
    _, right = Projector((8, 6, 6), (16, 6, 6))(torch.randn(2, 8, 6, 6), teacher)
    assert right is teacher


def test_tokens_become_a_map_without_their_prefix() -> None:
    tokens = torch.arange(2 * 10 * 3.0).reshape(2, 10, 3)
    maps = tokens_to_map(tokens)
    assert maps.shape == (2, 3, 3, 3)
    assert torch.equal(maps[1, :, 0, 0], tokens[1, 1])
    assert torch.equal(maps[0, :, 2, 1], tokens[0, 1 + 2 * 3 + 1])


def test_unknown_rank_is_refused() -> None:
    with pytest.raises(ModelError, match="student's feature has shape"):
        Projector((1, 2, 3, 4), (8,))
