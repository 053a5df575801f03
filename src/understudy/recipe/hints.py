"""From the type hints of a signature to strict pydantic types, and to words."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from understudy.errors import UnderstudyError, suggestion
from understudy.recipe.problems import Expected, Section, found, problem
from understudy.recipe.words import LISTS, MAPPINGS, Known, in_words, yaml_word

_SCALARS: dict[Any, Any] = {
    int: Annotated[int, Field(strict=True)],
    float: Annotated[float, Field(strict=True, allow_inf_nan=False)],
    bool: Annotated[bool, Field(strict=True)],
    str: Annotated[str, Field(strict=True)],
}


def strict(hint: Any, known: Known | None = None) -> Any:
    """Return the pydantic type for a hint: nothing is coerced but whole numbers to floats and lists to tuples.

    A dataclass is read from a mapping of its fields and gives an instance of it.
    """
    known = known or {}
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return Any
    if origin is Annotated:
        return strict(arguments[0], known)
    if inspect.isclass(hint) and hint in known:
        return known[hint]
    words = in_words(hint, known)
    if hint in _SCALARS:
        return Annotated[_SCALARS[hint], _one_problem(words), Expected(words)]
    if hint is Path:
        kept = Annotated[Any, PlainValidator(_path), WithJsonSchema({"type": "string"})]
        return Annotated[kept, Expected(words)]
    if origin is Literal:
        return Annotated[hint, _choice(arguments), Expected(words)]
    if origin in (Union, types.UnionType):
        return _union(arguments, words, known)
    if hint in LISTS or origin in LISTS:
        return _list(hint, words, known)
    if hint in MAPPINGS or origin in MAPPINGS:
        value = strict(arguments[1], known) if arguments else Any
        return Annotated[dict[str, value], _is(Mapping, words), Expected(words)]  # type: ignore[valid-type]
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        return Annotated[Any, _DataclassReader(hint, known), Expected(words)]
    if inspect.isclass(hint) and hint is not object:
        return Annotated[Any, _instance(hint, words), WithJsonSchema({"not": {}}), Expected(words)]
    if origin is collections.abc.Callable or hint is Callable:
        return Annotated[
            Any, _instance(collections.abc.Callable, words), WithJsonSchema({"not": {}})
        ]
    return Any


def derived(
    name: str,
    source: type,
    *,
    known: Known | None = None,
    leave_out: tuple[str, ...] = (),
    convert: Callable[[Any], Any] = lambda default: default,
) -> type[Section]:
    """Return a section with the fields of a dataclass: types, defaults and descriptions are the dataclass's.

    Args:
        name: the section's class name.
        source: the dataclass.
        known: see `strict`.
        leave_out: fields that the section says in another way.
        convert: turns a default object into what a recipe holds for it.
    """
    hints = typing.get_type_hints(source)
    texts = descriptions(source)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(source):
        if field.name in leave_out:
            continue
        options: dict[str, Any] = {"description": texts.get(field.name)}
        if field.default is not dataclasses.MISSING:
            options["default"] = convert(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            options["default_factory"] = _Factory(field.default_factory, convert)
        fields[field.name] = (strict(hints[field.name], known), Field(**options))
    return create_model(name, __base__=Section, **fields)


def descriptions(documented: Any) -> dict[str, str]:
    """Return name -> text of the `Args:` or `Attributes:` part of a docstring in Google's style."""
    lines = (inspect.getdoc(documented) or "").splitlines()
    texts: dict[str, str] = {}
    inside, name = False, None
    for line in lines:
        if line.strip() in ("Args:", "Attributes:"):
            inside = True
        elif inside and line and not line.startswith(" "):
            inside = False
        elif inside and (start := re.match(r" {4}(\*{0,2}\w+)(?: \(.*?\))?: (.*)", line)):
            name = start[1].lstrip("*")
            texts[name] = start[2].strip()
        elif inside and name and line.strip():
            texts[name] += " " + line.strip()
    return texts


class _Factory:
    """A default that is made fresh each time."""

    def __init__(self, make: Callable[[], Any], convert: Callable[[Any], Any]) -> None:
        self._make, self._convert = make, convert

    def __call__(self) -> Any:
        return self._convert(self._make())


