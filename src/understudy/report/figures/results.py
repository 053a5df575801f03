"""What the members achieved, and at what cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from understudy.report.figures.base import (
    Entry,
    Figure,
    layout_with,
    logarithmic_axis,
    plain_text,
    short_text,
)
from understudy.report.measure import capital
from understudy.report.run import BASELINE
from understudy.report.statistics import by_seed

TRADE_OFFS = (
    ("parameters", "Parameters", 1.0),
    ("flops", "FLOPs per {pass_of}", 1.0),
    ("bytes", "Size on disk, MB", 1e-6),
    ("latency_ms.1", "Latency at batch 1, ms", 1.0),
    ("latency_ms.64", "Latency at batch 64, ms", 1.0),
)


def seed_by_seed(entries: Sequence[Entry]) -> Figure | None:
    """Draw what every member is worth on the test split, and the mean of every arm."""
    if not entries:
        return None
    measure = entries[0].run.measure
    form, shown = measure.level, f"%{{x:.{measure.level.decimals + 1}f}}{measure.level.suffix}"
    traces: list[dict[str, Any]] = []
    for entry in entries:
        points = [
            (result.seed, value)
            for result in entry.results
            if (value := result.value(measure.level_name)) is not None
        ]
        if not points:
            continue
        label, mean = plain_text(entry.label), entry.row.values[measure.level_name].mean
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": [value * form.scale for _, value in points],
                "y": [label] * len(points),
                "text": ["loaded" if seed is None else f"seed {seed}" for seed, _ in points],
                "marker": {
                    "color": entry.colour,
                    "size": 11,
                    "opacity": 0.75,
                    "symbol": entry.symbol,
                },
                "hovertemplate": f"%{{text}}: {shown}<extra></extra>",
            }
        )
        if len(points) > 1:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{label}, mean",
                    "x": [mean * form.scale],
                    "y": [label],
                    "marker": {
                        "color": entry.colour,
                        "size": 26,
                        "symbol": "line-ns",
                        "line": {"color": entry.colour, "width": 3},
                    },
                    "hovertemplate": f"mean: {shown}<extra></extra>",
                }
            )
    if not traces:
        return None
    layout = layout_with(f"Test {measure.level_noun}{form.heading}", "", height=_height(entries))
    layout["showlegend"] = False
    if measure.logarithmic:
        layout["xaxis"].update(logarithmic_axis(x for trace in traces for x in trace["x"]))
    layout["yaxis"].update(
        _one_line_each(entry for entry in entries if measure.level_name in entry.row.values)
    )
    return Figure(
        f"{measure.level_name}-by-seed",
        f"{capital(measure.level_noun)}, seed by seed",
        "One dot for each seed on the test split; the bar is the mean.",
        traces,
        layout,
    )


def differences(entries: Sequence[Entry]) -> Figure | None:
    """Draw each student arm's main measure minus the baseline's, seed by seed, and the mean's interval."""
    if not entries:
        return None
    measure = entries[0].run.measure
    form, shown = measure.change, f"%{{x:+.{measure.change.decimals + 1}f}}{measure.change.suffix}"
    traces: list[dict[str, Any]] = []
    for entry in entries:
        if entry.row.difference is None:
            continue
        own = by_seed(entry.run.results, entry.row.arm, measure.name)
        base = by_seed(entry.run.results, BASELINE, measure.name)
        seeds = sorted(own.keys() & base.keys())
        label, test = plain_text(entry.label), entry.row.test
        error = None
        if test is not None and test.high is not None:
            error = {
                "type": "data",
                "array": [(test.high - test.mean) * form.scale],
                "color": entry.colour,
                "thickness": 2,
            }
        mean: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": f"{label}, mean",
            "x": [entry.row.difference * form.scale],
            "y": [label],
            "marker": {"color": entry.colour, "size": 13, "symbol": "diamond"},
            "hovertemplate": f"mean: {shown}<extra></extra>",
        }
        if error is not None:
            mean["error_x"] = error
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": [(own[seed] - base[seed]) * form.scale for seed in seeds],
                "y": [label] * len(seeds),
                "text": [f"seed {seed}" for seed in seeds],
                "marker": {"color": entry.colour, "size": 9, "opacity": 0.45},
                "hovertemplate": f"%{{text}}: {shown}<extra></extra>",
            }
        )
        traces.append(mean)
    if not traces:
        return None
    layout = layout_with(f"Difference to the baseline{form.heading}", "", height=_height(entries))
    layout["showlegend"] = False
    layout["xaxis"].update(zeroline=True, zerolinewidth=2, rangemode="tozero")
    layout["yaxis"].update(
        _one_line_each(entry for entry in entries if entry.row.difference is not None)
    )
    left = "" if measure.better == "higher" else "Left of zero is better. "
    return Figure(
        "differences",
        "What the teacher adds",
        f"{measure.titled} minus the baseline's with the same seed: a dot for each seed, the mean with its 95 % "
        f"interval. {left}An interval across zero means that chance may explain it.",
        traces,
        layout,
    )


