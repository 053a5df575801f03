"""Reading recipes: from a file, by the name of a packaged one, or from values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from understudy.errors import RecipeError, suggestion
from understudy.recipe.overrides import override
from understudy.recipe.problems import Place, found, recipe_error
from understudy.recipe.recipe import Recipe
from understudy.recipe.text import read_yaml

_SUFFIXES = (".yaml", ".yml")


def packaged() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    folder = resources.files("understudy.recipes")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_text(path: str | Path) -> tuple[str, str]:
    """Return the text of a recipe and what to call it.

    Args:
        path: a file, a run directory (its resolved recipe), or the name of a packaged recipe.

    Raises:
        RecipeError: there is no such recipe, or it cannot be read.
    """
    file = Path(path)
    if (file / "recipe.yaml").is_file():
        file = file / "recipe.yaml"
    if not file.is_file():
        if str(path) in packaged():
            source = resources.files("understudy.recipes") / f"{path}.yaml"
            return source.read_text(encoding="utf-8"), f"The packaged recipe '{path}'"
        if file.is_dir():
            raise RecipeError(
                f"'{path}' is a folder without a recipe.yaml, so it is no run directory."
            )
        help = suggestion(str(path), packaged())
        if file.suffix in _SUFFIXES or len(file.parts) > 1:
            raise RecipeError(
                f"There is no recipe '{path}' (looked in {Path.cwd()}). Packaged recipes: {', '.join(packaged())}."
            )
        raise RecipeError(f"There is no file and no packaged recipe called '{path}'. {help}")
    try:
        return file.read_text(encoding="utf-8"), f"The recipe '{file}'"
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe '{file}' cannot be read: {error}.") from None


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a file, or a packaged one, with overrides.

    Args:
        path: see `read_text`.
        overrides: `a.b=c` each, see `override`.

    Raises:
        RecipeError: lists every problem with its place and line, what was expected and the nearest valid names.
    """
    text, title = read_text(path)
    values, lines = read_yaml(text, title)
    if not isinstance(values, Mapping):
        raise RecipeError(
            f"{title} should be a mapping with `data`, `student`, ...; found {found(values)}."
        )
    values, written = override(values, overrides)

    def origin(place: Place) -> str | None:
        for length in range(len(place), 0, -1):
            if place[:length] in written:
                return f"override {written[place[:length]]}"
            if place[:length] in lines:
                return f"line {lines[place[:length]]}"
        return None

    if "name" not in values:
        values = {"name": _default_name(Path(path)), **values}
    return _validated(values, title, origin)


def from_values(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that values describe, as a YAML file would, live objects among them.

    Raises:
        RecipeError: as in `load`, without lines.
    """
    return _validated(values, "The recipe", lambda place: None)


def _validated(values: Mapping[str, Any], title: str, origin: Any) -> Recipe:
    try:
        recipe: Recipe = Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise recipe_error(error, title, origin) from None
    return recipe


def _default_name(path: Path) -> str:
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in path.stem)
    return name.strip("-.") or "run"
