"""Packages that only some sources need."""

from __future__ import annotations

from importlib.util import find_spec

from understudy.errors import DataError


def need(module: str, purpose: str) -> None:
    """Raise `DataError` that says what to install when `module`, which serves `purpose`, is not there."""
    if find_spec(module) is None:
        raise DataError(
            f"{purpose} needs the Python module '{module}', which is not installed. Both understudy[vision] and "
            "understudy[text] bring what the data sources need."
            if module != "PIL"
            else f"{purpose} needs Pillow, which is not installed; understudy[vision] brings it."
        )
