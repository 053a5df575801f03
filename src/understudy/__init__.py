"""Understudy distils a large model, the teacher, into a small one, the student, and shows how well it does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import version

    from understudy import data, methods, models, objectives
    from understudy.models.saved import load as load_student
    from understudy.recipe.distill import distill
    from understudy.recipe.label import label

    __version__ = version("understudy")

__all__ = [
    "__version__",
    "data",
    "distill",
    "label",
    "load_student",
    "methods",
    "models",
    "objectives",
]

# Everything behind these names imports torch, which takes seconds; `import understudy` does not wait for it.
_ATTRIBUTES = {
    "distill": ("understudy.recipe.distill", "distill"),
    "label": ("understudy.recipe.label", "label"),
    "load_student": ("understudy.models.saved", "load"),
}
_MODULES = ("data", "methods", "models", "objectives")


def __getattr__(name: str) -> Any:
    """Import what a public name stands for when it is first used (PEP 562)."""
    if name in _ATTRIBUTES:
        module, attribute = _ATTRIBUTES[name]
        value = getattr(importlib.import_module(module), attribute)
    elif name in _MODULES:
        value = importlib.import_module(f"understudy.{name}")
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'understudy' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("understudy")
    except metadata.PackageNotFoundError:
        return "0+source"
