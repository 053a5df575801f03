import io
import json
import logging
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from understudy.data.sources.huggingface import huggingface
from understudy.errors import DataError

NAMES = ["zebra", "ant", "bee"]


def png(seed: int, size: int = 5) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)


def write(path, columns: dict, features: dict | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = pa.table(columns)
    if features is not None:
        described = json.dumps({"info": {"features": features}})
        content = content.replace_schema_metadata({"huggingface": described})
    pq.write_table(content, path)


def images(seeds) -> list[dict]:
    return [{"bytes": png(seed), "path": None} for seed in seeds]


FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}


@pytest.fixture
def pictures(tmp_path):
    """Two training shards and a test split, as the hub stores them."""
    for shard in range(2):
        seeds = range(10 * shard, 10 * shard + 10)
        columns = {"image": images(seeds), "label": [seed % 3 for seed in seeds]}
        write(tmp_path / f"train-0000{shard}-of-00002.parquet", columns, FEATURES)
    columns = {"image": images(range(100, 106)), "label": [0, 1, 2] * 2}
    write(tmp_path / "test-00000-of-00001.parquet", columns, FEATURES)
    return tmp_path


@pytest.fixture
def sentences(tmp_path):
    """Like GLUE: the test split hides its labels as -1."""
    features = {
        "idx": {"dtype": "int32", "_type": "Value"},
        "sentence": {"dtype": "string", "_type": "Value"},
        "label": {"_type": "ClassLabel", "names": ["negative", "positive"]},
    }
    for split, count, label in (("train", 20, None), ("validation", 6, None), ("test", 4, -1)):
        columns = {
            "idx": pa.array(range(count), pa.int32()),
            "sentence": [f"{split} {i}" for i in range(count)],
            "label": [i % 2 if label is None else label for i in range(count)],
        }
        write(tmp_path / f"{split}-00000-of-00001.parquet", columns, features)
    return tmp_path


def test_images_and_class_names_are_read_in_order(pictures):
    source = huggingface(str(pictures))
    assert (source.kind, source.classes) == ("image", tuple(NAMES))
    assert (len(source.train), len(source.test), source.validation) == (20, 6, None)
    assert source.train.ids.tolist() == list(range(20))
    assert source.train.labels.tolist() == [i % 3 for i in range(20)]
    batch = source.train.fetch(torch.tensor([13, 2]))
    assert batch.dtype == torch.uint8
    assert np.array_equal(batch[0].numpy(), pixels(png(13)))
    assert np.array_equal(source.test.fetch(torch.tensor([4]))[0].numpy(), pixels(png(104)))


def test_many_images_stay_in_the_cache_of_datasets(pictures, tmp_path_factory, monkeypatch):
    import datasets

    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    far = huggingface(str(pictures), memory_limit_mb=0)
    assert not far.train.samples.in_memory
    near = huggingface(str(pictures))
    assert far.identity == near.identity
    index = torch.tensor([13, 2, 19])
    again = pickle.loads(pickle.dumps(far.train))
    assert torch.equal(again.fetch(index), near.train.fetch(index))
    assert torch.equal(far.test.fetch(torch.arange(6)), near.test.fetch(torch.arange(6)))


@pytest.mark.parametrize("memory_limit_mb", [2048, 0])
def test_a_corrupt_image_is_named(pictures, caplog, monkeypatch, tmp_path_factory, memory_limit_mb):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    cells = images(range(100, 106))
    cells[3]["bytes"] = cells[3]["bytes"][:60]
    cells[5]["bytes"] = None
    write(
        pictures / "test-00000-of-00001.parquet", {"image": cells, "label": [0, 1, 2] * 2}, FEATURES
    )
    with pytest.raises(DataError, match=r"2 of 26 .*\n.*row 3 \(from 0\) of the split 'test'"):
        huggingface(str(pictures), memory_limit_mb=memory_limit_mb)
    with caplog.at_level(logging.WARNING, logger="understudy"):
        source = huggingface(str(pictures), memory_limit_mb=memory_limit_mb, on_error="skip")
    assert "row 5 (from 0) of the split 'test'" in caplog.text
    assert source.test.labels.tolist() == [0, 1, 2, 1]
    assert np.array_equal(source.test.fetch(torch.tensor([3]))[0].numpy(), pixels(png(104)))


