"""Data sets of the Hugging Face hub, by name or from a local folder in hub layout."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from understudy.data.labels import remainders
from understudy.data.samples import Channels, Encoded, TextSamples
from understudy.data.source import Samples, Source, Split, sources
from understudy.data.sources._classes import encode_labels, one_domain
from understudy.data.sources._columns import Feature, feature_type, find_inputs, find_label
from understudy.data.sources._hub import HubTables, open_hub
from understudy.data.sources._images import decoded_bytes, load_images
from understudy.data.sources._splits import assemble, choose_roles, row_ids
from understudy.errors import DataError


@sources.register("huggingface")
def huggingface(
    path: str,
    image_column: str | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    train: str = "train",
    test: str | float | None = None,
    validation: str | float | None = None,
    config: str | None = None,
    revision: str | None = None,
    classes: list[str] | None = None,
    unlabelled: int | None = -1,
    label_modulo: int | None = None,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    split_seed: int = 0,
    memory_limit_mb: int = 2048,
    on_error: Literal["raise", "skip"] = "raise",
) -> Source:
    """Load a data set of images or texts in the format of the Hugging Face hub.

    Args:
        path: a local folder in hub layout (`train-00000-of-00003.parquet`, ..., also under `data/` or a
            configuration), or a name on the hub, which `datasets` downloads into its cache.
        image_column: the images; None: the one column of type Image.
        text_column: the texts, when there are no images; None: "text", "sentence", the only column of strings, or
            the first of a usual pair ("premise" and "hypothesis", ...).
        text_pair_column: the second texts of pairs.
        label_column: the labels; None: "label" or "labels", else the one column of type ClassLabel. "" for texts that
            have none, as language models need none.
        train: name of the training split.
        test: name of the test split, or a fraction to take out of the training split. None: the split "test"; when
            there is only a training split, a fifth of it.
        validation: the same for selection. None: the split "validation" ("val", "valid", "dev") unless it is the test
            split, else none.
        config: the data set's configuration, such as "sst2" of "glue".
        revision: a branch, tag or commit on the hub.
        classes: class names in the order that is wanted, for instance the teacher's; None: the data's own.
        unlabelled: the integer label that means "none", besides null; None: no integer does.
        label_modulo: make classes of the labels' remainders, so that 2 gives "even" and "odd"; None: the labels.
        size: height and width of images, see the source "folder"; None: they are of one size and stay as they are.
        channels: 3 for RGB, 1 for grey.
        split_seed: which samples a fraction takes; independent of the run's seed.
        memory_limit_mb: decoded images up to this size (in MiB) are kept in memory. More are decoded when needed,
            from the memory-mapped files in the cache of `datasets`.
        on_error: whether a damaged image is refused ("raise"), or left out and named in a warning ("skip").

    A sample's id is its row number in its split. Rows that take part in no role are not read.

    Raises:
        DataError: data that cannot be found or loaded, columns that cannot be told apart, labels that fit no class,
            damaged images, a test split without labels.
    """
    tables = open_hub(path, config, revision)
    what = f"'{path}'"
    roles = choose_roles(tables.splits, train=train, test=test, validation=validation, what=what)
    features = tables.features(roles.names)
    label = None if label_column == "" else find_label(features, label_column, what)
    inputs = find_inputs(features, image_column, text_column, text_pair_column, label, what)
    if label is None:
        counts = {split: len(tables.column(split, inputs[0])) for split in roles.names}
        labels, names = one_domain(counts)
    else:
        labels, names = _labels(
            tables, roles.names, features[label], label, classes, unlabelled, what
        )
    counts = {split: len(labels[split]) for split in roles.names}
    samples: Samples
    if feature_type(features[inputs[0]]) == "Image":
        files = _encoded(tables, inputs[0], counts, size, channels, memory_limit_mb)
        samples, good = load_images(
            files,
            size=size,
            channels=channels,
            memory_limit_mb=memory_limit_mb,
            on_error=on_error,
            what=what,
        )
    else:
        samples = TextSamples(_texts(tables, roles.names, inputs, what))
        good = torch.ones(len(samples), dtype=torch.bool)
    splits, begin = {}, 0
    for split, count in counts.items():
        rows = torch.arange(count)
        whole = Split(samples, rows + begin, labels[split], row_ids(split, rows))
        splits[split] = whole.subset(rows[good[begin : begin + count]])
        begin += count
    source = assemble(path, samples.kind, splits, roles, names, split_seed)
    return source if label_modulo is None else remainders(source, label_modulo)


@dataclass(frozen=True)
class _Rows:
    """Cells of an image column in memory: files' bytes, or {"bytes", "path"}."""

    cells: Sequence[Any]
    names: Sequence[tuple[str, int]]

    def __len__(self) -> int:
        return len(self.cells)

    def read(self, position: int) -> bytes:
        return _file_bytes(self.cells[position])

    def name(self, position: int) -> str:
        return _row_name(*self.names[position])


