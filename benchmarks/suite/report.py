"""The results: a table, a plot, a JSON file."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
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
    if importlib.util.find_spec("matplotlib") is None:
        print("No plot is drawn: matplotlib is not installed.", file=sys.stderr)
    elif plot(folder / ASSET, rows):
        text += [f"![Speed relative to the contenders]({ASSET.as_posix()})", ""]
    (folder / "benchmarks.md").write_text("\n".join([*text, table(rows), ""]))


def plot(path: Path, rows: Sequence[Row]) -> bool:
    """Draw the paired ratios as bars; tell whether there were any."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    bars = [(f"{row.name}: {name}", value) for row in rows for name, value in row.ratios.items()]
    if not bars:
        return False
    plt.rcParams["svg.hashsalt"] = "understudy"
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.35 * len(bars)))
    names, values = zip(*reversed(bars), strict=True)
    axes.barh(names, values, color="#3b6ea5")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times as fast (paired rounds)")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True