def test_a_hidden_test_split_is_refused_and_the_alternative_named(sentences):
    with pytest.raises(DataError, match="'test' of .* has no labels.*test='validation'"):
        huggingface(str(sentences))
    source = huggingface(str(sentences), test="validation")
    assert source.validation is None
    assert source.train.fetch(torch.tensor([3])) == ["train 3"]
    assert source.test.fetch(torch.tensor([3])) == ["validation 3"]
    assert source.classes == ("negative", "positive")
    carved = huggingface(str(sentences), test=0.2)
    assert len(carved.test) == 4
    assert carved.validation is not None


def test_a_split_keeps_its_ids_in_another_role(sentences):
    as_test = huggingface(str(sentences), test="validation")
    as_validation = huggingface(str(sentences), test=0.2)
    assert torch.equal(as_test.test.ids, as_validation.validation.ids)


def test_without_a_test_split_one_must_be_chosen(sentences):
    (sentences / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="no split called 'test'.*test='validation'"):
        huggingface(str(sentences))


def test_classes_can_be_put_in_the_teachers_order(sentences):
    source = huggingface(str(sentences), test="validation", classes=["positive", "negative"])
    assert source.classes == ("positive", "negative")
    assert source.train.labels.tolist()[:3] == [1, 0, 1]
    with pytest.raises(DataError, match="exactly the data's class names; 'good'"):
        huggingface(str(sentences), test="validation", classes=["good", "negative"])


def test_pairs_and_plain_columns_without_metadata(tmp_path):
    columns = {
        "premise": [f"p{i}" for i in range(10)],
        "hypothesis": [f"h{i}" for i in range(10)],
        "label": ["no", "yes"] * 5,
    }
    write(tmp_path / "data" / "train.parquet", columns)
    source = huggingface(str(tmp_path))
    assert source.classes == ("no", "yes")
    assert (len(source.train), len(source.test)) == (8, 2)
    row = int(source.train.ids[0])
    assert source.train.fetch(torch.tensor([0])) == [(f"p{row}", f"h{row}")]
    single = huggingface(str(tmp_path), text_column="hypothesis")
    assert single.train.fetch(torch.tensor([0])) == [f"h{row}"]


def test_plain_integers_of_minus_one_are_unlabelled_with_a_warning(tmp_path, caplog):
    columns = {"text": [f"t{i}" for i in range(12)], "label": [-1, 0, 1] * 4}
    write(tmp_path / "train.parquet", columns)
    with caplog.at_level(logging.WARNING, logger="understudy"):
        source = huggingface(str(tmp_path), test=0.25)
    assert source.classes == ("0", "1")
    assert "unlabelled: null" in caplog.text
    assert huggingface(str(tmp_path), test=0.25, unlabelled=None).classes == ("-1", "0", "1")


def test_configurations_and_converted_layouts(tmp_path):
    for config in ("big", "small"):
        for split in ("train", "test"):
            columns = {"text": [f"{config} {split} {i}" for i in range(4)], "label": [0, 1] * 2}
            write(tmp_path / config / split / "0000.parquet", columns)
    with pytest.raises(DataError, match="big, small.*config"):
        huggingface(str(tmp_path))
    with pytest.raises(DataError, match="Did you mean 'small'"):
        huggingface(str(tmp_path), config="smal")
    source = huggingface(str(tmp_path), config="small")
    assert source.test.fetch(torch.tensor([1])) == ["small test 1"]


def test_a_missing_shard_is_noticed(pictures):
    (pictures / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="should have 2 parquet files, but part 0 is missing"):
        huggingface(str(pictures))