@dataclass(frozen=True)
class _Mapped:
    """An image column of a memory-mapped `datasets.Dataset`, which workers open again by its file names."""

    dataset: Any
    column: str
    counts: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, position: int) -> bytes:
        return _file_bytes(self.dataset.data.column(self.column)[position].as_py())

    def name(self, position: int) -> str:
        for split, count in self.counts.items():
            if position < count:
                return _row_name(split, position)
            position -= count
        raise IndexError("position beyond the last image")


def _row_name(split: str, row: int) -> str:
    return f"row {row} (from 0) of the split '{split}'"


def _file_bytes(cell: Any) -> bytes:
    """Return the bytes of an image cell, which holds them or the path of a file."""
    data = cell.get("bytes") if isinstance(cell, Mapping) else cell
    path = cell.get("path") if isinstance(cell, Mapping) else None
    if isinstance(data, bytes):
        return data
    if path is None:
        raise ValueError("there is no image")
    if not Path(path).is_file():
        raise ValueError(
            f"it names the file '{path}', which does not exist, instead of holding the image"
        )
    return Path(path).read_bytes()


def _encoded(
    tables: HubTables,
    column: str,
    counts: Mapping[str, int],
    size: int | None,
    channels: Channels,
    memory_limit_mb: int,
) -> Encoded:
    """Return the images of all splits in use: in memory when they will be decoded at once, else memory-mapped."""
    first = next(iter(counts))
    head = tables.head(first, column).to_pylist()
    peek = _Rows(head, [(first, row) for row in range(len(head))])
    if decoded_bytes(peek, sum(counts.values()), size, channels) > memory_limit_mb * 2**20:
        dataset = tables.mapped(list(counts)).select_columns([column])
        return _Mapped(dataset, column, counts)
    cells: list[Any] = []
    for split in counts:
        cells += tables.column(split, column).to_pylist()
    return _Rows(cells, [(split, row) for split, count in counts.items() for row in range(count)])


def _texts(
    tables: HubTables, splits: Sequence[str], columns: Sequence[str], what: str
) -> list[str] | list[tuple[str, str]]:
    """Read the texts, or pairs of texts, of all splits."""
    texts: list[Any] = []
    for split in splits:
        read = [tables.column(split, column).to_pylist() for column in columns]
        for column, values in zip(columns, read, strict=True):
            row = next(
                (row for row, value in enumerate(values) if not isinstance(value, str)), None
            )
            if row is not None:
                raise DataError(
                    f"{_row_name(split, row)} of {what} has no text in the column '{column}'."
                )
        texts += read[0] if len(read) == 1 else list(zip(*read, strict=True))
    return texts


def _labels(
    tables: HubTables,
    splits: Sequence[str],
    feature: Feature,
    column: str,
    classes: list[str] | None,
    unlabelled: int | None,
    what: str,
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Read and encode the labels of all splits."""
    values = {split: tables.column(split, column).to_pylist() for split in splits}
    names = feature["names"] if feature_type(feature) == "ClassLabel" else None
    if names is None and unlabelled is not None:
        for split, cells in values.items():
            count = cells.count(unlabelled)
            if 0 < count < len(cells) - cells.count(None):
                logging.getLogger("understudy").warning(
                    "%d samples in the split '%s' of %s have the label %d, which is read as 'no label'. If it is a "
                    "class, say unlabelled: null.",
                    count,
                    split,
                    what,
                    unlabelled,
                )

    def where(split: str, row: int) -> str:
        return f"{_row_name(split, row)} of {what}"

    return encode_labels(values, where, names=names, classes=classes, missing=unlabelled)
