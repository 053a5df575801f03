import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from understudy.data.sources.python import from_dataset, from_tensors
from understudy.errors import DataError


def two_splits(inputs, **keywords):
    """Twelve training and six test samples of the same pool."""
    labels = torch.arange(18) % 3
    return from_tensors(
        inputs[:12], labels[:12], test_inputs=inputs[12:], test_labels=labels[12:], **keywords
    )


def test_tensors_come_back_as_they_are():
    images = torch.randint(0, 256, (18, 3, 4, 4), dtype=torch.uint8)
    source = two_splits(images)
    assert (source.kind, source.classes, source.validation) == ("image", ("0", "1", "2"), None)
    assert torch.equal(source.train.fetch(torch.tensor([7, 1])), images[[7, 1]])
    assert source.train.ids.tolist() == list(range(12))
    assert set(source.train.ids.tolist()).isdisjoint(source.test.ids.tolist())
    assert source.test.labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("inputs", "kind", "dtype"),
    [
        (torch.rand(18, 1, 4, 4), "image", torch.float32),
        (torch.rand(18, 3, 4, 4).double(), "image", torch.float32),
        (np.random.default_rng(0).random((18, 7)), "tensor", torch.float32),
        (torch.arange(36).reshape(18, 2), "tensor", torch.float32),
        (torch.rand(18, 12, 4, 4), "tensor", torch.float32),
        (torch.rand(18), "tensor", torch.float32),
    ],
)
def test_kinds_and_precisions(inputs, kind, dtype):
    source = two_splits(inputs)
    assert source.kind == kind
    rows = source.train.fetch(torch.tensor([5]))
    assert rows.dtype == dtype
    assert torch.equal(rows, torch.as_tensor(inputs[5:6]).float())


def test_texts_pairs_names_and_missing_labels():
    texts = [f"t{i}" for i in range(6)]
    source = from_tensors(
        texts,
        ["b", None, "a", "b", "", "a"],
        test_inputs=["x"],
        test_labels=["a"],
        validation_inputs=["y"],
        validation_labels=["b"],
    )
    assert (source.kind, source.classes) == ("text", ("a", "b"))
    assert source.train.labels.tolist() == [1, -1, 0, 1, -1, 0]
    assert source.validation.fetch(torch.tensor([0])) == ["y"]
    pairs = from_tensors([("a", "b")], None, test_inputs=[["c", "d"]], test_labels=[1])
    assert pairs.test.fetch(torch.tensor([0])) == [("c", "d")]
    assert pairs.train.labels.tolist() == [-1]
    assert pairs.classes == ("0", "1")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_name_sample_and_split(bad):
    values = torch.rand(18, 5)
    values[14, 2] = bad
    with pytest.raises(DataError, match=r"Sample 2 of the test split .* NaN or infinity \(1 of"):
        two_splits(values)


def test_images_outside_zero_to_one_must_be_called_tensors():
    normalised = torch.rand(18, 3, 4, 4)
    normalised[3, 0, 0, 0] = -1.5
    with pytest.raises(
        DataError, match=r"Sample 3 of the train split .* from -1.5 .*kind='tensor'"
    ):
        two_splits(normalised)
    source = two_splits(normalised, kind="tensor")
    assert torch.equal(source.train.fetch(torch.tensor([3])), normalised[3:4])


@pytest.mark.parametrize(
    ("inputs", "keywords", "message"),
    [
        (torch.zeros(18, 4, 4, 3, dtype=torch.uint8), {}, r"\[H, W, C\]"),
        (torch.rand(18, 5, 5), {"kind": "image"}, r"must be \[C, H, W\]"),
        (torch.zeros(18, 3, 4, 4, dtype=torch.int64), {"kind": "image"}, "must be uint8"),
        (torch.rand(18, 2), {"kind": "text"}, "cannot serve as text"),
        (["a"] * 18, {"kind": "image"}, "no tensor, but kind='image'"),
        (["a"] * 17 + [3], {}, "Sample 5 of the test split of 'tensors' is 3"),
        (torch.rand(18, 2), {"classes": ["a", "b"]}, "Sample 2 of the train split .* label 2"),
    ],
)
def test_unusable_inputs_are_explained(inputs, keywords, message):
    with pytest.raises(DataError, match=message):
        two_splits(inputs, **keywords)


def test_splits_must_fit_together():
    x, y = torch.rand(4, 2), torch.tensor([0, 1, 0, 1])
    with pytest.raises(DataError, match="4 inputs but 3 labels"):
        from_tensors(x, y[:3], test_inputs=x, test_labels=y)
    with pytest.raises(DataError, match=r"shape \(4, 1\)"):
        from_tensors(x, y[:, None], test_inputs=x, test_labels=y)
    with pytest.raises(DataError, match=r"train .*\(2,\).*test .*\(3,\)"):
        from_tensors(x, y, test_inputs=torch.rand(4, 3), test_labels=y)
    with pytest.raises(DataError, match="No test sample"):
        from_tensors(x, y, test_inputs=x, test_labels=None)
    with pytest.raises(DataError, match="without validation_inputs"):
        from_tensors(x, y, test_inputs=x, test_labels=y, validation_labels=y)
    with pytest.raises(DataError, match="empty"):
        from_tensors(x[:0], y[:0], test_inputs=x, test_labels=y)


