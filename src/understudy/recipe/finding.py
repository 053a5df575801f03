"""Finding the text of a recipe: a file, a run directory, or one that ships with the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from understudy.errors import RecipeError, suggestion

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Found:
    """The text of a recipe.

    Attributes:
        text: the YAML.
        called: how it was asked for, such as "digits" or "folder/mine.yaml".
        file: where it stands; None for a packaged one.
    """

    text: str
    called: str
    file: Path | None

    @property
    def title(self) -> str:
        """What error messages call it at the start of a sentence."""
        return (
            f"The packaged recipe '{self.called}'"
            if self.file is None
            else f"The recipe '{self.file}'"
        )

    @property
    def identity(self) -> str:
        """The same for the same recipe, however it was asked for."""
        return self.called if self.file is None else str(self.file.resolve())

    @property
    def default_name(self) -> str:
        """The name of a run whose recipe gives none: the file's; a packaged recipe's, its folder included."""
        given = self.called if self.file is None else Path(self.called).stem
        name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in given)
        return name.strip("-.") or "run"


def packaged() -> list[str]:
    """Return the names of the recipes that ship with the package, those in folders as `folder/name`."""
    return sorted(_names(_shipped(), ""))


def find(path: str | Path, beside: Path | None = None) -> Found:
    """Return the text of a recipe.

    Args:
        path: a file, a run directory (its resolved recipe), or the name of a packaged recipe.
        beside: the folder that a relative path starts from; the current directory when not given.

    Raises:
        RecipeError: there is no such recipe, or it cannot be read.
    """
    file = Path(path) if beside is None else beside / path
    if (file / "recipe.yaml").is_file():
        file = file / "recipe.yaml"
    if not file.is_file():
        if str(path) in packaged():
            return find_packaged(str(path))
        if file.is_dir():
            raise RecipeError(
                f"'{path}' is a folder without a recipe.yaml, so it is no run directory."
            )
        if file.suffix in _SUFFIXES:
            raise RecipeError(
                f"There is no recipe '{path}' (looked in {beside or Path.cwd()}). Packaged recipes: "
                f"{', '.join(packaged())}."
            )
        raise RecipeError(
            f"There is no file and no packaged recipe called '{path}'. {_help(str(path))}"
        )
    try:
        return Found(file.read_text(encoding="utf-8"), str(path), file)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe '{file}' cannot be read: {error}.") from None


def find_packaged(name: str) -> Found:
    """Return the text of a recipe that ships with the package.

    Raises:
        RecipeError: there is none of that name.
    """
    if name not in packaged():
        raise RecipeError(f"There is no packaged recipe called '{name}'. {_help(name)}")
    source = _shipped()
    for part in f"{name}.yaml".split("/"):
        source = source / part
    return Found(source.read_text(encoding="utf-8"), name, None)


def _help(name: str) -> str:
    """Return the sentence that helps with a wrong name: first comes a recipe that is called so in some folder."""
    names = packaged()
    return suggestion(name, [each for each in names if each.endswith(f"/{name}")] or names)


def _shipped() -> Traversable:
    return resources.files("understudy.recipes")


def _names(folder: Traversable, before: str) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _names(entry, f"{before}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield before + entry.name.removesuffix(".yaml")
