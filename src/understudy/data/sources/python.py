"""Sources from Python: tensors, lists of texts, and any map-style `torch.utils.data.Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from understudy.data.batch import UNLABELLED
from understudy.data.samples import Channels, TensorSamples, TextSamples
from understudy.data.source import Kind, Samples, Source, Split
from understudy.data.sources._classes import encode_labels
from understudy.data.sources._items import Form, as_text, read_datasets
from understudy.data.sources._numbers import check_values, settle_kind, single_precision
from understudy.data.sources._splits import Roles, assemble, row_ids
from understudy.errors import DataError

Inputs = torch.Tensor | np.ndarray | Sequence[str] | Sequence[tuple[str, str]]
Labels = torch.Tensor | np.ndarray | Sequence[int | None] | Sequence[str | None] | None


def from_tensors(
    inputs: Inputs,
    labels: Labels,
    *,
    test_inputs: Inputs,
    test_labels: Labels,
    validation_inputs: Inputs | None = None,
    validation_labels: Labels = None,
    classes: Sequence[str] | None = None,
    kind: Kind | None = None,
    name: str = "tensors",
) -> Source:
    """Make a source of tensors, arrays or texts that are already in memory.

    Args:
        inputs: images [N, C, H, W] (uint8, or float in [0, 1]), plain tensors [N, ...], or N texts or pairs of texts.
        labels: N class indices (-1 or None: no label) or class names; None: nothing is labelled.
        test_inputs: what to test on, of the shape of `inputs`.
        test_labels: its labels.
        validation_inputs: what to select on; None: to be carved out of the training samples.
        validation_labels: its labels.
        classes: class names in label order; None: the names that occur, sorted, or "0", "1", ... up to the largest
            index.
        kind: "image", "text" or "tensor". None: "text" for texts, "image" for [N, 1 or 3, H, W] of uint8 or float,
            else "tensor".
        name: what a log calls it.

    Floats of other precisions become float32. A sample's id is its index; test and validation have ids of their own.

    Raises:
        DataError: NaN or infinity (names sample and split), image values outside [0, 1], shapes or numbers that
            differ.
    """
    parts: dict[str, tuple[Inputs, Labels]] = {
        "train": (inputs, labels),
        "test": (test_inputs, test_labels),
    }
    if validation_inputs is not None:
        parts["validation"] = (validation_inputs, validation_labels)
    elif validation_labels is not None:
        raise DataError(f"'{name}' has validation_labels without validation_inputs.")
    samples: dict[str, Samples] = {}
    for split, (values, _) in parts.items():
        samples[split] = _samples(values, kind, split, name)
        kind = kind or samples[split].kind
    _check_alike(samples, name)
    columns = {
        split: _label_list(given, len(samples[split]), split, name)
        for split, (_, given) in parts.items()
    }
    return _source(name, samples, columns, classes, test=None, validation=None)


def from_dataset(
    train: torch.utils.data.Dataset[Any],
    test: torch.utils.data.Dataset[Any] | float,
    *,
    validation: torch.utils.data.Dataset[Any] | float | None = None,
    classes: Sequence[str] | None = None,
    kind: Kind | None = None,
    input_key: str | None = None,
    label_key: str | None = None,
    size: int | None = None,
    channels: Channels = 3,
    memory_limit_mb: int = 2048,
    name: str = "dataset",
) -> Source:
    """Make a source of map-style datasets.

    Args:
        train: a dataset with `__len__` and `__getitem__` that gives (input, label), or a dictionary. An input is a
            Pillow image, an image tensor [C, H, W] (uint8, or float in [0, 1]), any other tensor, a text or a pair
            of texts; a label is a class index, a class name, or -1 or None for none.
        test: what to test on: another dataset, or a fraction to take out of `train`.
        validation: the same for selection; None: to be carved out of the training samples.
        classes: class names in label order; None: `train.classes` where there is such a list, else as in
            `from_tensors`.
        kind: as in `from_tensors`.
        input_key: the key of the input when items are dictionaries; None: "image", "text", "input" or another usual
            one.
        label_key: the key of the label; None: "label", "labels" or "target".
        size: height and width to scale and crop Pillow images to; None: they are of one size and stay as they are.
        channels: 3 to turn Pillow images into RGB, 1 for grey.
        memory_limit_mb: samples up to this size (in MiB) are kept in memory; more are asked for when needed.
        name: what a log calls it.

    Every sample is read once at the start. A sample's id is its index. The dataset must give the same sample for
    the same index whenever it is asked: random transforms belong to understudy's views, where they are seeded by
    sample.

    Raises:
        DataError: a sample that cannot be read or is of another form, NaN or infinity, image values outside [0, 1], a
            dataset that draws at random; names sample and split.
    """
    form = Form(input_key, label_key, size, channels, kind)
    datasets: dict[str, Any] = {"train": train}
    fractions: dict[str, float | None] = {"test": None, "validation": None}
    for split, given in (("test", test), ("validation", validation)):
        if isinstance(given, int | float):
            fractions[split] = float(given)
        elif given is not None:
            datasets[split] = given
    samples, columns = read_datasets(datasets, form, memory_limit_mb * 2**20, name)
    _check_alike(samples, name)
    known = getattr(train, "classes", None)
    if (
        classes is None
        and isinstance(known, list | tuple)
        and all(isinstance(k, str) for k in known)
    ):
        classes = known
    return _source(name, samples, columns, classes, **fractions)


def _source(
    name: str,
    samples: dict[str, Samples],
    columns: dict[str, list[object]],
    classes: Sequence[str] | None,
    *,
    test: float | None,
    validation: float | None,
) -> Source:
    """Join samples and labels to a source."""
    integers = [label for column in columns.values() for label in column if isinstance(label, int)]
    if classes is None and integers:
        # Not only the indices that occur: a model may know classes that these samples don't show.
        classes = [str(index) for index in range(max(integers) + 1)]
    labels, names = encode_labels(
        columns,
        lambda split, row: f"Sample {row} of the {split} split of '{name}'",
        classes=classes,
        missing=UNLABELLED,
    )
    splits = {}
    for split, part in samples.items():
        rows = torch.arange(len(part))
        splits[split] = Split(part, rows, labels[split], row_ids(split, rows))
    for split in ("test", "validation"):
        if split in splits and len(splits[split]) and not len(splits[split].labelled):
            raise DataError(
                f"No {split} sample of '{name}' has a label, so nothing can be measured there."
            )
    roles = Roles(
        train="train",
        test="test" if test is None else test,
        validation="validation" if "validation" in splits else validation,
        available=tuple(splits),
    )
    return assemble(name, samples["train"].kind, splits, roles, names)


def _samples(values: Inputs, kind: Kind | None, split: str, name: str) -> Samples:
    """Check one split's inputs and wrap them."""
    what = f"the {split} split of '{name}'"
    if isinstance(values, np.ndarray) and values.dtype.kind not in "USO":
        values = torch.from_numpy(values)
    if isinstance(values, torch.Tensor):
        if values.ndim == 0 or not len(values):
            raise DataError(f"The inputs in {what} are empty.")
        data = single_precision(values.detach().cpu())
        settled = settle_kind(data.shape[1:], data.dtype, kind, what)
        check_values(data, settled, what)
        return TensorSamples(data, settled)
    if kind not in (None, "text"):
        raise DataError(f"The inputs in {what} are no tensor, but kind='{kind}' was asked for.")
    texts = [as_text(value) for value in values]
    for row, text in enumerate(texts):
        if text is None or type(text) is not type(texts[0]):
            raise DataError(
                f"Sample {row} of {what} is {values[row]!r:.80}. Inputs are a tensor, an array, texts, or pairs "
                "of texts."
            )
    return TextSamples(texts)  # type: ignore[arg-type]


