"""Components: the things that a recipe names, with their keywords read off the constructors."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from understudy.errors import UnderstudyError, UnknownName
from understudy.recipe.hints import descriptions, strict
from understudy.recipe.problems import Expected, Section, found, problem, problem_at

Extra = Mapping[str, tuple[Any, Any, str]]
"""Name -> type hint, default and description."""
SCHEMA_MARK = "x-component"
"""Key of the JSON schema that stands for a kind of component until the whole schema is put together."""


@dataclass(frozen=True)
class Component:
    """Something that a recipe names: a method, transform, model, ...

    Attributes:
        kind: what it is.
        name: under which name its kind knows it; for a live object its class.
        keywords: its configuration, complete with defaults.
        extra: what the recipe says beside the keywords, such as a method's weight.
        live: the object itself when it was given from Python and has no name in a recipe.
    """

    kind: str
    name: str
    keywords: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    live: Any = field(default=None, compare=False)

    def values(self) -> dict[str, Any]:
        """Return what a recipe says about it. A live object is only described, by the key `object`."""
        key = "name" if self.live is None else "object"
        return {key: self.name, **self.keywords, **self.extra}


class Kind:
    """A kind of component. Pydantic reads a field annotated with one from a name, a mapping or a live object.

    Args:
        label: "method", "transform", ...
        names: gives all names.
        find: gives the class or function of a name, or raises `UnknownName`.
        live: the class (or classes) whose instances may stand for themselves.
        checked: whether making one is cheap, so that its values are checked by making it.
    """

    extra: ClassVar[Extra] = {}
    """Keys that a recipe may give beside the constructor's."""

    def __init__(
        self,
        label: str,
        names: Callable[[], list[str]],
        find: Callable[[str], Callable[..., Any]],
        live: type | tuple[type, ...],
        *,
        checked: bool = True,
    ) -> None:
        """Keep how members are found."""
        self.label, self.names, self.find, self.live, self.checked = (
            label,
            names,
            find,
            live,
            checked,
        )
        self._sections: dict[Any, type[Section]] = {}

    @functools.cached_property
    def field(self) -> Any:
        """The pydantic type of a field that holds one."""
        return Annotated[Component, self, Expected(self.words)]

    @property
    def words(self) -> str:
        """What a problem says was expected."""
        return f"a {self.label}" if self.label[0] not in "aeiou" else f"an {self.label}"

    def section(self, name: str) -> type[Section]:
        """Return the section of the keywords of the member called `name`."""
        target = self.find(name)
        if target not in self._sections:
            self._sections[target] = keyword_section(name, target, self.extra, self.skipped(target))
        return self._sections[target]

    def skipped(self, target: Callable[..., Any]) -> int:
        """Return how many leading parameters are not the recipe's."""
        return 0

    def read(self, value: Any) -> Component:
        """Return the component that a value of a recipe stands for.

        Raises:
            PydanticCustomError, ValidationError: with every problem that was found.
        """
        if isinstance(value, Component):
            return value
        if isinstance(value, str):
            return self._named(value, {}, place=())
        if isinstance(value, Mapping):
            if "object" in value and "name" not in value:
                raise problem(
                    f"this {self.label} was a Python object ({value['object']}), which a recipe can only describe. "
                    "Call distill(..., resume=True) with the same objects to go on with its run."
                )
            if "name" not in value:
                raise problem_at(("name",), f"is missing; which {self.label} is it?", value)
            name = value["name"]
            if not isinstance(name, str):
                raise problem_at(
                    ("name",), f"expected the name of a {self.label}, found {found(name)}", name
                )
            keywords = {key: item for key, item in value.items() if key != "name"}
            return self._named(name, keywords, place=("name",))
        return self.from_object(value)

    def _named(self, name: str, given: Mapping[str, Any], place: tuple[str, ...]) -> Component:
        try:
            section = self.section(name)
        except UnknownName as error:
            raise problem_at(place, str(error), name) from None
        read = section.model_validate(given)
        values = {key: getattr(read, key) for key in self.shown(name, read)}
        values |= read.model_extra or {}
        component = self.component(name, values)
        if self.checked:
            self._try(component)
        return component

    def _try(self, component: Component) -> None:
        """Make a component once, so that values that its constructor refuses are found now."""
        try:
            self.make(component)
        except (ValueError, TypeError, RuntimeError, UnderstudyError) as error:
            raise problem(str(error) or type(error).__name__) from None

    def component(self, name: str, values: Mapping[str, Any]) -> Component:
        """Return the component, what is no keyword of the constructor apart."""
        keywords = {key: value for key, value in values.items() if key not in self.extra}
        extra = {key: values[key] for key in self.extra if key in values}
        return Component(self.label, name, keywords, extra)

    def shown(self, name: str, read: BaseModel) -> list[str]:
        """Return which keywords belong into the component: all."""
        return list(type(read).model_fields)

    def from_object(self, value: Any) -> Component:
        """Return the component for a live object, by its name when it is one that a recipe could have named."""
        if not isinstance(value, self.live):
            raise problem(
                f"expected {self.words} (its name, or a mapping with `name`), found {found(value)}"
            )
        named = self.name_of(value)
        if named is not None:
            return named
        cls = type(value)
        return Component(self.label, f"{cls.__module__}.{cls.__qualname__}", live=value)

    def name_of(self, value: Any) -> Component | None:
        """Return the component by which a recipe would name a live object, None when there is none."""
        for name in self.names():
            if self.find(name) is type(value):
                keywords = [key for key in self.section(name).model_fields if key not in self.extra]
                if not all(hasattr(value, key) for key in keywords):
                    return None
                try:
                    return self._named(name, {key: getattr(value, key) for key in keywords}, ())
                except ValidationError:
                    return None
        return None

    def make(self, component: Component) -> Any:
        """Return a fresh object; a live one is returned as it is.

        Raises:
            UnderstudyError: what was named makes something else; or whatever a constructor says of its values.
        """
        if component.live is not None:
            return component.live
        made = self.find(component.name)(**component.keywords)
        if not isinstance(made, self.live):
            raise UnderstudyError(
                f"'{component.name}' gives {found(made)}, which is no {self.label}"
            )
        return made

    def __hash__(self) -> int:
        """Hash by identity."""
        return id(self)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Read with `read`."""
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Leave a mark that `schema()` replaces."""
        return {SCHEMA_MARK: self.label}


