"""Projectors bring two features to one shape."""

from __future__ import annotations

import pytest
import torch

from understudy.errors import ModelError
from understudy.models.projectors import (
    Connector,
    Projector,
    align_widths,
    to_smaller,
    tokens_to_map,
)


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


def test_connector_normalises_with_the_batch_and_keeps_nothing() -> None:
    connector = Connector((8, 6, 6), (16, 3, 3))
    assert not list(connector.buffers())
    teacher = torch.randn(5, 16, 3, 3)
    left, right = connector(torch.randn(5, 8, 6, 6) + 3, teacher)
    assert left.shape == right.shape == (5, 16, 3, 3) and right is teacher
    torch.testing.assert_close(left.mean(dim=(0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(left.std(dim=(0, 2, 3)), torch.ones(16), atol=0.03, rtol=0)
    deviation = Connector((32, 4, 4), (512, 4, 4)).map[0].weight.std().item()
    assert deviation == pytest.approx((2 / 512) ** 0.5, rel=0.05)


def test_equal_widths_need_no_connector_unless_asked() -> None:
    student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 2, 2)
    left, _ = Connector((8, 4, 4), (8, 2, 2), always=False)(student, teacher)
    torch.testing.assert_close(left, torch.nn.functional.avg_pool2d(student, 2))
    assert list(Connector((8, 4, 4), (8, 2, 2)).parameters())
    assert not list(align_widths(8, 8).parameters())
    assert [p.shape for p in align_widths(8, 4, bias=False).parameters()] == [(4, 8, 1, 1)]


def test_the_smaller_height_and_width_are_taken_one_by_one() -> None:
    student, teacher = torch.randn(2, 3, 8, 2), torch.randn(2, 5, 4, 6)
    left, right = to_smaller(student, teacher)
    torch.testing.assert_close(left, torch.nn.functional.avg_pool2d(student, (2, 1)))
    torch.testing.assert_close(right, torch.nn.functional.avg_pool2d(teacher, (1, 3)))
