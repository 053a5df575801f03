from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from understudy.errors import ModelError, UnknownName
from understudy.models.preprocess import (
    ImagePreprocess,
    TensorPreprocess,
    TextPreprocess,
    adjusted,
    channel_statistics,
    from_config,
    plain_preprocess,
)
from understudy.models.tokenizer import tokenizer_fingerprint, train_tokenizer

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def by_hand(images: torch.Tensor) -> torch.Tensor:
    values = images.double() / 255 if images.dtype == torch.uint8 else images.double()
    mean = torch.tensor(MEAN, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(STD, dtype=torch.float64).view(1, 3, 1, 1)
    return ((values - mean) / std).float()


def bytes_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_images_are_normalised_as_by_hand(as_bytes: bool, channels_last: bool) -> None:
    images = bytes_images(4, 3, 6, 5)
    raw = images if as_bytes else images.float() / 255
    before = raw.clone()
    result = ImagePreprocess(MEAN, STD, channels_last=channels_last)(raw, CPU)
    torch.testing.assert_close(result, by_hand(images))
    assert result.dtype == torch.float32
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=layout)
    assert torch.equal(raw, before), "the raw images belong to somebody else"


def test_float_images_of_other_precisions_are_normalised() -> None:
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(ImagePreprocess(MEAN, STD)(images, CPU), by_hand(images))


def test_grey_images_fill_the_channels() -> None:
    grey = bytes_images(2, 1, 4, 4)
    result = ImagePreprocess(MEAN, STD)(grey, CPU)
    torch.testing.assert_close(result, by_hand(grey.expand(2, 3, 4, 4)))
    one = ImagePreprocess((0.5,), (0.25,), channels=3)(grey, CPU)
    assert torch.equal(one[:, 0], one[:, 2])


