"""Type hints in words: what a problem says was expected."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

Known = Mapping[type, Any]
"""Classes that stand for something else in a recipe -> the pydantic type that reads it."""
LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def in_words(hint: Any, known: Known | None = None) -> str:
    """Say what a hint takes: "a whole number or null"."""
    known = known or {}
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return "anything"
    if hint in _SCALARS:
        return _SCALARS[hint]
    if inspect.isclass(hint) and hint in known:
        return next(str(mark.words) for mark in get_args(known[hint])[1:] if hasattr(mark, "words"))
    if hint is None or hint is type(None):
        return "null"
    if hint is Path:
        return "a path"
    if origin is Literal:
        return _either(
            [f"'{value}'" if isinstance(value, str) else yaml_word(value) for value in arguments]
        )
    if origin in (Union, types.UnionType):
        return _either([in_words(argument, known) for argument in arguments])
    if hint in LISTS or origin in LISTS:
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)}: {', '.join(in_words(item, known) for item in arguments)}"
        item = in_words(arguments[0], known) if arguments else ""
        return f"a list, each {item}" if item and item != "anything" else "a list"
    if hint in MAPPINGS or origin in MAPPINGS:
        return "a mapping"
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        names = ", ".join(field.name for field in dataclasses.fields(hint))
        return f"a mapping with {names}"
    if inspect.isclass(hint) and hint is not object:
        return f"an object of class {hint.__module__}.{hint.__qualname__} (from Python)"
    if origin is collections.abc.Callable or hint is Callable:
        return "a function (from Python)"
    return "anything"


def _either(parts: list[str]) -> str:
    unique = list(dict.fromkeys(parts))
    return unique[0] if len(unique) == 1 else ", ".join(unique[:-1]) + " or " + unique[-1]


def yaml_word(value: Any) -> str:
    """Return a choice as YAML writes it: `true`, not `True`."""
    return str(value).lower() if isinstance(value, bool) else str(value)
