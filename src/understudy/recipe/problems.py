"""What is wrong with a recipe: each problem with its place, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from understudy.errors import RecipeError, suggestion

Place = tuple[int | str, ...]
"""Keys and list positions that lead to a value of a recipe."""


class Expected:
    """Annotation that says in words what a field takes."""

    def __init__(self, words: str) -> None:
        """Keep the words."""
        self.words = words


def found(value: Any) -> str:
    """Say what a value is, in the words of someone who wrote it in YAML."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{_short(value)}'"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, Mapping):
        keys = ", ".join(str(key) for key in value)
        return f"a mapping with {_short(keys)}" if keys else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"the list {_short(str(list(value)))}"
    return f"an object of class {type(value).__module__}.{type(value).__qualname__}"


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def problem(text: str) -> PydanticCustomError:
    """Return the error for a sentence, to be raised in a validator at the place that is wrong."""
    return PydanticCustomError("problem", "{text}", {"text": text})


def problem_at(place: Place, text: str, value: Any) -> ValidationError:
    """Return the error for a sentence about something below the place that is being validated."""
    details = InitErrorDetails(type=problem(text), loc=place, input=value)
    return ValidationError.from_exception_data("recipe", [details])


def gather(title: str, checks: Iterable[tuple[Place, Callable[[], Any]]]) -> list[Any]:
    """Run all checks and return their results; their problems are raised together, each below its place."""
    results: list[Any] = []
    details: list[InitErrorDetails] = []
    for place, check in checks:
        try:
            results.append(check())
        except ValidationError as error:
            details += _details(error, before=place)
        except PydanticCustomError as error:
            details.append(InitErrorDetails(type=error, loc=place, input=None))
    if details:
        raise ValidationError.from_exception_data(title, details)
    return results


class Section(BaseModel):
    """Base of everything in a recipe that is a mapping with fixed keys."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    @model_validator(mode="wrap")
    @classmethod
    def _in_plain_words(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, cls | Mapping):
            raise problem(f"expected a mapping, found {found(data)}")
        try:
            return handler(data)
        except ValidationError as error:
            raise ValidationError.from_exception_data(error.title, _details(error, cls)) from None


def _details(
    error: ValidationError, section: type[BaseModel] | None = None, before: Place = ()
) -> list[InitErrorDetails]:
    """Return the problems of an error, those that pydantic itself found put in our words."""
    details = []
    for line in error.errors(include_url=False):
        kind, place, message = line["type"], line["loc"], line["msg"]
        keys = [] if section is None else list(section.model_fields)
        if kind == "extra_forbidden" and len(place) == 1 and section is not None:
            message = f"there is no such key. {suggestion(str(place[0]), keys)}"
        elif kind == "missing" and len(place) == 1 and section is not None:
            marks = [
                mark
                for mark in section.model_fields[str(place[0])].metadata
                if isinstance(mark, Expected)
            ]
            message = "is missing" + (f"; expected {marks[0].words}" if marks else "")
        elif kind != "problem":
            message = f"{message[:1].lower()}{message[1:]}, found {found(line['input'])}"
        details.append(
            InitErrorDetails(type=problem(message), loc=(*before, *place), input=line["input"])
        )
    return details


def recipe_error(
    error: ValidationError, title: str, origin: Callable[[Place], str | None] = lambda place: None
) -> RecipeError:
    """Return the one error that lists all problems.

    Args:
        error: what validation found.
        title: what the recipe is called.
        origin: says where a place was written ("line 3"), as far as it is known.
    """
    lines = []
    for line in error.errors(include_url=False):
        where = origin(line["loc"])
        lines.append(f"  {dotted(line['loc'])}{f' ({where})' if where else ''}: {line['msg']}")
    unique = list(dict.fromkeys(lines))
    count = "a problem" if len(unique) == 1 else f"{len(unique)} problems"
    return RecipeError(f"{title} has {count}:\n" + "\n".join(unique))


def dotted(place: Sequence[int | str]) -> str:
    """Return a place as it is written in an override: `arms.kd.0.temperature`."""
    return ".".join(str(part) for part in place) or "the recipe"
