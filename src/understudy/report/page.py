"""Rendering a page: one HTML file with all it needs, which asks the network for nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from understudy.errors import RunDirectoryError
from understudy.report import formatting
from understudy.report.figures import Entry, Figure
from understudy.report.formatting import Column
from understudy.report.measure import Measure
from understudy.report.run import Role
from understudy.report.statistics import PairedTest, Row


@dataclass(frozen=True)
class Cell:
    """One number of a table: as it is stored, and as it is shown."""

    key: str
    mean: float | None
    text: str
    deviation: str
    best: bool


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    label: str
    run: str
    standing: str
    model: str
    role: Role
    colour: str
    row: Row
    cells: tuple[Cell, ...]


def lines_of(
    entries: Sequence[Entry], columns: Sequence[Column], mark_best: bool = False
) -> list[Line]:
    """Return the lines of a table; `mark_best` marks the best of baseline and students in each column."""
    best = {column.key: _best(entries, column) if mark_best else None for column in columns}
    return [
        Line(
            entry.label,
            entry.label.removesuffix(entry.row.arm).removesuffix(" / "),
            entry.standing,
            entry.model,
            entry.row.role,
            entry.colour,
            entry.row,
            tuple(_cell(entry, column, best[column.key]) for column in columns),
        )
        for entry in entries
    ]


def measured(entries: Sequence[Entry], columns: Sequence[Column]) -> list[Entry]:
    """Return the entries that have a value in any of the columns."""
    return [entry for entry in entries if any(column.key in entry.row.values for column in columns)]


def page_data(value: Any) -> Any:
    """Return `value` as JSON values: dataclasses as objects, numbers that JSON doesn't know as null."""
    if hasattr(value, "__dataclass_fields__"):
        return page_data({name: getattr(value, name) for name in value.__dataclass_fields__})
    if isinstance(value, Mapping):
        return {str(key): page_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [page_data(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def render(
    template: str, figures: Sequence[Figure], data: Any, measure: Measure, **values: Any
) -> str:
    """Fill a template.

    Args:
        template: file name in `templates/`.
        figures: what the page's script draws.
        data: what the page shows, embedded as JSON under the id `data`.
        measure: the main measure, by which differences are written.
        values: what the template needs besides.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("understudy.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["together"] = _together
    environment.globals.update(
        measure=measure,
        change=partial(formatting.change, measure.change, more=1),
        chance=formatting.chance,
        interval=partial(formatting.interval, measure.change, more=1),
        tone=partial(_tone, measure),
    )
    return environment.get_template(template).render(
        figures={figure.id: figure for figure in figures},
        figures_json=[page_data(_drawn(figure)) for figure in figures],
        data=page_data(data),
        plotly_script=_plotly_script(),
        version=_version(),
        **values,
    )


def write_page(text: str, output: Path) -> Path:
    """Write a page whole or not at all."""
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(output)
    except OSError as error:
        with suppress(OSError):  # What could not be written may not be there to remove.
            beside.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"The report '{output}' cannot be written: {error.strerror or error}."
        ) from error
    return output


def _cell(entry: Entry, column: Column, best: float | None) -> Cell:
    spread = entry.row.values.get(column.key)
    mean = None if spread is None else spread.mean
    return Cell(
        column.key,
        mean,
        column.one(mean),
        column.deviation(spread),
        best is not None and mean == best and entry.row.role != "teacher",
    )


def _best(entries: Sequence[Entry], column: Column) -> float | None:
    """Return the best mean of a column; None where there is no choice or all are equal."""
    means = [
        mean
        for entry in entries
        if entry.row.role != "teacher" and (mean := entry.row.mean(column.key)) is not None
    ]
    if column.better is None or len(set(means)) < 2:
        return None
    return max(means) if column.better == "higher" else min(means)


def _drawn(figure: Figure) -> dict[str, Any]:
    whole = asdict(figure)
    return {name: whole[name] for name in ("id", "data", "layout", "choices")}


def _tone(measure: Measure, test: PairedTest | None) -> str:
    """Return the style of a difference: only one that chance hardly explains gets a colour."""
    if test is None or not test.significant:
        return ""
    return "up" if measure.improves(test.mean) else "down"


def _version() -> str:
    try:
        return metadata.version("understudy")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _together(text: str) -> str:
    """Keep numbers and their units on one line."""
    for sign in (" ± ", " %", " points", " nats", " = ", " seeds"):
        text = text.replace(sign, sign.replace(" ", "\u00a0"))
    return text


@cache
def _plotly_script() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")