def keyword_section(
    name: str,
    target: Callable[..., Any],
    extra: Extra | None = None,
    skip: int = 0,
) -> type[Section]:
    """Return the section whose keys are the keywords of a class or function.

    Args:
        name: what the section is called.
        target: the class or function.
        extra: further keys.
        skip: how many leading parameters to leave out.
    """
    documented = [target, target.__init__] if inspect.isclass(target) else [target]
    texts: dict[str, str] = {}
    for item in documented:
        texts |= descriptions(item)
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise UnknownName(f"'{name}' does not say which keywords it takes ({error}).") from error
    hints = _hints(target)
    fields: dict[str, Any] = {}
    open_ended = False
    for number, parameter in enumerate(signature.parameters.values()):
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            open_ended = True
        if number < skip or parameter.kind in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.POSITIONAL_ONLY,
        ):
            continue
        read, default = _typed(hints.get(parameter.name, Any), parameter.default)
        fields[parameter.name] = (read, Field(default, description=texts.get(parameter.name)))
    for key, (hint, default, text) in (extra or {}).items():
        fields[key] = (strict(hint), Field(default, description=text))
    base: type[Section] = _Open if open_ended else Section
    section: type[Section] = create_model(name, __base__=base, **fields)
    section.__doc__ = (inspect.getdoc(target) or "").split("\n\n")[0].replace("\n", " ") or None
    return section


class _Open(Section, extra="allow"):
    """Keywords of something that takes any."""


@functools.cache
def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    holder = target.__init__ if inspect.isclass(target) else target
    try:
        return {name: without_tensors(hint) for name, hint in typing.get_type_hints(holder).items()}
    except (NameError, TypeError):
        # Hints that exist only for a type checker cannot be read; the constructor itself then judges its values.
        return {}


def without_tensors(hint: Any) -> Any:
    """Return a hint with tensors taken out of its unions: torch's optimisers accept them, a recipe holds numbers."""
    import torch

    arguments = typing.get_args(hint)
    if not arguments:
        return hint
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return hint
    kept = [without_tensors(argument) for argument in arguments if argument is not torch.Tensor]
    if origin is typing.Union or type(hint).__name__ == "UnionType":
        return functools.reduce(lambda left, right: left | right, kept)
    return origin[tuple(kept)] if origin in (list, tuple, dict) else hint


def _typed(hint: Any, default: Any) -> tuple[Any, Any]:
    """Return the pydantic type of a parameter, and its default in that type (0.0 where the signature says 0)."""
    if default is inspect.Parameter.empty:
        return strict(hint), ...
    if default is None:
        hint = hint | None if hint is not Any else Any
    try:
        return strict(hint), TypeAdapter(strict(hint)).validate_python(default)
    except ValidationError:
        # The default itself is not of the type that the hint says; then the hint is no guide.
        return Any, default
