"""The results as a table for terminals, and as plain lines where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from understudy.report import formatting
from understudy.report.columns import columns_of
from understudy.report.formatting import NOTHING, Column
from understudy.report.measure import Measure
from understudy.report.run import RunData
from understudy.report.statistics import Row, summarise

if TYPE_CHECKING:
    from rich.table import Table

DIFFERENCE = "vs baseline"


def table(run: RunData) -> Table:
    """Return quality and cost of every arm as one rich table; wide, some 200 columns with all measures."""
    rows = summarise(run)
    return rich_table(labelled(rows), columns_of(run, rows).table, run.measure, run.name)


def tables(run: RunData, width: int) -> list[Table]:
    """Return the same in as many tables as a terminal of `width` columns needs, each with all arms."""
    summary = summarise(run)
    rows, measure = labelled(summary), run.measure
    found: list[Table] = []
    pending = list(columns_of(run, summary).table)
    while pending:
        title = run.name if not found else ""
        count = len(pending)
        shown = rich_table(rows, pending, measure, title)
        # At least one column a table, even where the terminal is too narrow for it.
        while count > 1 and _natural_width(shown) > width:
            count -= 1
            shown = rich_table(rows, pending[:count], measure, title)
        found.append(shown)
        pending = pending[count:]
    return found


def plain_lines(run: RunData) -> list[str]:
    """Return the same as `table` in aligned plain text, the heading first."""
    rows = summarise(run)
    return text_lines(labelled(rows), columns_of(run, rows).table, run.measure)


def labelled(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Return each row with its arm as label."""
    return [(row.arm, row) for row in rows]


def rich_table(
    rows: Sequence[tuple[str, Row]], columns: Sequence[Column], measure: Measure, title: str
) -> Table:
    """Return labelled rows as a rich table with a role for each."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    styles = {"teacher": "magenta", "baseline": "yellow", "student": "cyan"}
    shown = Table(
        title=escape(title) or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False
    )
    heading, *lines = cells_of(rows, columns, measure)
    for index, text in enumerate(heading):
        shown.add_column(escape(text), justify="left" if index < 2 else "right", no_wrap=True)
    for line, (_, row) in zip(lines, rows, strict=True):
        style = styles[row.role]
        shown.add_row(
            *(
                f"[{style}]{escape(text)}[/]" if index < 2 else escape(text)
                for index, text in enumerate(line)
            )
        )
    return shown


def text_lines(
    rows: Sequence[tuple[str, Row]], columns: Sequence[Column], measure: Measure
) -> list[str]:
    """Return labelled rows as aligned plain text."""
    grid = cells_of(rows, columns, measure)
    widths = [max(len(line[index]) for line in grid) for index in range(len(grid[0]))]
    return [
        "  ".join(
            text.ljust(width) if index < 2 else text.rjust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in grid
    ]


def cells_of(
    rows: Sequence[tuple[str, Row]], columns: Sequence[Column], measure: Measure
) -> list[list[str]]:
    """Return heading and cells as text; columns in which nothing was measured are left out.

    The difference to the baseline stands behind the main measure.
    """
    used = [column for column in columns if any(column.key in row.values for _, row in rows)]
    compared = any(row.difference is not None for _, row in rows) and measure.name in [
        column.key for column in used
    ]
    heading = ["arm", "role"]
    for column in used:
        heading.append(column.title)
        if compared and column.key == measure.name:
            heading.append(DIFFERENCE)
    grid = [heading]
    for label, row in rows:
        line = [label, row.role]
        for column in used:
            line.append(column.text(row.values.get(column.key)))
            if compared and column.key == measure.name:
                line.append(difference_text(row, measure))
        grid.append(line)
    return grid


def difference_text(row: Row, measure: Measure) -> str:
    """Return "+5.10 (p = 0.012)"."""
    if row.difference is None:
        return NOTHING
    return f"{formatting.change(measure.change, row.difference, more=1)} ({formatting.chance(row.test)})"


def _natural_width(shown: Table) -> int:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000)
    return Measurement.get(console, console.options, shown).maximum
