"""From labels as files hold them (names, numbers, nothing) to class indices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from understudy.data.batch import UNLABELLED
from understudy.errors import DataError, suggestion

Where = Callable[[str, int], str]
"""(split, row from 0) -> what a message calls the row."""

Cell = int | str | None


def one_domain(counts: Mapping[str, int]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return labels for texts that have none, as `encode_labels` does: all are of one domain.

    Args:
        counts: split -> number of samples.
    """
    labels = {split: torch.zeros(count, dtype=torch.int64) for split, count in counts.items()}
    return labels, ("text",)


def encode_labels(
    columns: Mapping[str, Sequence[object]],
    where: Where,
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    missing: int | None = None,
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Turn labels into class indices.

    Args:
        columns: split -> labels. None, NaN and empty strings mean "no label".
        where: names a row in an error.
        names: what the data say that its integers 0, 1, ... stand for.
        classes: the class names in the order that is wanted. Without `names`, integer labels are indices into it.
        missing: an integer that means "no label" as well.

    Without `names` and `classes`, the classes are the labels that occur in any split, sorted: as numbers when all are
    integers, as text otherwise.

    Returns:
        split -> int64 [N] with -1 for no label, and the class names in label order.

    Raises:
        DataError: labels of mixed types or no labels at all, a label out of range or not in `classes`.
    """
    cells = {
        split: [_cell(value, missing, where, split, row) for row, value in enumerate(column)]
        for split, column in columns.items()
    }
    occurring = {cell for column in cells.values() for cell in column if cell is not None}
    if len({type(cell) for cell in occurring}) > 1:
        raise DataError(_mixed(cells, where))
    if names is not None:
        index_of, ordered = _named(names, classes)
    elif classes is not None:
        ordered = tuple(classes)
        index_of = {label: i for i, label in enumerate(_spellings(ordered, occurring))}
    else:
        if not occurring:
            raise DataError(
                "No sample has a label, so the classes are unknown; name them with `classes`."
            )
        labels = (
            sorted(occurring, key=int) if _plain_numbers(occurring) else sorted(occurring, key=str)
        )
        ordered = tuple(str(label) for label in labels)
        index_of = {label: i for i, label in enumerate(labels)}
    encoded = {}
    for split, column in cells.items():
        indices = [UNLABELLED if cell is None else index_of.get(cell, -2) for cell in column]
        if -2 in indices:
            row = indices.index(-2)
            raise DataError(
                f"{where(split, row)} has the label {column[row]!r}. {_valid(column[row], ordered)}"
            )
        encoded[split] = torch.tensor(indices, dtype=torch.int64)
    return encoded, ordered


def _cell(value: object, missing: int | None, where: Where, split: str, row: int) -> Cell:
    """Normalise one label."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            raise DataError(
                f"{where(split, row)} has the label {value}; a class is a name or an integer."
            )
        value = int(value)
    if isinstance(value, int):
        return None if value == missing else value
    raise DataError(
        f"{where(split, row)} has a {type(value).__name__} for a label; a class is a name or an integer."
    )


def _named(
    names: Sequence[str], classes: Sequence[str] | None
) -> tuple[dict[Cell, int], tuple[str, ...]]:
    """Return index in the data -> index in the wanted order, and that order."""
    if classes is None:
        return {index: index for index in range(len(names))}, tuple(names)
    if sorted(names) != sorted(classes):
        odd = sorted(set(names) ^ set(classes))
        raise DataError(
            f"`classes` must hold exactly the data's class names; '{odd[0] if odd else classes[0]}' does not fit. "
            f"{suggestion(odd[0] if odd else classes[0], names)}"
        )
    wanted = {name: index for index, name in enumerate(classes)}
    return {index: wanted[name] for index, name in enumerate(names)}, tuple(classes)


def _spellings(classes: tuple[str, ...], occurring: set[int | str]) -> Sequence[int | str]:
    """Return how the data write each of `classes`: by its name, or by its index when no name occurs."""
    if all(isinstance(label, int) for label in occurring):
        return range(len(classes))
    if _plain_numbers(occurring) and occurring.isdisjoint(classes):
        return [str(index) for index in range(len(classes))]
    return classes


def _plain_numbers(labels: set[int | str]) -> bool:
    """Tell whether every label is a number or its plain spelling, so that "10" comes after "9"."""
    try:
        return all(str(int(label)) == str(label) for label in labels)
    except ValueError:
        return False


def _mixed(cells: Mapping[str, Sequence[Cell]], where: Where) -> str:
    first: tuple[str, Cell] | None = None
    for split, column in cells.items():
        for row, cell in enumerate(column):
            if cell is None:
                continue
            if first is None:
                first = (where(split, row), cell)
            elif type(cell) is not type(first[1]):
                return (
                    f"Labels are of two types: {first[0]} has {first[1]!r}, {where(split, row)} has {cell!r}. "
                    "Write all as names or all as integers."
                )
    raise AssertionError("called for labels of two types")


def _valid(cell: Cell, classes: tuple[str, ...]) -> str:
    if isinstance(cell, int):
        return f"There are {len(classes)} classes, so labels run from 0 to {len(classes) - 1}."
    return suggestion(str(cell), classes)