def test_images_are_resized_only_if_they_have_another_size() -> None:
    images = torch.rand(2, 3, 16, 16)
    same = ImagePreprocess(MEAN, STD, size=16)(images, CPU)
    assert torch.equal(same, ImagePreprocess(MEAN, STD)(images, CPU))
    smaller = ImagePreprocess(MEAN, STD, size=(8, 4))(images, CPU)
    expected = functional.interpolate(images, (8, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(smaller, by_hand(expected))


def test_a_cubic_filter_does_not_leave_the_range_of_pixels() -> None:
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1.0
    unit = ImagePreprocess((0.0,), (1.0,), size=32, interpolation="bicubic", channels=3)
    assert unit(step, CPU).min() == 0.0
    assert unit(step, CPU).max() == 1.0
    from_bytes = unit((step * 255).to(torch.uint8), CPU)
    torch.testing.assert_close(from_bytes, unit(step, CPU))


def test_gradients_flow_also_after_a_first_call_in_inference_mode() -> None:
    preprocess = ImagePreprocess(MEAN, STD)
    with torch.inference_mode():
        preprocess(torch.rand(1, 3, 4, 4), CPU)
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    preprocess(images, CPU).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad[0, :, 0, 0], 1 / torch.tensor(STD))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (torch.zeros(2, 2, 4, 4, dtype=torch.uint8), "3 channels, the images have 2"),
        (torch.zeros(3, 4, 4), r"\[B, C, H, W\]"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), "int64"),
        (["a"], "list"),
    ],
)
def test_other_things_than_images_are_refused(raw: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        ImagePreprocess(MEAN, STD)(raw, CPU)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": (0.1, 0.2), "std": (1.0,)}, "2 means and 1"),
        ({"mean": (0.1,) * 2, "std": (1.0,) * 2, "channels": 3}, "2 means for 3 channels"),
        ({"mean": (0.1,), "std": (0.0,)}, "above 0"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "finite"),
        ({"mean": (0.1,), "std": (1.0,), "size": (0, 4)}, "size"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        ImagePreprocess(**settings)  # type: ignore[arg-type]


def test_configurations_are_json_and_rebuild() -> None:
    first = ImagePreprocess(MEAN, STD, size=8, interpolation="bicubic")
    config = json.loads(json.dumps(first.config()))
    assert from_config(config) == first
    assert hash(from_config(config)) == hash(first)
    assert first != ImagePreprocess(MEAN, STD, size=9, interpolation="bicubic")
    assert first == ImagePreprocess(
        MEAN, STD, size=(8, 8), interpolation="bicubic", channels_last=True
    )
    plain = TensorPreprocess((0.0, 1.0), (1.0, 2.0))
    assert from_config(json.loads(json.dumps(plain.config()))) == plain
    assert TensorPreprocess() != plain


def test_settings_replace_a_models_own() -> None:
    base = ImagePreprocess(MEAN, STD, size=8)
    changed = adjusted(base, {"size": None, "interpolation": "nearest"})
    assert changed == ImagePreprocess(MEAN, STD, interpolation="nearest")
    with pytest.raises(UnknownName, match="'size'"):
        adjusted(base, {"sizes": 3})
    with pytest.raises(ModelError, match="tensor data"):
        adjusted(base, {"type": "tensor"})
    with pytest.raises(UnknownName, match="bilinear"):
        adjusted(base, {"interpolation": "bilinea"})


def test_tensors_are_normalised_along_dimension_one() -> None:
    values = torch.randn(5, 2, 7)
    result = TensorPreprocess((1.0, 2.0), (0.5, 4.0))(values, CPU)
    expected = (values - torch.tensor([1.0, 2.0]).view(1, 2, 1)) / torch.tensor([0.5, 4.0]).view(
        1, 2, 1
    )
    torch.testing.assert_close(result, expected)
    assert TensorPreprocess()(values, CPU) is values
    with pytest.raises(ModelError, match="2 features"):
        TensorPreprocess((1.0, 2.0), (0.5, 4.0))(torch.randn(5, 3), CPU)
    with pytest.raises(ModelError, match="both"):
        TensorPreprocess(mean=(1.0,))


@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e3),
    st.integers(0, 1000),
)
def test_statistics_equal_torchs_and_do_not_depend_on_the_split(
    count: int, channels: int, mean: float, std: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, channels, 3, generator=generator) * std + mean
    measured = channel_statistics(values)
    exact = values.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        torch.tensor(measured[0]), exact.mean(1).float(), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        torch.tensor(measured[1]), exact.std(1, unbiased=False).float(), rtol=1e-4, atol=1e-6
    )
    parts = channel_statistics(values.split(max(1, count // 3)))
    assert parts[0] == pytest.approx(measured[0], rel=1e-9, abs=1e-12)
    assert parts[1] == pytest.approx(measured[1], rel=1e-9, abs=1e-12)


def test_statistics_make_bytes_standard() -> None:
    images = bytes_images(64, 3, 8, 8) // 2
    result = ImagePreprocess(*channel_statistics(images))(images, CPU)
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.std((0, 2, 3), unbiased=False), torch.ones(3))


def test_statistics_of_odd_data() -> None:
    constant = torch.full((4, 2, 3, 3), 7, dtype=torch.uint8)
    mean, std = channel_statistics(constant)
    assert mean == pytest.approx((7 / 255, 7 / 255))
    assert std == (1.0, 1.0)
    with pytest.raises(ModelError, match="NaN"):
        channel_statistics(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(ModelError, match="no samples"):
        channel_statistics(torch.zeros(0, 3))
    with pytest.raises(ModelError, match=r"\[N, C"):
        channel_statistics(torch.zeros(3))


TEXTS = [
    f"a film of {number} good and bad moments, {number * 37 % 11} in all" for number in range(50)
]


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return train_tokenizer(TEXTS, 120)


def test_texts_are_padded_to_the_longest_and_cut(tokenizer) -> None:  # type: ignore[no-untyped-def]
    preprocess = TextPreprocess(tokenizer, max_length=8)
    batch = preprocess(["a film", "a film of good moments " * 9], CPU)
    assert list(batch) == ["input_ids", "attention_mask"]
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].sum(1).tolist() == [4, 8]
    assert batch["input_ids"][0, 4:].tolist() == [tokenizer.pad_token_id] * 4
    assert preprocess(["a film"], CPU)["input_ids"].shape == (1, 4)
    fixed = TextPreprocess(tokenizer, max_length=8, dynamic=False)
    assert fixed(["a film"], CPU)["input_ids"].shape == (1, 8)


def test_pairs_get_segments_where_the_model_takes_them(tokenizer) -> None:  # type: ignore[no-untyped-def]
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    batch = TextPreprocess(tokenizer, 16, inputs)([("a film", "good"), ("bad", "film")], CPU)
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1]
    with pytest.raises(ModelError, match="pairs of strings only"):
        TextPreprocess(tokenizer)(["a", ("b", "c")], CPU)
    with pytest.raises(ModelError, match="list of strings"):
        TextPreprocess(tokenizer)("a film", CPU)


def test_text_preprocessing_is_what_its_configuration_says(tokenizer, tmp_path) -> None:  # type: ignore[no-untyped-def]
    preprocess = TextPreprocess(tokenizer, max_length=8)
    preprocess(["a film of good moments " * 9], CPU)
    tokenizer.save_pretrained(str(tmp_path / "same"))
    again = from_config(json.loads(json.dumps(preprocess.config())), tokenizer=tmp_path / "same")
    assert again == preprocess
    batches = [each(TEXTS[:4], CPU)["input_ids"] for each in (preprocess, again)]
    assert torch.equal(*batches)
    other = train_tokenizer(TEXTS, 100)
    assert TextPreprocess(other, max_length=8) != preprocess
    with pytest.raises(ModelError, match="not the one"):
        from_config(preprocess.config(), tokenizer=other)
    with pytest.raises(ModelError, match="No tokenizer"):
        from_config(preprocess.config(), tokenizer=tmp_path / "missing")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_a_tokenizer_is_repeatable_and_loses_nothing(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    first = train_tokenizer(TEXTS, 300, kind)  # type: ignore[arg-type]
    prints = {tokenizer_fingerprint(train_tokenizer(TEXTS, 300, kind)) for _ in range(6)}  # type: ignore[arg-type]
    assert prints == {tokenizer_fingerprint(first)}
    assert len(first) <= 300
    ids = first(TEXTS[3])["input_ids"]
    assert first.decode(ids, skip_special_tokens=True).replace(" ", "") == TEXTS[3].replace(" ", "")
    assert first.convert_ids_to_tokens([ids[0], ids[-1]]) == ["[CLS]", "[SEP]"]
    # Text that looks like an inner piece of the vocabulary is text.
    assert "##o" not in first.tokenize("x ##o")


def test_impossible_tokenizers_are_refused() -> None:
    with pytest.raises(ModelError, match="too small"):
        train_tokenizer(TEXTS, 10)
    with pytest.raises(ModelError, match="no text"):
        train_tokenizer([""], 100)
    with pytest.raises(UnknownName, match="wordpiece"):
        train_tokenizer(TEXTS, 100, "wordpeace")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="tokenizer"):
        plain_preprocess("text")
