"""Reading map-style datasets whose items may be of many forms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from understudy.data.samples import Channels, TensorHash, TensorSamples, TextSamples, to_tensor
from understudy.data.source import Kind, Samples
from understudy.data.sources._numbers import check_values, settle_kind, single_precision
from understudy.errors import DataError, suggestion

_INPUT_KEYS = ("image", "img", "pixel_values", "text", "sentence", "input", "inputs", "x")
_LABEL_KEYS = ("label", "labels", "target", "targets", "y")
_ASKED_TWICE = 16
"""Items that are read again to see whether the dataset draws at random."""

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Form:
    """How an item is taken apart.

    Attributes:
        input_key: where a dictionary holds the input; None: under a usual name.
        label_key: where it holds the label.
        size: height and width for Pillow images, None to leave them.
        channels: channels for Pillow images.
        kind: what tensors are, None while it is not settled.
    """

    input_key: str | None
    label_key: str | None
    size: int | None
    channels: Channels
    kind: Kind | None

    def input(self, item: Any, where: str) -> torch.Tensor | Text:
        """Return the input of an item."""
        if isinstance(item, Mapping):
            return self._value(item[_key(item, self.input_key, _INPUT_KEYS, "input", where)], where)
        return self._value(_two(item, where)[0], where)

    def label(self, item: Any, where: str) -> object:
        """Return the label of an item: an integer, a name or None."""
        if isinstance(item, Mapping):
            label = item[_key(item, self.label_key, _LABEL_KEYS, "label", where)]
        else:
            label = _two(item, where)[1]
        if isinstance(label, torch.Tensor | np.ndarray | np.generic):
            if (
                label.size != 1
                if isinstance(label, np.ndarray | np.generic)
                else label.numel() != 1
            ):
                raise DataError(
                    f"{where} has a label of shape {tuple(label.shape)}; it must be one class index."
                )
            return label.item()
        return label

    def _value(self, value: Any, where: str) -> torch.Tensor | Text:
        text = as_text(value)
        if text is not None:
            return text
        if isinstance(value, np.ndarray | np.generic):
            value = torch.from_numpy(np.asarray(value))
        if isinstance(value, torch.Tensor):
            return single_precision(value.detach().cpu())
        if hasattr(value, "convert") and hasattr(value, "mode"):
            return to_tensor(value, size=self.size, channels=self.channels)
        raise DataError(
            f"{where} is a {type(value).__name__}; an input is a Pillow image, a tensor, a text or a pair of texts."
        )


@dataclass(frozen=True)
class DatasetSamples:
    """Samples that a dataset is asked for when they are needed."""

    dataset: Any
    form: Form
    kind: Kind
    shape: tuple[int, ...]
    identity: str
    what: str

    @property
    def in_memory(self) -> bool:
        """Return False."""
        return False

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def fetch(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the samples at `positions` (int64 [B]) as one tensor [B, ...]."""
        rows = []
        for position in positions.tolist():
            where = f"Sample {position} of {self.what}"
            row = self.form.input(read_item(self.dataset, position, where), where)
            if not isinstance(row, torch.Tensor) or tuple(row.shape) != self.shape:
                raise DataError(f"{where} is no longer a tensor of shape {self.shape}.")
            rows.append(row)
        batch = torch.stack(rows)
        return batch.float() if self.kind == "tensor" else batch


def as_text(value: object) -> Text | None:
    """Return a text or a pair of texts as such, and None for anything else."""
    if isinstance(value, str):
        return str(value)
    if (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(v, str) for v in value)
    ):
        return str(value[0]), str(value[1])
    return None


def read_item(dataset: Any, index: int, where: str) -> Any:
    """Return an item, with its place in the error when the dataset cannot give it."""
    try:
        return dataset[index]
    except Exception as error:  # A user's dataset may raise anything.
        raise DataError(f"{where} cannot be read: {type(error).__name__}: {error}.") from error


