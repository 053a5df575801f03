"""Packages that only some sources need."""

from __future__ import annotations

from importlib.util import find_spec

from understudy.errors import DataError

_PACKAGES = {
    "PIL": ("Pillow", "vision"),
    "pyarrow": ("pyarrow", "text"),
    "datasets": ("datasets", "text"),
}


def need(module: str, purpose: str) -> None:
    """Raise `DataError` that says what to install when `module`, which serves `purpose`, is not there."""
    if find_spec(module) is None:
        package, extra = _PACKAGES[module]
        raise DataError(
            f"{purpose} needs the package {package}, which is not installed. The extra understudy[{extra}] brings it."
        )
