"""Statistics are those of all rows at once, whatever the batches are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from study_kit import seen, split

from understudy.errors import DataError, ModelError, UnderstudyError
from understudy.teachers import accumulating
from understudy.teachers.accumulating import Statistic
from understudy.teachers.discriminants import discriminants
from understudy.teachers.principal import principal
from understudy.teachers.readings import LOGITS, Reading
from understudy.teachers.statistics import ClassMoments, Moments, ResponseMeans

N, D = 203, 6
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def made(*shape: int, offset: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.1, 3.0, shape[1]).view(1, -1, *[1] * (len(shape) - 2))
    return offset + spread * torch.randn(*shape, generator=generator)


def fill(statistic: Statistic, feature: torch.Tensor, size: int, **columns: Any) -> None:
    classes = columns.pop("classes", 3)
    statistic.begin(Path(), split())
    for start in range(0, len(feature), size):
        part = slice(start, start + size)
        statistic.update(
            seen(feature[part], classes=classes, **{n: value[part] for n, value in columns.items()})
        )


@pytest.mark.parametrize("size", [1, 7, 64, N])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_are_those_of_all_rows(size: int, offset: float) -> None:
    feature = made(N, D, offset=offset)
    moments = Moments("f")
    fill(moments, feature, size)
    rows = feature.double().numpy()
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), **EXACT)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), **EXACT)
    assert moments.count == N


@pytest.mark.parametrize("size", [3, 17])
def test_places_of_a_map_are_rows_also_when_it_is_not_square(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accumulating, "CHUNK", 10)
    feature = made(17, D, 4, 5)
    moments = Moments("f")
    fill(moments, feature, size)
    rows = feature.double().permute(0, 2, 3, 1).reshape(-1, D).numpy()
    assert moments.count == 17 * 4 * 5
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), **EXACT)


def test_maps_can_be_pooled_and_averaged_first() -> None:
    feature = made(11, D, 4, 5)
    pooled, mean = Moments(Reading("f", pool=2)), Moments(Reading("f", form="mean"))
    fill(pooled, feature, 4)
    fill(mean, feature, 4)
    windows = feature[:, :, :4, :4].reshape(11, D, 2, 2, 2, 2).mean(dim=(3, 5))
    rows = windows.permute(0, 2, 3, 1).reshape(-1, D).double()
    np.testing.assert_allclose(pooled.mean, rows.mean(dim=0), rtol=1e-5, atol=1e-6)
    assert pooled.count == 11 * 4 and mean.count == 11
    np.testing.assert_allclose(mean.mean, feature.mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_padding_tokens_are_no_rows() -> None:
    feature = made(4, 5, D)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    batch = seen(feature, inputs={"attention_mask": mask})
    moments, mean, first = (
        Moments("f"),
        Moments(Reading("f", "mean")),
        Moments(Reading("f", "first")),
    )
    for statistic in (moments, mean, first):
        statistic.begin(Path(), split())
        statistic.update(batch)
    kept = feature[mask.bool()].double()
    np.testing.assert_allclose(moments.mean, kept.mean(dim=0), **EXACT)
    assert (moments.count, mean.count, first.count) == (11, 4, 4)
    means = torch.stack(
        [row[: int(m.sum())].mean(dim=0) for row, m in zip(feature, mask, strict=True)]
    )
    np.testing.assert_allclose(mean.mean, means.mean(dim=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first.mean, feature[:, 0].double().mean(dim=0), **EXACT)


@pytest.mark.parametrize("size", [5, N])
@pytest.mark.parametrize("by", ["labels", "teacher"])
def test_class_moments_are_those_of_each_class(size: int, by: str) -> None:
    feature = made(N, D, offset=50.0)
    classes = torch.arange(N) % 3
    labels = classes.clone()
    logits = torch.nn.functional.one_hot(classes, 3).float()
    if by == "labels":
        labels[::4] = -1
        logits = logits.flip(1)
        classes = labels
    else:
        labels = torch.full_like(labels, -1)
    each, pooled = (ClassMoments("f", by=by, covariance=c) for c in ("each", "pooled"))
    for statistic in (each, pooled):
        fill(statistic, feature, size, labels=labels, logits=logits)
    within = np.zeros((D, D))
    for number in range(3):
        rows = feature[classes == number].double().numpy()
        assert each.count[number] == len(rows)
        np.testing.assert_allclose(each.mean[number], rows.mean(axis=0), **EXACT)
        np.testing.assert_allclose(each.covariance[number], np.cov(rows.T, bias=True), **EXACT)
        within += len(rows) * np.cov(rows.T, bias=True)
    np.testing.assert_allclose(pooled.covariance, within / int((classes >= 0).sum()), **EXACT)
    assert each.uses_labels == (by == "labels")
    assert (LOGITS in [reading.tap for reading in each.readings]) == (by == "teacher")


@pytest.mark.parametrize("size", [1, 9, 40])
def test_response_means_are_those_of_the_negative_values(size: int) -> None:
    feature = made(40, D, 3, 2, offset=0.5)
    feature[:, 2] = feature[:, 2].abs() + 0.1
    negative, positive = ResponseMeans("f"), ResponseMeans("f", sign="positive")
    fill(negative, feature, size)
    fill(positive, feature, size)
    for channel in range(D):
        values = feature[:, channel].double()
        below, above = values[values < 0], values[values > 0]
        assert negative.count[channel] == len(below) and positive.count[channel] == len(above)
        expected = below.mean() if len(below) else torch.tensor(0.0)
        assert float(negative.mean[channel]) == pytest.approx(float(expected), rel=1e-10)
        assert float(positive.mean[channel]) == pytest.approx(float(above.mean()), rel=1e-10)


def test_pca_of_features_of_exact_rank_finds_it() -> None:
    rank, width = 4, 32
    feature = made(300, rank) @ made(rank, width, seed=1) + made(1, width, offset=5.0, seed=2)
    moments = Moments("f")
    fill(moments, feature, 64)
    found = moments.principal()
    assert found.rank == rank and found.basis.shape == (width, rank)
    everything = principal(moments.mean, moments.covariance, 300, width, provisional=True)
    assert everything.variances[rank:].eq(0).all()
    assert found.variances.diff().le(0).all()
    identity = found.basis.T @ found.basis
    torch.testing.assert_close(identity, torch.eye(rank).double(), atol=1e-12, rtol=0)
    centred = feature.double() - found.mean
    back = centred @ found.basis @ found.basis.T
    torch.testing.assert_close(back, centred, atol=1e-5, rtol=1e-6)
    variances = (centred @ found.basis).square().mean(dim=0)
    torch.testing.assert_close(variances, found.variances, rtol=1e-9, atol=0)
    assert found.explained == pytest.approx(1.0)
    with pytest.raises(DataError, match=r"5 principal.*only 4 with any variance"):
        moments.principal(5)
    with pytest.raises(DataError, match="has 32 dimensions"):
        moments.principal(33)


def test_signs_do_not_depend_on_the_solver() -> None:
    covariance = torch.from_numpy(np.cov(made(50, D).numpy().T))
    found = principal(torch.zeros(D).double(), covariance, 50, D).basis
    largest = found.gather(0, found.abs().argmax(dim=0, keepdim=True))
    assert largest.gt(0).all()
    # Two components of one size and opposite signs: the first one decides.
    tie = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()
    assert principal(torch.zeros(2).double(), tie, 9, 1).basis[0, 0] > 0


def test_few_samples_have_a_low_rank() -> None:
    moments = Moments("f")
    fill(moments, made(4, 16), 2)
    assert moments.principal().rank == 3


def test_constant_features_are_refused_and_a_constant_dimension_is_not() -> None:
    moments = Moments("f")
    fill(moments, torch.full((20, D), 3.7), 6)
    with pytest.raises(DataError, match="are equal"):
        moments.principal(1)
    feature = made(20, D)
    feature[:, 3] = 7.0
    fill(moments, feature, 6)
    assert moments.principal().rank == D - 1


def test_a_class_with_too_few_samples_is_named() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    moments = ClassMoments("f")
    fill(moments, made(9, D), 4, labels=labels)
    with pytest.raises(DataError, match=r"2 principal directions of class 'middle'"):
        moments.principal(2, names=("low", "middle", "high"))
    assert [part.rank for part in moments.principal(1)] == [3, 1, 2]


@pytest.mark.parametrize("size", [13, 120])
def test_discriminants_are_those_of_scikit_learn(size: int) -> None:
    count, classes = 120, 5
    labels = torch.arange(count) % classes
    feature = made(count, D, offset=2.0) + 2 * made(classes, D, seed=4)[labels]
    unlabelled = torch.cat([labels, torch.full((10,), -1)])
    rows = torch.cat([feature, made(10, D, offset=90.0, seed=5)])
    for spread in ("each", "pooled"):
        moments = ClassMoments("f", covariance=spread)
        fill(moments, rows, size, labels=unlabelled, classes=classes)
        found = discriminants(moments, 4)
        model = LinearDiscriminantAnalysis().fit(feature.double().numpy(), labels.numpy())
        expected = model.transform(feature.double().numpy())[:, :4]
        got = found(feature).numpy()
        signs = np.sign((got * expected).sum(axis=0))
        # The divisor of the scatter within classes differs between versions of scikit-learn.
        factor = (got * signs / expected).mean()
        assert factor == pytest.approx(1.0) or factor == pytest.approx((count / 115) ** 0.5)
        np.testing.assert_allclose(got * signs / factor, expected, rtol=1e-7, atol=1e-7)


def test_discriminants_that_cannot_be_are_refused() -> None:
    moments = ClassMoments("f", covariance="pooled")
    feature = made(60, D)
    fill(moments, feature, 20, labels=torch.arange(60) % 3)
    with pytest.raises(DataError, match=r"3 linear discriminants.*at most 2"):
        discriminants(moments, 3)
    assert discriminants(moments, 5, provisional=True).directions.shape == (D, 5)
    # Three class means on one line.
    labels = torch.arange(60) % 3
    centred = feature - torch.stack([feature[labels == c].mean(dim=0) for c in range(3)])[labels]
    line = centred.double() + labels[:, None] * torch.ones(D)
    fill(moments, line.float(), 20, labels=labels)
    assert discriminants(moments, 1).directions.shape == (D, 1)


def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(UnderstudyError, match=r"empty.*study\.collect"):
        _ = Moments("f").mean
    with pytest.raises(UnderstudyError, match="Did you mean 'mean'"):
        Reading("f", form="meen")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no first token"):
        fill(Moments(Reading("f", form="first")), made(4, D, 2, 2), 4)
    with pytest.raises(ModelError, match="windows of 4 x 4"):
        fill(Moments(Reading("f", pool=4)), made(4, D, 2, 8), 4)
    broken = made(4, D)
    broken[2, 1] = float("nan")
    with pytest.raises(ModelError, match="not finite for sample 2"):
        fill(Moments("f"), broken, 4)
    with pytest.raises(DataError, match="mixes samples"):
        fill(ClassMoments("f"), made(4, D), 4, labels=torch.rand(4, 3))
    moments = Moments("f")
    fill(moments, made(4, D), 4)
    with pytest.raises(DataError, match="rows of 3 values after rows of 6"):
        moments.update(seen(made(4, 3)))