def _check_alike(samples: dict[str, Samples], name: str) -> None:
    """Refuse splits whose samples differ in kind, shape or type."""
    forms = {split: _form(part) for split, part in samples.items()}
    for split, form in forms.items():
        if form != forms["train"]:
            raise DataError(
                f"The splits of '{name}' hold different samples: train {forms['train']}, {split} {form}."
            )


def _form(samples: Samples) -> str:
    if isinstance(samples, TensorSamples):
        shape = tuple(samples.data.shape[1:])
        return f"{samples.kind}s of shape {shape} and type {str(samples.data.dtype).removeprefix('torch.')}"
    one = samples.fetch(torch.tensor([0]))[0]
    return "texts" if isinstance(one, str) else "pairs of texts"


def _label_list(labels: Labels, count: int, split: str, name: str) -> list[object]:
    """Return labels as Python values, one for each sample."""
    if labels is None:
        return [None] * count
    if isinstance(labels, torch.Tensor | np.ndarray):
        if labels.ndim != 1:
            raise DataError(
                f"The labels in the {split} split of '{name}' have shape {tuple(labels.shape)}; they must be "
                "[N]: a class "
                "index for each sample."
            )
        column: list[object] = labels.tolist()
    else:
        column = [
            label.item() if isinstance(label, torch.Tensor | np.generic) else label
            for label in labels
        ]
    if len(column) != count:
        raise DataError(
            f"The {split} split of '{name}' has {count} inputs but {len(column)} labels."
        )
    return column
