"""Inheritance: `base: digits` at the top of a recipe, which then says only what differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from understudy.errors import RecipeError
from understudy.recipe.finding import Found, find, find_packaged
from understudy.recipe.problems import Place, found
from understudy.recipe.recipe import Recipe
from understudy.recipe.sections import is_section
from understudy.recipe.text import read_yaml

BASE = "base"
"""The key under which a recipe names another that it is merged over."""

SECTIONS = {"data": "source", "student": "model", "teacher": "model", "reference": "model"}
"""Sections that may be written as their component alone -> the key that it then stands for."""
_COMPONENTS = ("optimizer", "schedule")
"""Components of a stage, and of the recipe for all stages."""
_INSTEAD = {
    one: other
    for pair in (("epochs", "steps"), ("arms", "methods"), ("teacher", "teachers"))
    for one, other in (pair, pair[::-1])
}
"""Keys of a recipe or a stage that exclude each other: one that is given takes the place of the other."""


@dataclass(frozen=True)
class Written:
    """What a recipe says, and where.

    Attributes:
        values: the recipe as YAML reads it.
        origins: place -> "line 3"; of what a base says, "line 3 of the packaged recipe 'digits'".
    """

    values: Mapping[str, Any]
    origins: dict[Place, str]


def read(recipe: Found) -> Written:
    """Return a recipe merged over its bases, if it has any.

    Raises:
        RecipeError: no valid YAML, no mapping, a base that cannot be read, or a recipe that is its own base.
    """
    return _read(recipe, ())


def with_base(values: Mapping[str, Any]) -> Written:
    """Return the values of a recipe merged over its bases; a relative path starts from the current directory.

    Raises:
        RecipeError: as `read`.
    """
    return _merged(Written(values, {}), None, ())


def _read(recipe: Found, above: tuple[Found, ...], of: str = "") -> Written:
    """Return a recipe merged over its bases.

    Args:
        recipe: the recipe.
        above: the recipes of which it is the base, the first of them first.
        of: what follows a line's number to say where it stands.
    """
    chain = (*above, recipe)
    if recipe.identity in [each.identity for each in above]:
        names = " -> ".join(f"'{each.called}'" for each in chain)
        raise RecipeError(f"{recipe.title} is its own base: {names}.")
    values, lines = read_yaml(recipe.text, recipe.title)
    if not isinstance(values, Mapping):
        raise RecipeError(
            f"{recipe.title} should be a mapping with `data`, `student`, ...; found {found(values)}."
        )
    origins = {place: f"line {line}{of}" for place, line in lines.items()}
    return _merged(Written(values, origins), recipe, chain)


def _merged(own: Written, recipe: Found | None, chain: tuple[Found, ...]) -> Written:
    """Return what a recipe says merged over its base; `recipe` is None when it was given as values."""
    values = {key: value for key, value in own.values.items() if key != BASE}
    base = own.values.get(BASE)
    if base is None:
        return Written(values, own.origins)
    line = own.origins.get((BASE,), "").partition(" of ")[0]
    where = f"{'The recipe' if recipe is None else f'{recipe.title}, {line}'}: {BASE}"
    if not isinstance(base, str):
        raise RecipeError(
            f"{where} should be the name of a packaged recipe or a path, found {found(base)}."
        )
    try:
        text = _found(base, recipe)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    inherited = _read(text, chain, f" of {text.title[0].lower()}{text.title[1:]}")
    # A run is called after its own recipe.
    kept = {key: value for key, value in inherited.values.items() if key != "name"}
    origins = dict(inherited.origins)
    return Written(_over(kept, values, (), origins, own.origins), origins)


def _found(base: str, recipe: Found | None) -> Found:
    """Return the base of a recipe; what ships with the package never depends on the files around."""
    if recipe is None:
        return find(base)
    return find_packaged(base) if recipe.file is None else find(base, recipe.file.parent)


def _over(
    base: Any, own: Any, place: Place, origins: dict[Place, str], theirs: Mapping[Place, str]
) -> Any:
    """Return `own` merged over `base`.

    Args:
        base: what the base says at the place.
        own: what the recipe itself says there.
        place: the place.
        origins: where all of the base is written; what is merged over it takes its place.
        theirs: where all of the recipe is written.
    """
    base = _completed(base, own, place, origins)
    if not isinstance(base, Mapping) or not isinstance(own, Mapping) or _other(base, own, place):
        rewrite(place, origins, theirs)
        return own
    merged = dict(base)
    for key, other in _INSTEAD.items() if _is_stage(place) or not place else ():
        if own.get(key) is not None and other in merged and other not in own:
            del merged[other]
            rewrite((*place, other), origins, {})
    if place in theirs:
        origins[place] = theirs[place]
    for key, value in own.items():
        inside = (*place, key)
        if place in (("arms",), ("teachers",)) and key in merged and value is None:
            # An arm or one of several teachers cannot be null, so this can only mean to leave it out.
            del merged[key]
            rewrite(inside, origins, {})
        else:
            merged[key] = _over(merged.get(key), value, inside, origins, theirs)
    return merged


def _completed(base: Any, own: Any, place: Place, origins: dict[Place, str]) -> Any:
    """Return what a base says in the long form, where the recipe adds to it in the long form."""
    if not isinstance(own, Mapping) or base is None:
        return base
    key = _section_key(place)
    if key is not None and is_section(own, key) and not is_section(base, key):
        _move(place, key, origins)
        return {key: base}
    if _is_stage(place) and isinstance(base, list | tuple):
        _move(place, "methods", origins)
        return {"methods": base}
    if _is_component(place) and isinstance(base, str) and "name" not in own:
        _move(place, "name", origins)
        return {"name": base}
    return base


def _other(base: Mapping[str, Any], own: Mapping[str, Any], place: Place) -> bool:
    """Tell whether `own` is something else than `base`, so that nothing of `base` is of use to it."""
    if _is_stage(place):
        return ("stages" in base) != ("stages" in own)
    key = _section_key(place)
    if key is not None:
        if is_section(own, key):
            return False
        return is_section(base, key) or own.get("name") != base.get("name")
    if not _is_component(place) or "name" not in own:
        return False
    default = None
    if len(place) == 1:
        default = Recipe.model_fields[str(place[0])].get_default(call_default_factory=True).name
    return bool(own["name"] != base.get("name", default))


def _is_stage(place: Place) -> bool:
    """Tell whether a stage may stand in a place: an arm, or how the teacher or the reference is trained."""
    if place[-1:] == ("train",):
        return place in (("teacher", "train"), ("reference", "train")) or (
            len(place) == 3 and place[0] == "teachers"
        )
    return len(place) == 2 and place[0] == "arms"


def _section_key(place: Place) -> str | None:
    """Return the key that a section stands for when it is written as its component alone; None where none stands."""
    if len(place) == 2 and place[0] == "teachers":
        return SECTIONS["teacher"]
    return SECTIONS.get(str(place[0])) if len(place) == 1 else None


def _is_component(place: Place) -> bool:
    """Tell whether a component stands in a place; lists of them are never merged."""
    if not place:
        return False
    if place[-1] in _COMPONENTS:
        return len(place) == 1 or _is_stage(place[:-1])
    return _section_key(place[:-1]) == place[-1]


def rewrite(place: Place, origins: dict[Place, str], theirs: Mapping[Place, str]) -> None:
    """Put what `theirs` knows of a place and all below it in the place of what `origins` does."""
    depth = len(place)
    for known in [known for known in origins if known[:depth] == place]:
        del origins[known]
    origins |= {known: line for known, line in theirs.items() if known[:depth] == place}


def _move(place: Place, key: str, origins: dict[Place, str]) -> None:
    """Let what is known of a place and all below it be known of its `key`."""
    depth = len(place)
    for known in [known for known in origins if known[:depth] == place]:
        line = origins[known] if known == place else origins.pop(known)
        origins[(*place, key, *known[depth:])] = line
