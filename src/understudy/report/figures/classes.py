"""What became of each class, and how far confidence can be believed."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.report.figures.base import Entry, Figure, layout_with, plain_text, short_text
from understudy.report.run import BASELINE

MOST_CLASSES = 30


def class_changes(entries: Sequence[Entry], classes: Sequence[str]) -> Figure | None:
    """Draw each class's accuracy minus the baseline's, mean over seeds, for each student arm."""
    changes = {entry.label: class_change(entry) for entry in entries if entry.row.role == "student"}
    changes = {label: change for label, change in changes.items() if change}
    if not changes:
        return None
    indices = sorted({index for change in changes.values() for index in change})
    caption = "Accuracy on the samples of each class minus the baseline's, paired by seed, mean over seeds."
    if len(indices) > MOST_CLASSES:
        largest = sorted(
            indices,
            key=lambda index: -max(abs(change.get(index, 0.0)) for change in changes.values()),
        )
        caption += (
            f" Shown are the {MOST_CLASSES} of {len(indices)} classes that changed most; "
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
            "y": [change[index] * 100 if index in change else None for index in indices],
            "marker": {"color": colours[label]},
            "hovertemplate": "%{x}: %{y:+.1f} points<extra>%{fullData.name}</extra>",
        }
        for label, change in changes.items()
    ]
    layout = layout_with("", "Change, points", height=340)
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


def class_change(entry: Entry) -> dict[int, float]:
    """Return class index -> mean over shared seeds of the arm's class accuracy minus the baseline's."""
    base = {result.seed: result.class_accuracy for result in entry.run.of_arm(BASELINE)}
    sums: dict[int, list[float]] = {}
    for result in entry.results:
        other = base.get(result.seed, ())
        for index, (own, reference) in enumerate(zip(result.class_accuracy, other, strict=False)):
            if own is not None and reference is not None:
                sums.setdefault(index, []).append(own - reference)
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
                    "hovertemplate": "said %{x:.0f} %, was right %{y:.0f} % (%{customdata} samples)"
                    "<extra>%{fullData.name}</extra>",
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
