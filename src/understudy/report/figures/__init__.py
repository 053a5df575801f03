"""The figures of a report as Plotly JSON."""

from understudy.report.figures.base import Entry, Figure, entries_of
from understudy.report.figures.classes import calibration, class_change, class_changes
from understudy.report.figures.results import differences, seed_by_seed, trade_off
from understudy.report.figures.training import learning_curves, loss_terms

__all__ = [
    "Entry",
    "Figure",
    "calibration",
    "class_change",
    "class_changes",
    "differences",
    "entries_of",
    "learning_curves",
    "loss_terms",
    "seed_by_seed",
    "trade_off",
]
