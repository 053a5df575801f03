"""Tables of texts and labels: CSV, JSONL and parquet."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from understudy.data.samples import TextSamples
from understudy.data.source import Source, Split, sources
from understudy.data.sources._classes import encode_labels, one_domain
from understudy.data.sources._rows import Rows, read_rows
from understudy.data.sources._splits import assemble, choose_roles, hash_id, row_ids
from understudy.errors import DataError


@sources.register("table")
def table(
    path: str | dict[str, str],
    text: str = "text",
    text_pair: str | None = None,
    label: str | None = "label",
    id: str | None = None,
    train: str = "train",
    test: str | float | None = None,
    validation: str | float | None = None,
    delimiter: str | None = None,
    quotes: bool = True,
    classes: list[str] | None = None,
    split_seed: int = 0,
) -> Source:
    """Load texts and labels from CSV (.csv, .tsv), JSON lines (.jsonl, .ndjson) or parquet files.

    Args:
        path: one file, or split name -> file, such as {"train": "train.csv", "test": "test.csv"}.
        text: the column of texts.
        text_pair: the column of second texts, when a sample is a pair.
        label: the column of labels: class names or integers. An empty or missing label means "no label". For language
            models the column of domains, by which measures are reported; None for a single one.
        id: a column that names every sample, with integers or texts; None: the number of the row.
        train: name of the training split.
        test: name of the test split, or a fraction to take out of the training split. None: the split "test"; for a
            single file, a fifth of it.
        validation: the same for selection. None: the split "validation" ("val", "valid", "dev") unless it is the test
            split, else none.
        delimiter: the character between columns of a CSV file; None: a comma, in .tsv files a tab.
        quotes: whether double quotes enclose values in a CSV file; False for files that hold them as plain
            characters.
        classes: class names in the order that is wanted, for instance the teacher's; then an integer label is an
            index into it. None: the labels that occur, sorted as numbers if all are numbers, else as text.
        split_seed: which samples a fraction takes; independent of the run's seed.

    A sample's id is the integer in the column `id`, a hash of the text in it, or the number of its row in its file.
    With ids of their own, rows may be added and moved without changing which sample is which.

    Raises:
        DataError: no such file or column, a row without text or with a wrong number of values, labels of mixed types,
            an id that occurs twice; names file and row.
    """
    files = {train: path} if isinstance(path, str) else dict(path)
    name = path if isinstance(path, str) else ", ".join(files.values())
    roles = choose_roles(
        list(files), train=train, test=test, validation=validation, what=f"Table '{name}'"
    )
    columns = [text, *([] if text_pair is None else [text_pair])]
    needed = [*columns, *(column for column in (label, id) if column is not None)]
    rows = {
        split: read_rows(files[split], needed, delimiter=delimiter, quotes=quotes)
        for split in roles.names
    }
    labels, names = _labels(rows, label, classes)
    ids = _ids(rows, id)
    samples = TextSamples(_texts(rows, columns))
    splits: dict[str, Split] = {}
    begin = 0
    for split in roles.names:
        positions = torch.arange(len(labels[split])) + begin
        splits[split] = Split(samples, positions, labels[split], ids[split])
        begin += len(positions)
    return assemble(name, "text", splits, roles, names, split_seed)


def _labels(
    rows: Mapping[str, Rows], column: str | None, classes: list[str] | None
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    if column is None:
        return one_domain({split: part.count for split, part in rows.items()})
    described = {part.class_names for part in rows.values()}
    if len(described) > 1:
        raise DataError(
            f"{' and '.join(part.file for part in rows.values())} do not name the same classes in the same "
            "order; make "
            "them agree."
        )
    names = described.pop()
    return encode_labels(
        {split: part.columns[column] for split, part in rows.items()},
        lambda split, row: rows[split].where(row),
        names=names,
        classes=classes,
        missing=None if names is None else -1,
    )


def _texts(rows: Mapping[str, Rows], columns: list[str]) -> list[str] | list[tuple[str, str]]:
    """Return the texts, or the pairs, of all splits."""
    texts: list[str] = []
    pairs: list[tuple[str, str]] = []
    for part in rows.values():
        for column in columns:
            for row, value in enumerate(part.columns[column]):
                if not isinstance(value, str):
                    held = (
                        "no text"
                        if value is None
                        else f"a {type(value).__name__} instead of a text"
                    )
                    raise DataError(f"{part.where(row)} has {held} in the column '{column}'.")
        if len(columns) == 1:
            texts += part.columns[columns[0]]
        else:
            pairs += zip(part.columns[columns[0]], part.columns[columns[1]], strict=True)
    return pairs or texts


def _ids(rows: Mapping[str, Rows], column: str | None) -> dict[str, torch.Tensor]:
    """Return the ids of every split, and refuse ids that occur twice."""
    if column is None:
        return {split: row_ids(split, torch.arange(part.count)) for split, part in rows.items()}
    seen: dict[int, str] = {}
    ids: dict[str, torch.Tensor] = {}
    for split, part in rows.items():
        found = []
        for row, value in enumerate(part.columns[column]):
            if isinstance(value, bool) or not isinstance(value, int | str):
                held = "no id" if value is None else f"a {type(value).__name__} for an id"
                raise DataError(f"{part.where(row)} has {held} in the column '{column}'.")
            number = value if isinstance(value, int) else hash_id(value)
            if not -(2**63) <= number < 2**63:
                raise DataError(
                    f"{part.where(row)} has the id {number}, which does not fit in 64 bits."
                )
            if number in seen:
                raise DataError(
                    f"{part.where(row)} has the id {value!r}, and so has {seen[number]}."
                )
            seen[number] = part.where(row)
            found.append(number)
        ids[split] = torch.tensor(found, dtype=torch.int64)
    return ids
