"""Modules that a saved model can name: rebuilt from a registered name and JSON keywords, never from pickled code."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from torch import nn

from understudy.errors import ModelError
from understudy.models.configured import construct
from understudy.registry import Registry


class Rebuildable(nn.Module):
    """Base of what surgery puts into a student: its class has a name, its constructor's keywords are its configuration.

    Every keyword of the constructor is kept as an attribute of the same name and is a JSON value. The numbers that
    were learnt are in the state dict; a keyword is what is needed to make a module into which they fit.
    """

    entry: ClassVar[str | None] = None
    """The name in the registry, None without one."""

    @classmethod
    def registered_name(cls) -> str:
        """Return the name by which a saved model can find the class again.

        Raises:
            ModelError: there is none: the class was defined in a function or in the program itself.
        """
        if cls.entry is not None and cls.__module__.startswith("understudy."):
            return cls.entry
        # A name that only this process has registered would be no help to the one that loads.
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            place = "a function" if "<locals>" in cls.__qualname__ else "the program that runs"
            raise ModelError(
                f"{cls.__qualname__} is defined inside of {place}, where a saved student could not find it again. "
                "Define it at the top of a module that can be imported."
            )
        return f"py:{cls.__module__}:{cls.__qualname__}"

    @property
    def keywords(self) -> dict[str, Any]:
        """Return the constructor's keywords with their values, as JSON gives them back.

        Raises:
            ModelError: one is not kept as an attribute, or is no JSON value.
        """
        kind = type(self).__name__
        found: dict[str, Any] = {}
        for name in list(inspect.signature(type(self).__init__).parameters)[1:]:
            if not hasattr(self, name):
                raise ModelError(
                    f"{kind} does not keep its keyword '{name}' as an attribute, so it could not be rebuilt; "
                    f"set `self.{name}` in its constructor."
                )
            value = getattr(self, name)
            try:
                found[name] = json.loads(json.dumps(value, allow_nan=False))
            except (TypeError, ValueError) as error:
                raise ModelError(
                    f"{kind} was made with {name}={value!r}, which is no JSON value, so it could not be rebuilt. "
                    "Put tensors into parameters or buffers, and only sizes and settings into keywords."
                ) from error
        return found

    @property
    def identity(self) -> dict[str, Any]:
        """Return `{"name": ..., "keywords": ...}`, from which `remake` makes it again; equal for what is made alike."""
        return {"name": self.registered_name(), "keywords": self.keywords}


R = TypeVar("R", bound=Rebuildable)


def remake(registry: Registry[type[R]], base: type[R], name: str, keywords: Mapping[str, Any]) -> R:
    """Make the module that a saved model names.

    Raises:
        UnknownName: no such name or keyword.
        ModelError: what goes by the name is no such module.
    """
    found: Any = registry.get(name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ModelError(f"'{name}' is no {registry.kind}.")
    return construct(found, f"the {registry.kind} '{name}'", keywords)
