"""Overrides: `optimizer.lr=0.1` on the command line."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from understudy.errors import RecipeError
from understudy.recipe.problems import Place, dotted
from understudy.recipe.text import read_value


def override(values: Any, overrides: Sequence[str]) -> tuple[Any, dict[Place, str]]:
    """Return the values of a recipe with overrides applied, and which override wrote which place.

    Args:
        values: what the recipe's YAML holds; not changed.
        overrides: `a.b=c` each; `c` is read as YAML, a number addresses a list item. A component that was given
            by its name alone takes keywords: `student.model.width=0.5`. An arm that is set to null is left out.

    Raises:
        RecipeError: an override has no `=`, no such list item exists, or the way leads through a plain value.
    """
    values = copy.deepcopy(values)
    written: dict[Place, str] = {}
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise RecipeError(
                f"The override '{text}' is not of the form key=value, such as optimizer.lr=0.1."
            )
        given = read_value(value)
        if given is None and keys[0] == "arms" and keys[-1] in _arms(values) and len(keys) == 2:
            # An arm cannot be null, so this can only mean to leave it out, as in a recipe with a base.
            del values["arms"][_as_written(keys[1], values["arms"])]
            continue
        place: Place = ()
        values, place = _set(values, keys, given, text, place)
        written[place] = text
    return values, written


def _set(
    holder: Any, keys: Sequence[str], value: Any, text: str, place: Place
) -> tuple[Any, Place]:
    """Return `holder` with `value` at `keys`, and the place in which it was written."""
    if not keys:
        return value, place
    if holder is None:
        holder = {}
    if isinstance(holder, str):
        holder = {"name": holder}
    first, rest = keys[0], keys[1:]
    if isinstance(holder, list):
        if not first.isdigit() or int(first) >= len(holder):
            count = f"numbered 0 to {len(holder) - 1}" if holder else "none yet"
            raise RecipeError(
                f"The override '{text}' asks for item '{first}' of {dotted(place)}, a list of {len(holder)} ({count})."
            )
        number = int(first)
        holder[number], place = _set(holder[number], rest, value, text, (*place, number))
        return holder, place
    if not isinstance(holder, dict):
        raise RecipeError(
            f"The override '{text}' cannot set '{first}': {dotted(place)} is {holder!r}, a plain value."
        )
    key = _as_written(first, holder)
    holder[key], place = _set(holder.get(key), rest, value, text, (*place, key))
    return holder, place


def _arms(values: Any) -> set[str]:
    """Return the names of a recipe's arms."""
    arms = values.get("arms") if isinstance(values, dict) else None
    return {str(name) for name in arms} if isinstance(arms, dict) else set()


def _as_written(key: str, holder: dict[Any, Any]) -> Any:
    """Return the key as YAML read it: a name such as 1 may have become a number."""
    return next((known for known in holder if str(known) == key), key)