def trade_off(entries: Sequence[Entry]) -> Figure | None:
    """Draw the main measure against what a model costs; buttons choose the cost."""
    if not entries:
        return None
    measure, words = entries[0].run.measure, entries[0].run.words
    form = measure.level
    drawn = [entry for entry in entries if measure.level_name in entry.row.values]
    offers = [
        (key, title.format(pass_of=words.pass_of), scale)
        for key, title, scale in TRADE_OFFS
        if drawn and all(entry.row.mean(key) for entry in drawn)
    ]
    if not offers:
        return None
    traces = []
    for entry in drawn:
        spread = entry.row.values[measure.level_name]
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": short_text(entry.label),
            "x": [],
            "y": [spread.mean * form.scale],
            "marker": {
                "color": entry.colour,
                "size": 16,
                "symbol": "star" if entry.row.role == "teacher" else entry.symbol,
                "line": {"color": "var(--card)", "width": 1.5},
            },
            "hovertemplate": f"%{{y:.{form.decimals + 1}f}}{form.suffix} at %{{x:.4~s}}"
            "<extra>%{fullData.name}</extra>",
        }
        if spread.std is not None:
            trace["error_y"] = {
                "type": "data",
                "array": [spread.std * form.scale],
                "color": entry.colour,
                "thickness": 1.5,
            }
            if measure.logarithmic and spread.std >= spread.mean:
                # A whisker to below zero has no place on this axis.
                trace["error_y"].update(symmetric=False, arrayminus=[0.0])
        traces.append(trace)
    choices = tuple(
        {
            "label": title.split(",")[0].split(" per ")[0],
            "title": title,
            "x": [[(entry.row.mean(key) or 0.0) * scale] for entry in drawn],
        }
        for key, title, scale in offers
    )
    for trace, position in zip(traces, choices[0]["x"], strict=True):
        trace["x"] = position
    layout = layout_with(offers[0][1], f"Test {measure.level_noun}{form.heading}")
    layout["xaxis"].update(type="log", dtick="D2", tickformat="~s")
    if measure.logarithmic:
        layout["yaxis"].update(logarithmic_axis(trace["y"][0] for trace in traces))
    way = "Up" if measure.better == "higher" else "Down"
    caption = f"{way} and to the left is better. Mean over seeds, whiskers one standard deviation."
    title = f"Size, speed and {measure.level_noun}"
    return Figure("trade-off", title, caption, traces, layout, choices, wide=False)


def _height(entries: Sequence[Entry]) -> int:
    """Return pixels for one line an arm; the same for figures that stand side by side."""
    return 90 + 44 * len(entries)


def _one_line_each(entries: Iterable[Entry]) -> dict[str, Any]:
    """Return the axis that lists arms from top to bottom, evenly spaced."""
    labels = [entry.label for entry in entries]
    return {
        "type": "category",
        "range": [len(labels) - 0.5, -0.5],
        "tickmode": "array",
        "tickvals": [plain_text(label) for label in labels],
        "ticktext": [short_text(label) for label in labels],
    }
