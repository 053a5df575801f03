"""Features on disk are found by sample id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from study_kit import COUNT, seen, split, study

from understudy.errors import DataError, UnderstudyError
from understudy.teachers.features import Features
from understudy.teachers.medians import projected_medians
from understudy.teachers.readings import LOGITS, Reading

GOLDEN = Path(__file__).parent.parent / "golden"


def test_rows_are_joined_by_id_and_maps_keep_their_shape(tmp_path: Path) -> None:
    made = study(tmp_path)
    maps, vectors, logits = Features("norm"), Features("fc@input"), Features(LOGITS)
    made.collect(maps, vectors, logits)
    module = made.teacher().eval()
    data = made.split
    order = torch.randperm(COUNT)[:17]
    index = data.ids[order]
    images = made.teachers["teacher"].preprocess(data.fetch(order), torch.device("cpu"))
    with torch.no_grad():
        before = module.norm(module.conv(images))
        pooled = before.relu().mean(dim=(2, 3))
        expected = module.fc(pooled)
    torch.testing.assert_close(maps.rows_for(index), before, atol=1e-5, rtol=1e-5)
    assert before.min() < 0, "the tap lies before an activation that works in place"
    torch.testing.assert_close(vectors.rows_for(index), pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.rows_for(index), expected, atol=1e-5, rtol=1e-5)
    assert maps.shape == (5, 4, 6) and maps.rows_per_sample == 24 and vectors.shape == (5,)
    with pytest.raises(DataError, match=r"no features of sample 123456\b.*50 samples"):
        maps.rows_for(torch.tensor([int(index[0]), 123_456]))


def test_rows_can_be_kept_on_a_device(tmp_path: Path) -> None:
    made = study(tmp_path)
    maps, kept = Features("norm"), Features("norm")
    made.collect(maps, kept)
    kept.keep_on(torch.device("cpu"))
    index = made.split.ids[torch.randperm(COUNT)[:9]]
    assert torch.equal(kept.rows_for(index), maps.rows_for(index))
    found = kept.rows_for(torch.tensor([int(index[0]), 123_456]))
    assert torch.equal(found[0], maps.rows_for(index)[0]) and found[1].isnan().all()
    example = Features("norm")
    study(None).collect(example)
    example.keep_on(torch.device("cpu"))
    assert example.rows_for(torch.tensor([1, 123_456])).isfinite().all()


def test_rows_of_maps_are_their_places_sample_by_sample(tmp_path: Path) -> None:
    made = study(tmp_path)
    maps = Features("norm")
    made.collect(maps)
    assert torch.equal(maps.ids, made.split.ids.sort().values)
    places = maps.rows_for(maps.ids).flatten(2).transpose(1, 2).reshape(-1, 5)
    np.testing.assert_array_equal(maps.flat(), places.numpy())
    assert torch.equal(torch.cat(list(maps.chunks(100))), places)
    labels = maps.per_row(made.split.ids, made.split.labels)
    by_id = dict(zip(made.split.ids.tolist(), made.split.labels.tolist(), strict=True))
    assert labels.tolist() == [by_id[number] for number in maps.ids.tolist() for _ in range(24)]
    with pytest.raises(DataError, match="no value for sample"):
        maps.per_row(made.split.ids[1:], made.split.labels[1:])


def test_only_plain_arrays_are_written(tmp_path: Path) -> None:
    made = study(tmp_path)
    made.collect(Features(Reading("norm", pool=2), dtype="float16"))
    (folder,) = tmp_path.glob("features-*/")
    assert {path.name for path in folder.iterdir()} == {
        "ids.npy",
        "rows.npy",
        "manifest.json",
        "tensors.safetensors",
    }
    rows = np.load(folder / "rows.npy", allow_pickle=False)
    assert rows.shape == (COUNT, 2, 3, 5) and rows.dtype == np.float16


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    features = Features("f", dtype="float16")
    with pytest.raises(UnderstudyError, match=r"empty.*study\.collect"):
        features.rows_for(torch.tensor([1]))
    data = split(8)
    features.begin(tmp_path, data)
    batch = seen(torch.randn(4, 3, 5))
    batch.batch.index = data.ids[:4]
    features.update(batch)
    other = seen(torch.randn(4, 7, 5))
    other.batch.index = data.ids[4:]
    with pytest.raises(DataError, match=r"\(7, 5\) for sample .* after \(3, 5\)"):
        features.update(other)
    large = seen(torch.full((4, 3, 5), 1e6))
    large.batch.index = data.ids[4:]
    with pytest.raises(DataError, match="range of float16"):
        features.update(large)
    twice = split(8)
    twice.ids[3] = twice.ids[5]
    with pytest.raises(DataError, match=f"Sample id {int(twice.ids[5])} stands for two"):
        features.begin(tmp_path, twice)


def test_medians_are_the_lower_ones_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = np.load(GOLDEN / "tcs" / "bias_median_even.npz")
    rows, directions = torch.from_numpy(case["f_t_all"]), torch.from_numpy(case["W"])
    data = split(len(rows))
    features = Features("f")
    features.begin(tmp_path, data)
    batch = seen(rows)
    batch.batch.index = data.ids
    features.update(batch)
    for numbers in (2**26, 25):
        monkeypatch.setattr("understudy.teachers.medians._NUMBERS", numbers)
        found = projected_medians(features, directions.T)
        np.testing.assert_allclose(-found, case["bias"], rtol=1e-5, atol=1e-6)
    with pytest.raises(UnderstudyError, match=r"need \[4, M\]"):
        projected_medians(features, directions)
