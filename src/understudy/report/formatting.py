"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from understudy.report.measure import Form
from understudy.report.statistics import PairedTest, Spread

NOTHING = "–"
MINUS = "\u2212"


def signed(value: float, decimals: int = 1) -> str:
    """Return `value` with its sign, "±0.0" without one."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return f"±{text}"
    return ("+" if value > 0 else MINUS) + text


def change(form: Form, value: float, more: int = 0) -> str:
    """Return a difference with its sign and without its unit; `more` decimals than in sentences."""
    return signed(value * form.scale, form.decimals + more)


def level(form: Form, found: Spread) -> str:
    """Return "93.1 ± 0.4 %"."""
    middle = ""
    if found.std is not None:
        middle = f" ± {fixed(found.std * form.scale, form.decimals)}"
    return f"{fixed(found.mean * form.scale, form.decimals)}{middle}{form.suffix}"


def p_value(value: float | None) -> str:
    """Return "p = 0.012", "p < 0.001", or that there is none."""
    if value is None:
        return "p not defined"
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.{3 if value < 0.1 else 2}f}"


def chance(test: PairedTest | None) -> str:
    """Return the p-value of a test in a few characters, or why there is none."""
    return "one seed" if test is None else p_value(test.p_value)


def interval(form: Form, test: PairedTest, more: int = 0) -> str:
    """Return the confidence interval of a difference, written like the difference."""
    if test.low is None or test.high is None:
        return "no interval"
    return f"{change(form, test.low, more)} to {change(form, test.high, more)}"


def fixed(value: float, decimals: int) -> str:
    """Return a number with so many decimals; one of a million or more, where they say nothing, as "1.07e+13"."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    return f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.3g}"


def count(value: float) -> str:
    """Return a count with three significant digits and a thousand, million or billion."""
    for size, suffix in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{_three(value / size)}{suffix}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Return bytes in kB, MB or GB (powers of 1000)."""
    for unit, suffix in ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")):
        if value >= unit:
            return f"{_three(value / unit)}{suffix}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Return seconds as "0.8 s", "42 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ratio(larger: float, smaller: float) -> str:
    """Return "12×" for how many times the one is in the other."""
    return f"{_three(larger / smaller, digits=2)}×"


def _three(value: float, digits: int = 3) -> str:
    if not math.isfinite(value):
        return "∞" if value > 0 else NOTHING
    whole = len(f"{abs(value):.0f}")
    return f"{value:.{max(0, digits - whole)}f}"


@dataclass(frozen=True)
class Column:
    """A column of the results table.

    Attributes:
        key: name of the metric or cost.
        title: its heading, with the unit.
        explanation: one sentence for those who don't know it.
        scale: what a stored value is multiplied by before it is shown.
        decimals: how many decimals are shown, None to leave the form to `form`.
        better: which way is better; None where neither is.
        form: makes text of a stored value where decimals alone don't do.
    """

    key: str
    title: str
    explanation: str
    scale: float = 1.0
    decimals: int | None = None
    better: str | None = None
    form: Callable[[float], str] | None = None

    def one(self, value: float | None) -> str:
        """Return one value as text."""
        if value is None or math.isnan(value):
            return NOTHING
        if math.isinf(value) or self.form is None:
            return fixed(value * self.scale, self.decimals or 0)
        return self.form(value)

    def deviation(self, spread: Spread | None) -> str:
        """Return "± 0.41", or "" where there is no spread to show."""
        if spread is None or spread.std is None or self.form is not None:
            return ""
        return f"± {fixed(spread.std * self.scale, self.decimals or 0)}"

    def text(self, spread: Spread | None) -> str:
        """Return "93.10 ± 0.41"."""
        if spread is None:
            return NOTHING
        return f"{self.one(spread.mean)} {self.deviation(spread)}".strip()
