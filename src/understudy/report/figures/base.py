"""What all figures share: an arm as it is drawn, the words around a figure, the layout.

Figures are Plotly JSON (https://plotly.com/javascript/reference/). Colours are written as names of
CSS variables, such as `var(--student-1)`; the page's script puts in what they stand for, so that
figures follow the theme. Names from users are escaped, because Plotly reads a little HTML in texts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.report.run import Result, RunData
from understudy.report.statistics import Row

STUDENT_COLOURS = 6
SYMBOLS = ("circle", "square", "triangle-up", "cross", "pentagon", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Entry:
    """One arm as it is drawn: its numbers, its label and its look."""

    label: str
    row: Row
    run: RunData
    colour: str
    symbol: str = "circle"
    dash: str = "solid"

    @property
    def standing(self) -> str:
        """Return what the arm is, in words."""
        if self.row.role == "teacher" and self.row.mean("steps") == 0:
            return "teacher, not trained here"
        return "student, no teacher" if self.row.role == "baseline" else self.row.role

    @property
    def model(self) -> str:
        """Return the name of the arm's network, "" when the run does not say."""
        known = self.run.models.get(self.row.arm if self.row.role == "teacher" else "student")
        return known.name if known is not None else ""

    @property
    def results(self) -> list[Result]:
        """Return the results of the arm."""
        return self.run.of_arm(self.row.arm)


@dataclass(frozen=True)
class Figure:
    """A figure: traces and layout for Plotly, and the words around it.

    Attributes:
        id: of the element that it is drawn into.
        title: heading.
        caption: what one sees.
        data, layout: for Plotly.
        choices: label -> changes of the layout and of each trace, for a row of buttons above the figure.
        wide: whether it takes the whole width of the page.
    """

    id: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    choices: tuple[dict[str, Any], ...] = ()
    wide: bool = False


def entries_of(
    run: RunData, rows: Sequence[Row], prefix: str = "", taken: int = 0, place: int = 0
) -> list[Entry]:
    """Give each row its label and look.

    Args:
        run: where the rows are from.
        rows: the arms.
        prefix: put before each arm's name.
        taken: how many student colours are in use already.
        place: which of several runs this is; each has its own symbol and dash.
    """
    found = []
    for row in rows:
        colour = f"var(--{row.role})"
        if row.role == "student":
            colour = student_colour(taken)
            taken += 1
        symbol, dash = SYMBOLS[place % len(SYMBOLS)], DASHES[place % len(DASHES)]
        found.append(Entry(prefix + row.arm, row, run, colour, symbol, dash))
    return found


def student_colour(index: int) -> str:
    """Return the CSS variable of the student arm at `index`."""
    return f"var(--student-{index % STUDENT_COLOURS + 1})"


def layout_with(x: str, y: str, height: int = 360) -> dict[str, Any]:
    """Return the layout that all figures start from, with axis titles and height in pixels."""
    return {
        "height": height,
        "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "xaxis": {"title": {"text": x}, "zeroline": False, "automargin": True},
        "yaxis": {"title": {"text": y}, "zeroline": False, "automargin": True},
        "legend": {
            "orientation": "h",
            "xref": "container",
            "yref": "container",
            "x": 0,
            "y": 1,
            "xanchor": "left",
            "yanchor": "top",
        },
        "showlegend": True,
    }


def logarithmic_axis(values: Iterable[float]) -> dict[str, Any]:
    """Return a logarithmic axis for values above 0, marked evenly where they lie close together, else at 1, 2 and 5."""
    drawn = [value for value in values if 0 < value < math.inf]
    if drawn and max(drawn) / min(drawn) >= 8:
        return {"type": "log", "dtick": "D2", "tickformat": "~s"}
    return {"type": "log"}


def plain_text(text: str) -> str:
    """Return text from a user as Plotly shows it literally."""
    return html.escape(text, quote=False)


def short_text(text: str, most: int = 26) -> str:
    """Return the same, with the middle left out of a long one: a figure is no wider than its page."""
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"
    return plain_text(text)
