"""What became of each class, and how far confidence can be believed."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.report.figures.base import Entry, Figure, layout_with, plain_text, short_text
from understudy.report.measure import ACCURACY, Measure
from understudy.report.run import BASELINE, RunData

MOST_CLASSES = 30


def class_changes(entries: Sequence[Entry], classes: Sequence[str]) -> Figure | None:
    """Draw each class's main measure minus the baseline's, mean over seeds, for each student arm."""
    if not entries:
        return None
    measure, words = class_measure(entries[0].run), entries[0].run.words
    form = measure.change
    changes = {entry.label: class_change(entry) for entry in entries if entry.row.role == "student"}
    changes = {label: change for label, change in changes.items() if change}
    if not changes:
        return None
    indices = sorted({index for change in changes.values() for index in change})
    if words.language and len(indices) < 2:
        return None  # One domain alone is what the table of results shows.
    caption = (
        f"{measure.titled} on the {words.elements} of each {words.group} minus the baseline's, paired by seed, "
        "mean over seeds."
    )
    if measure.better == "lower":
        caption += " Below zero is better."
    if len(indices) > MOST_CLASSES:
        largest = sorted(
            indices,
            key=lambda index: -max(abs(change.get(index, 0.0)) for change in changes.values()),
        )
        caption += (
            f" Shown are the {MOST_CLASSES} of {len(indices)} {words.groups} that changed most; "
            "the table below has all."
        )
        indices = sorted(largest[:MOST_CLASSES])
    names = [
        plain_text(classes[index]) if index < len(classes) else str(index) for index in indices
    ]
    colours = {entry.label: entry.colour for entry in entries}
    traces = [
        {
            "type": "bar",
            "name": short_text(label),
            "x": names,
            "y": [change[index] * form.scale if index in change else None for index in indices],
            "marker": {"color": colours[label]},
            "hovertemplate": f"%{{x}}: %{{y:+.{form.decimals}f}}{form.suffix}<extra>%{{fullData.name}}</extra>",
        }
        for label, change in changes.items()
    ]
    layout = layout_with("", f"Change{form.heading}", height=340)
    layout["xaxis"].update(type="category", automargin=True, showgrid=False)
    layout["yaxis"].update(zeroline=True, zerolinewidth=2)
    # Long names are cut under the axis only; hovering shows them whole.
    short = [name if len(name) <= 14 else f"{name[:13]}…" for name in map(html.unescape, names)]
    layout["xaxis"].update(tickmode="array", tickvals=names, ticktext=[*map(plain_text, short)])
    if max(map(len, short)) * len(short) > 100:
        layout["xaxis"]["tickangle"] = -45
    layout["barmode"] = "group"
    layout["bargap"] = 0.25
    return Figure(
        "class-changes", "Change against the baseline", caption, traces, layout, wide=True
    )


def class_measure(run: RunData) -> Measure:
    """Return what classes are judged by: the main measure, or accuracy where it was not measured for each class."""
    measured = any(run.measure.level_name in result.per_class for result in run.results)
    return run.measure if measured else ACCURACY


def class_change(entry: Entry) -> dict[int, float]:
    """Return class index -> mean over shared seeds of the arm's measure in the class minus the baseline's."""
    measure = class_measure(entry.run)
    name = measure.level_name
    base = {result.seed: result.per_class.get(name, ()) for result in entry.run.of_arm(BASELINE)}
    sums: dict[int, list[float]] = {}
    for result in entry.results:
        pairs = zip(result.per_class.get(name, ()), base.get(result.seed, ()), strict=False)
        for index, (own, reference) in enumerate(pairs):
            if own is not None and reference is not None:
                difference = measure.of_level(own) - measure.of_level(reference)
                sums.setdefault(index, []).append(difference)
    return {index: sum(values) / len(values) for index, values in sums.items()}


def calibration(entries: Sequence[Entry]) -> Figure | None:
    """Draw reliability diagrams, the bins of all seeds of an arm together; None unless results hold them."""
    traces: list[dict[str, Any]] = []
    for entry in entries:
        pooled = _pooled([result.calibration for result in entry.results if result.calibration])
        if pooled:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": short_text(entry.label),
                    "x": [confidence * 100 for confidence, _, _ in pooled],
                    "y": [accuracy * 100 for _, accuracy, _ in pooled],
                    "customdata": [count for _, _, count in pooled],
                    "line": {"color": entry.colour, "width": 2},
                    "marker": {"color": entry.colour, "size": 6},
                    "hovertemplate": "said %{x:.0f} %, was right %{y:.0f} % "
                    f"(%{{customdata}} {entry.run.words.elements})<extra>%{{fullData.name}}</extra>",
                }
            )
    if not traces:
        return None
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "name": "perfect",
        "x": [0, 100],
        "y": [0, 100],
        "line": {"color": "var(--faint)", "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
    }
    layout = layout_with("Confidence, %", "Accuracy, %")
    layout["xaxis"]["range"] = layout["yaxis"]["range"] = [0, 102]
    caption = "How often the model is right when it is so sure; on the dashed line, confidence can be believed."
    return Figure("calibration", "Calibration", caption, [diagonal, *traces], layout)


def _pooled(bins: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, int]]:
    """Return (confidence, accuracy, count) of each filled bin over several members."""
    sums: dict[int, tuple[float, float, int]] = {}
    for one in bins:
        columns = zip(one["confidence"], one["accuracy"], one["count"], strict=True)
        for index, (confidence, accuracy, count) in enumerate(columns):
            if count:
                before = sums.get(index, (0.0, 0.0, 0))
                sums[index] = (
                    before[0] + confidence * count,
                    before[1] + accuracy * count,
                    before[2] + count,
                )
    return [(a / count, b / count, count) for _, (a, b, count) in sorted(sums.items())]
