"""Checks of transforms' keywords, with errors that name the transform and the keyword."""

from __future__ import annotations

from understudy.errors import DataError, UnderstudyError


def within(
    transform: str, keyword: str, value: float, low: float, high: float = float("inf")
) -> None:
    """Refuse a value outside [low, high]."""
    if not low <= value <= high:
        room = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise UnderstudyError(f"{transform}: {keyword} must be {room}, not {value}.")


def interval(transform: str, keyword: str, value: tuple[float, float], low: float) -> None:
    """Refuse what is not an interval (a, b) with low < a <= b."""
    if len(value) != 2 or not low < value[0] <= value[1]:
        raise UnderstudyError(
            f"{transform}: {keyword} must be two numbers above {low}, the smaller one "
            f"first, not {value}."
        )


def colours(transform: str, channels: int) -> None:
    """Refuse images that are neither grey nor red-green-blue."""
    if channels not in (1, 3):
        raise DataError(
            f"{transform} works on images with 1 (grey) or 3 (red, green, blue) channels, "
            f"not {channels}."
        )
