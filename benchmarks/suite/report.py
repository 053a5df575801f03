"""The results: a table, a plot, a JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.suite.row import Goal, Row

HEAD = "| row | what | measured | paired ratio (times as fast) | bound | share | goal |\n|---|---|---|---|---|---|---|"
ASSET = Path("assets") / "benchmarks.svg"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, with notes below."""
    lines = [HEAD, *(_line(row) for row in rows)]
    notes = [f"- {row.name}: {note}" for row in rows for note in row.notes]
    return "\n".join([*lines, "", *notes])


def _line(row: Row) -> str:
    if row.skipped is not None:
        return f"| {row.name} | {row.title} | not measured: {row.skipped} | | | | |"
    values = "<br>".join(f"{name} {number(value)}" for name, value in row.values.items())
    ratios = "<br>".join(f"{name}: {number(value)}" for name, value in row.ratios.items())
    share = "" if row.share is None else f"{100 * row.share:.0f} %"
    goals = "<br>".join(_goal(goal) for goal in row.goals)
    return f"| {row.name} | {row.title} | {row.unit}:<br>{values} | {ratios} | {row.bound} | {share} | {goals} |"


def _goal(goal: Goal) -> str:
    verdict = {True: "met", False: "**failed**", None: "not measured"}[goal.met]
    shown = "" if goal.value is None else f" ({number(goal.value)})"
    return f"{goal.what}: {verdict}{shown}"


def number(value: float) -> str:
    """Return a number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_json(path: Path, machine: dict[str, Any], rows: Sequence[Row], quick: bool) -> None:
    """Write everything that was measured."""
    found = {"machine": machine, "quick": quick, "rows": [row.as_json() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def write_docs(folder: Path, machine: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write `benchmarks.md` with its plot into the documentation."""
    versions = ", ".join(f"{name} {found}" for name, found in machine["packages"].items() if found)
    text = [
        "# Benchmarks",
        "",
        "<!-- Written by `python -m benchmarks.suite --docs docs`. -->",
        "",
        "understudy beside a loop written by hand and beside torchdistill 1.1.4, on the same tensors, in the same run.",
        "Contenders take turns; every number is a median of rounds, every ratio the median over the rounds of the",
        "ratio in one round. Before a row is timed, ten steps from equal weights have to give equal losses.",
        "",
        f"Machine: {machine['processor']}, {machine['threads']} threads, {machine['capability']}; {versions}.",
        "",
    ]
    bars = [(f"{row.name}: {name}", value) for row in rows for name, value in row.ratios.items()]
    if bars:
        (folder / ASSET).parent.mkdir(parents=True, exist_ok=True)
        (folder / ASSET).write_text(plot(bars))
        text += [f"![Speed relative to the contenders]({ASSET.as_posix()})", ""]
    (folder / "benchmarks.md").write_text("\n".join([*text, table(rows), ""]))


def plot(bars: Sequence[tuple[str, float]]) -> str:
    """Return the paired ratios as bars on a logarithmic axis, an SVG image; a line stands at 1."""
    left, width, step = 330, 360, 24
    logs = [math.log10(max(1e-3, value)) for _, value in bars]
    low, high = min(-0.1, *logs), max(0.1, *logs)

    def place(log: float) -> float:
        return left + width * (log - low) / (high - low)

    height = step * len(bars) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="760" height="{height}" fill="white"/>',
    ]
    for position, ((name, value), log) in enumerate(zip(bars, logs, strict=True)):
        top = 8 + step * position
        begin, end = sorted((place(0), place(log)))
        parts += [
            f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{begin:.1f}" y="{top}" width="{end - begin:.1f}" height="16" fill="#3b6ea5"/>',
            f'<text x="{end + 4:.1f}" y="{top + 13}">{number(value)}</text>',
        ]
    line = (
        f'<line x1="{place(0):.1f}" x2="{place(0):.1f}" y1="4" y2="{height - 20}" stroke="black"/>'
    )
    caption = f'<text x="{left}" y="{height - 6}">times as fast, median of paired rounds (logarithmic)</text>'
    return "\n".join([*parts, line, caption, "</svg>"]) + "\n"