class Items(Dataset):
    """What a list of items gives, as a user's dataset would."""

    def __init__(self, items, classes=None):
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        return item() if callable(item) else item


def image(seed: int, size: int = 4) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_datasets_of_tensors_equal_from_tensors():
    x, y = torch.rand(18, 3, 4, 4), torch.arange(18) % 3
    source = from_dataset(TensorDataset(x[:12], y[:12]), TensorDataset(x[12:], y[12:]))
    assert source.identity == two_splits(x).identity


def test_large_datasets_are_asked_when_needed():
    x, y = torch.rand(18, 3, 4, 4), torch.arange(18) % 3
    parts = TensorDataset(x[:12], y[:12]), TensorDataset(x[12:], y[12:])
    far = from_dataset(*parts, memory_limit_mb=0)
    assert not far.train.samples.in_memory
    assert far.identity == from_dataset(*parts).identity
    assert torch.equal(far.train.fetch(torch.tensor([9, 4])), x[[9, 4]])


def test_pillow_images_class_names_and_fractions():
    items = [(image(i), i % 2) for i in range(20)]
    source = from_dataset(Items(items, classes=["cat", "dog"]), 0.2, validation=0.25)
    assert source.classes == ("cat", "dog")
    assert (len(source.train), len(source.validation), len(source.test)) == (12, 4, 4)
    expected = torch.from_numpy(np.array(image(int(source.train.ids[0])))).permute(2, 0, 1)
    assert torch.equal(source.train.fetch(torch.tensor([0]))[0], expected)
    scaled = from_dataset(Items(items), 0.2, size=2, channels=1)
    assert scaled.train.fetch(torch.tensor([0])).shape == (1, 1, 2, 2)
    varied = [*items[:-1], (image(0, size=5), 0)]
    with pytest.raises(DataError, match=r"Sample 19 of the train split .*`size`"):
        from_dataset(Items(varied), 0.2)


def test_dictionaries_are_read_by_usual_or_given_keys():
    items = [{"text": f"t{i}", "label": i % 2, "extra": 0} for i in range(10)]
    assert from_dataset(Items(items), 0.2).kind == "text"
    renamed = [{"words": f"t{i}", "gold": "ab"[i % 2]} for i in range(10)]
    source = from_dataset(Items(renamed), 0.2, input_key="words", label_key="gold")
    assert source.classes == ("a", "b")
    with pytest.raises(DataError, match="words, gold.*say input_key"):
        from_dataset(Items(renamed), 0.2)
    with pytest.raises(DataError, match="Did you mean 'words'"):
        from_dataset(Items(renamed), 0.2, input_key="word")


def test_a_dataset_that_draws_at_random_is_refused():
    def noisy():
        return torch.rand(3, 4, 4), 0

    with pytest.raises(DataError, match="Sample 0 of the train split .* draws at random"):
        from_dataset(Items([noisy] * 4), 0.5)


def fails():
    raise OSError("disk gone")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (fails, "Sample 3 of the train split of 'dataset' cannot be read: OSError: disk gone"),
        ((torch.full((3, 4, 4), float("nan")), 0), "Sample 3 .* NaN or infinity"),
        ((torch.full((3, 4, 4), 2.0), 0), "Sample 3 .* from 2 to 2"),
        ((torch.rand(3, 4, 5), 0), r"Sample 3 .* shape \(3, 4, 5\)"),
        (("text", 0), "Sample 3 .* is a text"),
        ((torch.rand(3, 4, 4), torch.tensor([0, 1])), r"Sample 3 .* label of shape \(2,\)"),
        ((torch.rand(3, 4, 4), 0.5), "Sample 3 .* label 0.5"),
        ((torch.rand(3, 4, 4), 0, 1), "Sample 3 .* gives 3 values"),
        ((object(), 0), "Sample 3 .* is a object"),
    ],
)
@pytest.mark.parametrize("memory_limit_mb", [2048, 0])
def test_bad_items_name_sample_and_split(item, message, memory_limit_mb):
    items = [(torch.rand(3, 4, 4), i % 2) for i in range(8)]
    items[3] = item
    with pytest.raises(DataError, match=message):
        from_dataset(Items(items), 0.5, memory_limit_mb=memory_limit_mb)


def test_streams_and_empty_datasets_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(DataError, match="Stream.*map-style"):
        from_dataset(Stream(), 0.5)
    with pytest.raises(DataError, match="empty"):
        from_dataset(Items([]), 0.5)
