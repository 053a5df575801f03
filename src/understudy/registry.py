"""Names for the things that a recipe can ask for."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from understudy.errors import UnderstudyError, UnknownName, unknown_name

T = TypeVar("T", bound=Callable[..., object])


class Registry(Generic[T]):
    """A table of callables (classes or functions) of one kind, found by name.

    A registry knows the package its members live in and imports every module of it when first asked, so a new
    member needs no entry anywhere: it is there because its file is there. A registry without a package holds what
    the module that defines it enters. `py:module:attribute` reaches anything else.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        """Make an empty table for things called `kind` ("method", ...) living in `package`."""
        self.kind = kind
        self._package = package
        self._members: dict[str, T] = {}
        self._complete = False

    def add(self, name: str, member: T) -> T:
        """Enter `member` under `name`; two different members may not share one."""
        known = self._members.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (
            member.__module__,
            member.__qualname__,
        ):
            raise UnderstudyError(
                f"Two {self.kind}s are called '{name}': {known.__module__}.{known.__qualname__} "
                f"and {member.__module__}.{member.__qualname__}. Rename one."
            )
        self._members[name] = member
        return member

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters what it decorates under `name`."""
        return lambda member: self.add(name, member)

    def get(self, name: str) -> T:
        """Return the member called `name`; `py:module:attribute` imports it from anywhere."""
        if name.startswith("py:"):
            return import_entry(name)  # type: ignore[return-value]
        self._discover()
        if name not in self._members:
            raise unknown_name(self.kind, name, self._members)
        return self._members[name]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        self._discover()
        return sorted(self._members)

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """Iterate over (name, member), sorted by name."""
        return iter([(name, self._members[name]) for name in self.names()])

    def __contains__(self, name: str) -> bool:
        """Tell whether something is called `name`."""
        self._discover()
        return name in self._members

    def _discover(self) -> None:
        if self._complete or self._package is None:
            return
        self._complete = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")


def import_entry(name: str) -> Callable[..., object]:
    """Import `py:module:attribute` and return the attribute."""
    parts = name.split(":")
    if len(parts) != 3 or parts[0] != "py" or not all(parts):
        raise UnknownName(f"'{name}' is not of the form 'py:module:attribute'.")
    try:
        module = importlib.import_module(parts[1])
    except ImportError as error:
        raise UnknownName(f"'{name}': module '{parts[1]}' cannot be imported ({error}).") from error
    value: object = module
    for attribute in parts[2].split("."):
        if not hasattr(value, attribute):
            public = [member for member in dir(value) if not member.startswith("_")]
            raise unknown_name(f"attribute of '{parts[1]}'", attribute, public)
        value = getattr(value, attribute)
    if not callable(value):
        raise UnknownName(f"'{name}' is a {type(value).__name__}, not a class or function.")
    return value
