"""Objects that are what their configuration says: equal when it is equal, rebuilt from it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from understudy.errors import unknown_name

T = TypeVar("T")


class Configured:
    """Base of things that are compared by `config()`."""

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values."""
        raise TypeError(f"{type(self).__name__} does not say what it is.")

    def __eq__(self, other: object) -> bool:
        """Compare configurations."""
        return isinstance(other, Configured) and self.config() == other.config()

    def __hash__(self) -> int:
        """Hash the configuration."""
        return hash(json.dumps(self.config(), sort_keys=True))

    def __repr__(self) -> str:
        """Show the configuration."""
        return f"{type(self).__name__}({self.config()})"


def construct(constructor: type[T], what: str, settings: Mapping[str, Any], *given: Any) -> T:
    """Call `constructor(*given, **settings)`; a setting that it does not take is answered with those that it does."""
    valid = list(inspect.signature(constructor).parameters)[len(given) :]
    for name in settings:
        if name not in valid:
            raise unknown_name(f"setting of {what}", name, valid)
    return constructor(*given, **settings)