class _DataclassReader:
    """Pydantic annotation: an instance of a dataclass, or a mapping from which it is made."""

    def __init__(self, cls: type, known: Known) -> None:
        self._cls, self._known = cls, known
        self._section: type[Section] | None = None

    @property
    def section(self) -> type[Section]:
        if self._section is None:
            self._section = derived(self._cls.__name__, self._cls, known=self._known)
        return self._section

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "object", **self.section.model_json_schema()}

    def read(self, value: Any) -> Any:
        if isinstance(value, self._cls):
            return value
        read = self.section.model_validate(value)
        try:
            return self._cls(**{name: getattr(read, name) for name in self.section.model_fields})
        except (ValueError, UnderstudyError) as error:
            raise problem(str(error)) from None


def _union(members: tuple[Any, ...], words: str, known: Known) -> Any:
    """Read a union: a mapping goes to its dataclass (if any), so that problems keep their place; else one sentence.

    Where the union has mappings of its own, only one that has a key of the dataclass goes there.
    """
    rest = [member for member in members if member is not type(None)]
    if rest[0] in known and all(known.get(member) is known[rest[0]] for member in rest):
        # Several classes of one kind of component, such as the transforms that mix and those that don't.
        inner = known[rest[0]]
        return inner if len(rest) == len(members) else Annotated[inner | None, Expected(words)]
    if len(rest) == 1 and rest[0] not in _SCALARS:
        inner = strict(rest[0], known)
        return Annotated[inner | None, Expected(words)]
    readers = [
        _DataclassReader(m, known)
        for m in rest
        if inspect.isclass(m) and dataclasses.is_dataclass(m)
    ]
    open_ended = any(m in MAPPINGS or get_origin(m) in MAPPINGS for m in rest)
    types_of = [m if m is type(None) else strict(m, known) for m in members]
    adapter: TypeAdapter[Any] = TypeAdapter(functools.reduce(operator.or_, types_of))

    def read(value: Any) -> Any:
        if (
            readers
            and isinstance(value, Mapping)
            and (not open_ended or set(value) & set(readers[0].section.model_fields))
        ):
            return readers[0].read(value)
        try:
            return adapter.validate_python(value)
        except ValidationError:
            raise problem(f"expected {words}, found {found(value)}") from None

    return Annotated[
        Any, PlainValidator(read), WithJsonSchema(adapter.json_schema()), Expected(words)
    ]


def _list(hint: Any, words: str, known: Known) -> Any:
    arguments = get_args(hint)
    check = _is((list, tuple), words)
    if get_origin(hint) is tuple and arguments and arguments[-1] is not Ellipsis:
        fixed: Any = tuple[tuple(strict(item, known) for item in arguments)]  # type: ignore[misc]
        return Annotated[fixed, _length(len(arguments), words), check, Expected(words)]
    item: Any = strict(arguments[0], known) if arguments else Any
    many: Any = tuple[item, ...]
    if list in (hint, get_origin(hint)):
        many = list[item]
    return Annotated[many, check, Expected(words)]


def _one_problem(words: str) -> WrapValidator:
    def read(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise problem(f"expected {words}, found {found(value)}") from None

    return WrapValidator(read)


def _choice(valid: tuple[Any, ...]) -> WrapValidator:
    def read(value: Any, handler: Callable[[Any], Any]) -> Any:
        # 1 and true are equal in Python, but not in a recipe.
        if any(value == choice and type(value) is type(choice) for choice in valid):
            return value
        if isinstance(value, str):
            raise problem(
                f"there is no choice '{value}'. {suggestion(value, [yaml_word(v) for v in valid])}"
            )
        raise problem(f"expected {in_words(Literal[valid])}, found {found(value)}")

    return WrapValidator(read)


def _is(kinds: Any, words: str) -> WrapValidator:
    def read(value: Any, handler: Callable[[Any], Any]) -> Any:
        if not isinstance(value, kinds):
            raise problem(f"expected {words}, found {found(value)}")
        return handler(value)

    return WrapValidator(read)


def _length(count: int, words: str) -> WrapValidator:
    def read(value: Any, handler: Callable[[Any], Any]) -> Any:
        if isinstance(value, list | tuple) and len(value) != count:
            raise problem(f"expected {words}, found {found(value)}")
        return handler(value)

    return WrapValidator(read)


def _instance(kind: Any, words: str) -> PlainValidator:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise problem(f"expected {words}, found {found(value)}")
        return value

    return PlainValidator(read)


def _path(value: Any) -> str:
    if not isinstance(value, str | Path):
        raise problem(f"expected a path, found {found(value)}")
    return str(value)
