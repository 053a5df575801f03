"""PHI-S: equal variances, an orthogonal map, an exact inverse."""

from __future__ import annotations

import pytest
import torch

from understudy.errors import UnderstudyError
from understudy.methods import KD, LELP, FitNet
from understudy.models.outputs import Outputs
from understudy.teachers.phi_s import PhiS, Standardised, balancing
from understudy.teachers.statistics import Moments


def moments(rows: torch.Tensor) -> Moments:
    """Return the moments of rows, as a pass would have left them."""
    found = Moments("layer")
    rows = rows.double()
    centred = rows - rows.mean(dim=0)
    found.load(
        {
            "count": torch.tensor(float(len(rows)), dtype=torch.float64),
            "mean": rows.mean(dim=0),
            "scatter": centred.T @ centred,
        },
        None,  # type: ignore[arg-type]
    )
    return found


def skewed(width: int, count: int = 400, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(width)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(1, -3, width)
    rows = torch.randn(count, rank or width, generator=generator) @ mixing[: rank or width]
    return rows + 20 * torch.randn(width, generator=generator)


@pytest.mark.parametrize("width", [1, 2, 3, 12, 16, 37, 64, 100])
def test_every_dimension_has_variance_one_and_the_map_is_inverted(width: int) -> None:
    rows = skewed(width)
    one = PhiS(width)
    one.take(moments(rows))
    found = one(rows)
    assert found.shape == rows.shape
    torch.testing.assert_close(
        found.double().var(dim=0, correction=0), torch.ones(width).double(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(width), atol=1e-4, rtol=0)
    torch.testing.assert_close(one.inverse(found), rows, atol=1e-3, rtol=1e-4)
    # One scale for all directions: distances keep their proportions.
    apart, before = (
        values.double()[:20, None] - values.double()[None, :20] for values in (found, rows)
    )
    torch.testing.assert_close(
        apart.norm(dim=2) * one.alpha, before.norm(dim=2), atol=1e-3, rtol=1e-4
    )
    assert one(rows.double()).dtype == torch.float64


@pytest.mark.parametrize("width", [2, 5, 8, 24, 97])
def test_the_matrix_is_orthogonal_and_balances_any_spectrum(width: int) -> None:
    for values in (
        torch.logspace(3, -6, width, dtype=torch.float64),
        torch.ones(width, dtype=torch.float64),
        torch.eye(width, dtype=torch.float64)[0],
        torch.rand(width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    ):
        matrix = balancing(values)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(width, dtype=torch.float64))
        diagonal = (matrix @ torch.diag(values) @ matrix.T).diagonal()
        torch.testing.assert_close(diagonal, values.mean().expand(width), atol=1e-9, rtol=1e-6)
    if width in (2, 8):
        assert torch.equal(
            (balancing(values) * width**0.5).round().abs(), torch.ones(width, width).double()
        )


def test_few_samples_and_what_does_not_vary() -> None:
    one = PhiS(10)
    rows = skewed(10, count=60, rank=3)
    one.take(moments(rows))
    torch.testing.assert_close(
        one(rows).var(dim=0, correction=0), torch.ones(10), atol=1e-4, rtol=0
    )
    with pytest.raises(UnderstudyError, match="60 rows of the tap 'layer' are equal"):
        PhiS(10).take(moments(torch.ones(60, 10)))


def test_vectors_tokens_and_maps_are_standardised_along_their_features() -> None:
    rows = skewed(6)
    one = PhiS(6)
    one.take(moments(rows))
    expected = one(rows)
    tokens = rows.reshape(100, 4, 6)
    torch.testing.assert_close(one(tokens).reshape(400, 6), expected)
    maps = tokens.reshape(100, 2, 2, 6).permute(0, 3, 1, 2)
    assert one(maps).shape == maps.shape
    torch.testing.assert_close(one(maps).permute(0, 2, 3, 1).reshape(400, 6), expected)
    torch.testing.assert_close(one.inverse(one(maps)), maps, atol=1e-3, rtol=1e-4)
    assert one(maps.half()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(one(rows), expected)
    for wrong in (torch.zeros(3, 5), torch.zeros(6), torch.zeros(2, 5, 6, 6)):
        with pytest.raises(UnderstudyError, match=r"D = 6"):
            one(wrong)


def test_only_the_taps_of_the_method_change() -> None:
    rows = skewed(4)
    standardised = Standardised([("a", 4)])
    one = standardised.each[0]
    assert isinstance(one, PhiS)
    one.take(moments(rows))
    given = Outputs(rows, {"a": rows, "b": rows})
    found = standardised(given)
    assert found.logits is rows and found.features["b"] is rows
    assert torch.equal(found.features["a"], one(rows))
    assert given.features["a"] is rows


def test_a_method_that_fits_or_reads_no_feature_is_refused() -> None:
    assert FitNet().listening_to("big", features="phi_s").needs_study
    assert not KD().needs_study
    with pytest.raises(UnderstudyError, match="'lelp' is fitted to the teacher's features as they"):
        LELP().listening_to(features="phi_s")
    with pytest.raises(UnderstudyError, match="no standardisation of features called 'whiten'"):
        FitNet().listening_to(features="whiten")  # type: ignore[arg-type]