def test_columns_that_cannot_be_told_apart_are_listed(tmp_path):
    features = {
        "image": {"_type": "Image"},
        "fine": {"_type": "ClassLabel", "names": ["a", "b"]},
        "coarse": {"_type": "ClassLabel", "names": ["a"]},
        "tags": [{"dtype": "string", "_type": "Value"}],
    }
    columns = {
        "image": images(range(4)),
        "fine": [0, 1, 0, 1],
        "coarse": [0] * 4,
        "tags": [["x"]] * 4,
    }
    write(tmp_path / "train.parquet", columns, features)
    with pytest.raises(DataError, match=r"fine \(ClassLabel\).*label_column"):
        huggingface(str(tmp_path))
    assert huggingface(str(tmp_path), label_column="fine", test=0.5).classes == ("a", "b")
    with pytest.raises(DataError, match="Did you mean 'fine'"):
        huggingface(str(tmp_path), label_column="fin")
    with pytest.raises(DataError, match="'fine' .* is of type ClassLabel, not Image"):
        huggingface(str(tmp_path), label_column="coarse", image_column="fine")
    with pytest.raises(DataError, match="not both"):
        huggingface(str(tmp_path), label_column="fine", image_column="image", text_column="tags")


def test_class_names_must_agree_between_files(pictures):
    features = {**FEATURES, "label": {"_type": "ClassLabel", "names": NAMES[::-1]}}
    columns = {"image": images(range(3)), "label": [0, 1, 2]}
    write(pictures / "test-00000-of-00001.parquet", columns, features)
    with pytest.raises(DataError, match="describe the column 'label' differently"):
        huggingface(str(pictures))


def test_labels_out_of_range_and_missing_texts_name_the_row(pictures, sentences):
    columns = {"image": images(range(3)), "label": [0, 1, 7]}
    write(pictures / "test-00000-of-00001.parquet", columns, FEATURES)
    for name in ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"):
        (sentences / name).unlink()
    with pytest.raises(DataError, match=r"row 2 \(from 0\) of the split 'test'.*has the label 7"):
        huggingface(str(pictures))


def test_a_null_text_names_the_row(tmp_path):
    write(tmp_path / "train.parquet", {"text": ["a", None, "c", "d"], "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match=r"row 1 \(from 0\).*no text in the column 'text'"):
        huggingface(str(tmp_path))


def test_what_is_not_there_is_explained(tmp_path, monkeypatch):
    import datasets

    with pytest.raises(DataError, match="does not exist"):
        huggingface(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no parquet files.*source 'folder'"):
        huggingface(str(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match="no readable parquet"):
        huggingface(str(tmp_path))

    def unreachable(*_args, **_keywords):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DataError, match="Couldn't reach the Hub.*hf download --repo-type dataset some/name"
    ):
        huggingface("some/name")


def test_a_hub_name_gives_the_same_as_its_files(pictures, monkeypatch):
    import datasets

    asked = []

    def from_files(path, config, revision):
        asked.append((path, config, revision))
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
        )
        parts = {}
        for split, seeds in (("train", range(20)), ("test", range(100, 106))):
            labels = [i % 3 for i in range(len(seeds))]
            columns = {"image": images(seeds), "label": labels}
            parts[split] = datasets.Dataset.from_dict(columns, features=features)
        return datasets.DatasetDict(parts)

    monkeypatch.setattr(datasets, "load_dataset", from_files)
    hub = huggingface("owner/pictures", revision="abc")
    assert asked == [("owner/pictures", None, "abc")]
    local = huggingface(str(pictures))
    assert hub.identity == local.identity
    assert torch.equal(hub.train.fetch(torch.arange(20)), local.train.fetch(torch.arange(20)))
    far = huggingface("owner/pictures", memory_limit_mb=0)
    assert torch.equal(far.test.fetch(torch.arange(6)), local.test.fetch(torch.arange(6)))


@pytest.mark.parametrize(
    ("module", "message"),
    [("pyarrow", r"understudy\[text\]"), ("PIL", r"Pillow.*understudy\[vision\]")],
)
def test_a_package_that_is_not_installed_is_named(pictures, monkeypatch, module, message):
    from understudy.data.sources import _extras

    installed = _extras.find_spec
    monkeypatch.setattr(
        _extras, "find_spec", lambda name: None if name == module else installed(name)
    )
    with pytest.raises(DataError, match=message):
        huggingface(str(pictures))