def read_datasets(
    datasets: Mapping[str, Any], form: Form, memory_limit: int, name: str
) -> tuple[dict[str, Samples], dict[str, list[object]]]:
    """Read every item once.

    Args:
        datasets: split -> dataset; "train" comes first.
        form: how items are taken apart.
        memory_limit: the most bytes that tensors may take in memory.
        name: what messages call the whole.

    Returns:
        split -> samples, and split -> labels as they are.
    """
    for split, dataset in datasets.items():
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError(
                f"The {split} dataset of '{name}' ({type(dataset).__name__}) has no __len__ or no __getitem__; "
                "only map-style "
                "datasets are read, whose samples can be addressed by number."
            )
        if not len(dataset):
            raise DataError(f"The {split} dataset of '{name}' is empty.")
    first = form.input(read_item(datasets["train"], 0, "The first sample"), "The first sample")
    total = sum(len(dataset) for dataset in datasets.values())
    fits = not isinstance(first, torch.Tensor) or first.nbytes * total <= memory_limit
    samples: dict[str, Samples] = {}
    labels: dict[str, list[object]] = {}
    for split, dataset in datasets.items():
        what = f"the {split} split of '{name}'"
        if isinstance(first, torch.Tensor):
            kind = settle_kind(first.shape, first.dtype, form.kind, what)
            settled = dataclasses.replace(form, kind=kind)
            samples[split], labels[split] = _read_tensors(dataset, settled, kind, first, fits, what)
        else:
            samples[split], labels[split] = _read_texts(dataset, form, first, what)
    return samples, labels


def _read_tensors(
    dataset: Any, form: Form, kind: Kind, example: torch.Tensor, fits: bool, what: str
) -> tuple[Samples, list[object]]:
    count = len(dataset)
    shape = (count, *example.shape)
    data = torch.empty(shape, dtype=example.dtype) if fits else None
    digest = TensorHash(shape, example.dtype)
    labels: list[object] = []
    again: list[torch.Tensor] = []
    for index in range(count):
        where = f"Sample {index} of {what}"
        item = read_item(dataset, index, where)
        value = form.input(item, where)
        if not isinstance(value, torch.Tensor):
            raise DataError(f"{where} is a text, unlike the first training sample.")
        if value.shape != example.shape or value.dtype != example.dtype:
            raise DataError(
                f"{where} has shape {tuple(value.shape)} and type {value.dtype}, the first training sample "
                f"{tuple(example.shape)} "
                f"and {example.dtype}. All must be alike; `size` brings Pillow images to one size."
            )
        check_values(value.unsqueeze(0), kind, what, begin=index)
        digest.update(value)
        labels.append(form.label(item, where))
        if data is not None:
            data[index] = value
        if index < _ASKED_TWICE:
            again.append(value)
    for index, value in enumerate(again):
        where = f"Sample {index} of {what}"
        second = form.input(read_item(dataset, index, where), where)
        if not isinstance(second, torch.Tensor) or not torch.equal(second, value):
            raise DataError(_random(where))
    if data is not None:
        return TensorSamples(data, kind), labels
    return DatasetSamples(
        dataset, form, kind, tuple(example.shape), digest.hexdigest(), what
    ), labels


def _read_texts(
    dataset: Any, form: Form, example: object, what: str
) -> tuple[Samples, list[object]]:
    texts: list[Any] = []
    labels: list[object] = []
    for index in range(len(dataset)):
        where = f"Sample {index} of {what}"
        item = read_item(dataset, index, where)
        value = form.input(item, where)
        if type(value) is not type(example):
            raise DataError(
                f"{where} is a {type(value).__name__}, the first training sample a {type(example).__name__}."
            )
        texts.append(value)
        labels.append(form.label(item, where))
    for index, text in enumerate(texts[:_ASKED_TWICE]):
        where = f"Sample {index} of {what}"
        if form.input(read_item(dataset, index, where), where) != text:
            raise DataError(_random(where))
    return TextSamples(texts), labels


def _random(where: str) -> str:
    return (
        f"{where} changes when it is asked for again, so the dataset draws at random. Leave random transforms "
        "out of it: "
        "understudy applies them itself, seeded by sample and view."
    )


def _two(item: Any, where: str) -> Any:
    if not isinstance(item, tuple | list) or len(item) != 2:
        held = (
            f"{len(item)} values" if isinstance(item, tuple | list) else f"a {type(item).__name__}"
        )
        raise DataError(f"{where} gives {held}; expected (input, label) or a dictionary.")
    return item


def _key(
    item: Mapping[str, Any], key: str | None, usual: tuple[str, ...], role: str, where: str
) -> str:
    if key is not None:
        if key not in item:
            raise DataError(f"{where} has no key '{key}'. {suggestion(key, item)}")
        return key
    present = [name for name in usual if name in item]
    if len(present) != 1:
        raise DataError(
            f"{where} has the keys {', '.join(map(str, item))}, and it is not clear which is the {role}; say "
            f"{role}_key."
        )
    return present[0]
