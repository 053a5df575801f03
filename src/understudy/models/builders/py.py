"""`py:module:callable`: any Python function or class that returns a module."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from understudy.errors import ModelError
from understudy.models.build import Request, builders, call_constructor, load_file
from understudy.models.model import Model
from understudy.registry import import_entry


@builders.register("py")
class PythonBuilder:
    """`py:module:callable` is called with the keywords, and with the number of classes if it takes it."""

    def names(self) -> list[str]:
        """Return nothing: any callable may stand there."""
        return []

    def build(self, request: Request) -> Model:
        """Import and call; preprocessing is the default one under the settings of `preprocess`."""
        entry = import_entry(request.full_name)
        keywords = dict(request.keywords)
        drop_head = bool(keywords.pop("drop_head", False))
        taken = _parameters(entry)
        given: dict[str, Any] = {
            name: request.classes
            for name in ("classes", "num_classes")
            if name in taken and name not in keywords
        }
        module = call_constructor(entry, request.full_name, keywords, lambda: taken, **given)
        if not isinstance(module, nn.Module):
            raise ModelError(
                f"'{request.full_name}' returned a {type(module).__name__}; it should return a torch.nn.Module."
            )
        preprocess = request.plain()
        weights = load_file(module, request, drop_head)
        if request.weights is None:
            weights = f"as made by {request.full_name}"
        config = request.rebuilt_by(preprocess, **keywords)
        return Model(module, preprocess, request.full_name, config, weights, request.class_names)


def _parameters(entry: Any) -> list[str]:
    try:
        return [
            name
            for name, parameter in inspect.signature(entry).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
    except ValueError:  # a callable written in C, which has no signature
        return []
