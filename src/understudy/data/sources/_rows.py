"""Reading CSV, JSON lines and parquet so that an error can name the row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.data.sources._columns import feature_type
from understudy.data.sources._extras import need
from understudy.data.sources._hub import features_of, open_parquet
from understudy.errors import DataError, suggestion

_FORMATS = ".csv, .tsv, .jsonl, .ndjson or .parquet"
_LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Rows:
    """Some columns of a file.

    Attributes:
        file: its path in quotes.
        columns: column -> values; None where there is none.
        lines: the line that each row begins on, from 1; None for parquet.
        class_names: what the label column's integers stand for, when the file says so.
    """

    file: str
    columns: dict[str, list[Any]]
    lines: Sequence[int] | None
    class_names: tuple[str, ...] | None = None

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values())))

    def where(self, row: int) -> str:
        """Return what a message calls a row (from 0)."""
        if self.lines is None:
            return f"Row {row} (from 0) of {self.file}"
        return f"Line {self.lines[row]} of {self.file}"


def read_rows(path: str, columns: Sequence[str], *, delimiter: str | None, quotes: bool) -> Rows:
    """Read `columns` of a file whose suffix tells its format.

    Raises:
        DataError: no such file, an unknown suffix, a column that is not there, a line that cannot be read.
    """
    place = Path(path).expanduser()
    file = f"'{path}'"
    if not place.is_file():
        raise DataError(f"The file {file} {'is a folder' if place.is_dir() else 'does not exist'}.")
    suffix = place.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(place, file, columns)
    if suffix in (".csv", ".tsv"):
        mark = delimiter or ("\t" if suffix == ".tsv" else ",")
        if len(mark) != 1:
            raise DataError(f"The delimiter of {file} is {mark!r}; it must be a single character.")
        rows = _read_csv(_text(place, file), file, columns, mark, quotes)
    elif suffix in (".jsonl", ".ndjson"):
        rows = _read_json_lines(_text(place, file), file, columns)
    else:
        raise DataError(f"The file {file} has the suffix '{suffix}'; a table is a {_FORMATS} file.")
    if not rows.count:
        raise DataError(f"The file {file} holds no rows.")
    return rows


def _text(place: Path, file: str) -> str:
    data = place.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"Line {line} of {file} is not UTF-8 ({error.reason}); convert the file."
        ) from error


def _read_csv(text: str, file: str, columns: Sequence[str], delimiter: str, quotes: bool) -> Rows:
    begin = 1
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
            strict=True,
        )
        header = [name.strip() for name in next(reader, [])]
        places = [_place(header, column, file) for column in columns]
        values: dict[str, list[Any]] = {column: [] for column in columns}
        lines: list[int] = []
        begin = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise DataError(
                        f"Line {begin} of {file} has {len(row)} values, but the header names {len(header)} columns."
                    )
                for column, place in zip(columns, places, strict=True):
                    values[column].append(row[place] or None)
                lines.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"The record that begins on line {begin} of {file} cannot be read: {error}. If the file holds "
            "double quotes as "
            "plain characters, set quotes to false."
        ) from error
    finally:
        csv.field_size_limit(limit)
    return Rows(file, values, lines)


def _read_json_lines(text: str, file: str, columns: Sequence[str]) -> Rows:
    values: dict[str, list[Any]] = {column: [] for column in columns}
    lines: list[int] = []
    keys: set[str] = set()
    # Not `splitlines`: JSON strings may hold other line separators.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"Line {number} of {file} is not JSON: {error}.") from error
        if not isinstance(entry, dict):
            raise DataError(
                f"Line {number} of {file} holds a {type(entry).__name__}; every line must be an object like "
                '{"text": "...", "label": "..."}.'
            )
        keys.update(entry)
        for column in columns:
            values[column].append(entry.get(column))
        lines.append(number)
    for column in columns:
        if lines and column not in keys:
            raise DataError(f"No line of {file} has the key '{column}'. {suggestion(column, keys)}")
    return Rows(file, values, lines)


def _read_parquet(place: Path, file: str, columns: Sequence[str]) -> Rows:
    need("pyarrow", "Reading parquet")
    import pyarrow as pa

    parquet = open_parquet(place)
    schema = parquet.schema_arrow
    for column in columns:
        _place(schema.names, column, file)
    if not parquet.metadata.num_rows:
        raise DataError(f"The file {file} holds no rows.")
    try:
        content = parquet.read(columns=list(dict.fromkeys(columns)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    described = [
        tuple(feature["names"])
        for name, feature in features_of(schema).items()
        if name in columns and feature_type(feature) == "ClassLabel"
    ]
    return Rows(
        file,
        {column: content.column(column).to_pylist() for column in columns},
        None,
        described[0] if described else None,
    )


def _place(names: Sequence[str], column: str, file: str) -> int:
    """Return the index of a column that occurs exactly once."""
    if names.count(column) != 1:
        problem = "has no column" if column not in names else "has more than one column"
        raise DataError(f"The file {file} {problem} '{column}'. {suggestion(column, names)}")
    return names.index(column)
