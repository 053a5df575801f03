"""How the members learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from understudy.report.curves import Curve, stage_starts, term_curves, thinned, validation_curve
from understudy.report.figures.base import Entry, Figure, layout_with, logarithmic_axis, short_text
from understudy.report.measure import ACCURACY, TOKEN_LIKELIHOOD, Form
from understudy.report.run import RunData

TERM_COLOURS = 5


def learning_curves(entries: Sequence[Entry]) -> list[Figure]:
    """Draw the main measure, then accuracy and likelihood, on the validation split against optimiser steps.

    Mean over seeds, band from least to greatest; what was not measured has no figure.
    """
    found = []
    for metric, title, form, logarithmic in _watched(entries[0].run) if entries else ():
        traces: list[dict[str, Any]] = []
        for entry in entries:
            curve = validation_curve(entry.run, entry.row.arm, metric)
            if curve is not None:
                dash = "dot" if entry.row.role == "teacher" else entry.dash
                traces += _band(curve, short_text(entry.label), entry.colour, form, dash)
        if traces:
            layout = layout_with("Optimiser steps", f"{title}{form.heading}")
            if logarithmic:
                drawn = (value for trace in traces for value in trace["y"])
                layout["yaxis"].update(logarithmic_axis(drawn))
            layout["hovermode"] = "x"
            layout["xaxis"]["rangemode"] = "tozero"
            caption = "Mean over seeds; the band reaches from the least to the greatest seed."
            found.append(Figure(f"curve-{metric}", title, caption, traces, layout))
    return found


def _watched(run: RunData) -> list[tuple[str, str, Form, bool]]:
    """Return metric, title, form and whether the axis is logarithmic of each figure, the main measure first."""
    measure = run.measure
    name, title = measure.level_name, f"Validation {measure.level_noun}"
    main = (name, title, measure.level, measure.logarithmic)
    if run.words.language:
        # No figure of the loss: it would be that of the perplexity, which has a logarithmic axis, once more.
        others = [
            ("perplexity", "Validation perplexity", TOKEN_LIKELIHOOD.level, True),
            ("accuracy", "Validation accuracy of tokens", ACCURACY.level, False),
        ]
    else:
        others = [
            ("accuracy", "Validation accuracy", ACCURACY.level, False),
            ("nll", "Validation loss", Form(1, 3, "nats"), False),
        ]
    return [main, *(other for other in others if other[0] != name)]


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
            traces += _band(curve, short_text(name), colours[name], Form(1, 3), "solid")
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


def _band(curve: Curve, label: str, colour: str, form: Form, dash: str) -> list[dict[str, Any]]:
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
                "y": [value * form.scale for value in (*curve.high, *curve.low[::-1])],
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
            "y": [value * form.scale for value in curve.mean],
            "customdata": list(curve.seeds),
            "line": {"color": colour, "width": 2.2, "dash": dash},
            "legendgroup": label,
            "hovertemplate": f"%{{y:.3~f}} {form.unit} (seeds: %{{customdata}})<extra>%{{fullData.name}}</extra>",
        }
    )
    return traces
