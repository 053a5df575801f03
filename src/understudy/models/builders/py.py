"""`py:module:callable`: any Python function or class that returns a module."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from torch import nn

from understudy.errors import ModelError
from understudy.models.build import Request, builders, call_constructor, load_file
from understudy.models.language_models import language_preprocess
from understudy.models.language_tokenizer import language_tokenizer
from understudy.models.model import Model
from understudy.models.preprocess import AnyPreprocess
from understudy.registry import import_entry


@builders.register("py")
class PythonBuilder:
    """`py:module:callable` is called with the keywords, and with the number of classes if it takes it.

    A language model's is called with the number of tokens, if it takes `vocab_size` or `vocabulary`. Its tokenizer is
    named as `preprocess: {tokenizer: ...}`.
    """

    language = True

    def names(self) -> list[str]:
        """Return nothing: any callable may stand there."""
        return []

    def build(self, request: Request) -> Model:
        """Import and call; preprocessing is the default one under the settings of `preprocess`."""
        entry = import_entry(request.full_name)
        keywords = dict(request.keywords)
        drop_head = bool(keywords.pop("drop_head", False))
        taken = _parameters(entry)
        tokenizer = None
        names, count = ("classes", "num_classes"), request.classes
        if request.task != "classification":
            tokenizer = language_tokenizer(replace(request, keywords={}), None)
            names, count = ("vocab_size", "vocabulary"), len(tokenizer)
        given: dict[str, Any] = {
            name: count for name in names if name in taken and name not in keywords
        }
        module = call_constructor(entry, request.full_name, keywords, lambda: taken, **given)
        if not isinstance(module, nn.Module):
            raise ModelError(
                f"'{request.full_name}' returned a {type(module).__name__}; it should return a torch.nn.Module."
            )
        extra: dict[str, Any] = {}
        if tokenizer is None:
            preprocess: AnyPreprocess = request.plain()
        else:
            preprocess, notes = language_preprocess(
                request.full_name, request.task, module, tokenizer, request.preprocess
            )
            extra = {"task": request.task, "notes": notes}
        weights = load_file(module, request, drop_head)
        if request.weights is None:
            weights = f"as made by {request.full_name}"
        config = request.rebuilt_by(preprocess, **keywords)
        classes = request.class_names if tokenizer is None else None
        return Model(module, preprocess, request.full_name, config, weights, classes, extra)


def _parameters(entry: Any) -> list[str]:
    try:
        return [
            name
            for name, parameter in inspect.signature(entry).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
    except ValueError:  # a callable written in C, which has no signature
        return []
