"""Reading recipes: from a file, by the name of a packaged one, or from values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from understudy.errors import RecipeError
from understudy.recipe.finding import find
from understudy.recipe.inheritance import BASE, read, rewrite, with_base
from understudy.recipe.overrides import override
from understudy.recipe.problems import Place, recipe_error
from understudy.recipe.recipe import Recipe


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a file, or a packaged one, merged over its bases and with overrides.

    Args:
        path: a file, a run directory (its resolved recipe), or the name of a packaged recipe.
        overrides: `a.b=c` each, see `override`.

    Raises:
        RecipeError: there is no such recipe, or it cannot be read; or lists every problem with its place and line, what
            was expected and the nearest valid names.
    """
    recipe = find(path)
    written = read(recipe)
    values, overridden = override(written.values, overrides)
    if BASE in values:
        raise RecipeError(
            f"The override '{overridden[BASE,]}' comes too late: overrides change what a recipe has become "
            f"with its base. Write `{BASE}` into the recipe."
        )

    origins = dict(written.origins)
    for place, text in overridden.items():
        rewrite(place, origins, {place: f"override {text}"})
    if "name" not in values:
        values = {"name": recipe.default_name, **values}
    return _validated(values, recipe.title, origins)


def from_values(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that values describe, as a YAML file would, live objects among them.

    Raises:
        RecipeError: as in `load`, without lines.
    """
    written = with_base(values)
    return _validated(written.values, "The recipe", written.origins)


def _validated(values: Mapping[str, Any], title: str, origins: Mapping[Place, str]) -> Recipe:
    def origin(place: Place) -> str | None:
        known = (place[:length] for length in range(len(place), 0, -1))
        return next((origins[place] for place in known if place in origins), None)

    try:
        recipe: Recipe = Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise recipe_error(error, title, origin) from None
    return recipe
