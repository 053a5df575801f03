"""How the members learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from understudy.report.curves import Curve, stage_starts, term_curves, thinned, validation_curve
from understudy.report.figures.base import Entry, Figure, layout_with, short_text

TERM_COLOURS = 5


def learning_curves(entries: Sequence[Entry]) -> list[Figure]:
    """Draw validation accuracy and likelihood against optimiser steps: mean over seeds, band from least to greatest."""
    found = []
    for metric, title, unit, scale in (
        ("accuracy", "Validation accuracy", "%", 100.0),
        ("nll", "Validation loss", "nats", 1.0),
    ):
        traces: list[dict[str, Any]] = []
        for entry in entries:
            curve = validation_curve(entry.run, entry.row.arm, metric)
            if curve is not None:
                dash = "dot" if entry.row.role == "teacher" else entry.dash
                traces += _band(curve, short_text(entry.label), entry.colour, scale, unit, dash)
        if traces:
            layout = layout_with("Optimiser steps", f"{title}, {unit}")
            layout["hovermode"] = "x"
            layout["xaxis"]["rangemode"] = "tozero"
            caption = "Mean over seeds; the band reaches from the least to the greatest seed."
            found.append(Figure(f"curve-{metric}", title, caption, traces, layout))
    return found


def loss_terms(entries: Sequence[Entry]) -> list[Figure]:
    """Draw the loss terms of each arm, unweighted, one figure for each arm."""
    found = []
    terms = [term_curves(entry.run, entry.row.arm) for entry in entries]
    names = dict.fromkeys(name for curves in terms for name in curves)
    # A term has one colour in the figures of all arms.
    colours = {name: f"var(--term-{place % TERM_COLOURS + 1})" for place, name in enumerate(names)}
    for index, (entry, curves) in enumerate(zip(entries, terms, strict=True)):
        if not curves:
            continue
        traces: list[dict[str, Any]] = []
        for name, curve in curves.items():
            traces += _band(curve, short_text(name), colours[name], 1.0, "", "solid")
        layout = layout_with("Optimiser steps", "Loss term, unweighted", height=300)
        layout["hovermode"] = "x"
        layout["xaxis"]["rangemode"] = layout["yaxis"]["rangemode"] = "tozero"
        starts = stage_starts(entry.run, entry.row.arm)
        layout["shapes"] = [
            {
                "type": "line",
                "x0": step,
                "x1": step,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": "var(--faint)", "width": 1, "dash": "dash"},
            }
            for _, step in starts
        ]
        layout["annotations"] = [
            {
                "x": step,
                "y": 1,
                "yref": "paper",
                "text": f"stage {short_text(stage)}",
                "showarrow": False,
                "xanchor": "left",
                "yanchor": "top",
                "font": {"size": 11, "color": "var(--muted)"},
            }
            for stage, step in starts
        ]
        found.append(Figure(f"terms-{index}", entry.label, "", traces, layout))
    return found


def _band(
    curve: Curve, label: str, colour: str, scale: float, unit: str, dash: str
) -> list[dict[str, Any]]:
    """Return the traces of a line with a band; the band comes first, so that the line lies on it."""
    curve = thinned(curve)
    traces: list[dict[str, Any]] = []
    if max(curve.seeds) > 1 or any(
        low < high for low, high in zip(curve.low, curve.high, strict=True)
    ):
        steps = list(curve.steps)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": steps + steps[::-1],
                "y": [value * scale for value in (*curve.high, *curve.low[::-1])],
                "fill": "toself",
                "fillcolor": colour.replace("var(", "band("),
                "line": {"width": 0},
                "legendgroup": label,
                "showlegend": False,
                "hoverinfo": "skip",
            }
        )
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+markers" if len(curve.steps) == 1 else "lines",
            "name": label,
            "x": list(curve.steps),
            "y": [value * scale for value in curve.mean],
            "customdata": list(curve.seeds),
            "line": {"color": colour, "width": 2.2, "dash": dash},
            "legendgroup": label,
            "hovertemplate": f"%{{y:.3~f}} {unit} (seeds: %{{customdata}})<extra>%{{fullData.name}}</extra>",
        }
    )
    return traces
