"""Models by name: `prefix:name`, each prefix being one file in `models/builders/`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from torch import nn

from understudy.errors import ModelError, UnknownName, nearest, unknown_name
from understudy.models.model import Model, Preprocess
from understudy.models.preprocess import (
    AnyPreprocess,
    Kind,
    Statistics,
    TextPreprocess,
    adjusted,
    plain_preprocess,
)
from understudy.models.taps import unwrap
from understudy.models.tokenizer import load_tokenizer
from understudy.models.weights import load_weights
from understudy.registry import Registry

Task = Literal["classification", "causal_lm", "masked_lm", "seq2seq"]
TASKS: tuple[Task, ...] = ("classification", "causal_lm", "masked_lm", "seq2seq")
"""What a model may be for. All but the first are tasks of language models, which take texts."""

T = TypeVar("T")
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
_GIVEN_TWICE = re.compile(r"multiple values for (?:keyword )?argument '(\w+)'")


@dataclass(frozen=True)
class Request:
    """What was asked of a builder.

    Attributes:
        prefix: what stands before the colon.
        name: what stands after it.
        classes: number of classes of the task.
        kind: what raw samples are.
        input_shape: shape of one raw sample, (C, H, W) for images; None for texts.
        class_names: class names of the data, in label order.
        weights: a file, or a name that the prefix understands.
        preprocess: settings that replace the model's own.
        statistics: mean and standard deviation of the data, for models that bring none along.
        texts: gives the training texts, for a tokenizer to be trained on.
        keywords: everything else.
        task: what the model is for.
    """

    prefix: str
    name: str
    classes: int
    kind: Kind
    input_shape: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    weights: str | None = None
    preprocess: Mapping[str, Any] | None = None
    statistics: Statistics | None = None
    texts: Callable[[], Iterable[Any]] | None = None
    keywords: dict[str, Any] = field(default_factory=dict)
    task: Task = "classification"

    @property
    def full_name(self) -> str:
        """Return `prefix:name`."""
        return f"{self.prefix}:{self.name}"

    def image_channels(self) -> int:
        """Return the channels of the images; anything else than images is refused."""
        if self.kind == "text" or self.input_shape is None or len(self.input_shape) != 3:
            shape = "" if self.input_shape is None else f" of shape {tuple(self.input_shape)}"
            raise ModelError(
                f"'{self.full_name}' takes images [C, H, W]; the data are {self.kind}s{shape}."
            )
        return self.input_shape[0]

    def plain(self, channels: int | None = None) -> AnyPreprocess:
        """Return the preprocessing of a model that brings none along, with the settings asked for."""
        settings = dict(self.preprocess or {})
        if self.kind == "text" and "tokenizer" in settings:
            tokenizer = settings.pop("tokenizer")
            base: AnyPreprocess = TextPreprocess(
                tokenizer if callable(tokenizer) else load_tokenizer(tokenizer)
            )
        else:
            own = channels or (self.input_shape[0] if self.input_shape else 1)
            base = plain_preprocess(self.kind, channels=own, statistics=self.statistics)
        return adjusted(base, settings)

    def rebuilt_by(self, preprocess: Preprocess, **keywords: Any) -> dict[str, Any] | None:
        """Return the arguments of `build` that make the same module again; None when they are no JSON values."""
        own = {name: value for name, value in preprocess.config().items() if name != "tokenizer"}
        config = {
            "name": self.full_name,
            "classes": self.classes,
            "kind": self.kind,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "class_names": None if self.class_names is None else list(self.class_names),
            "preprocess": own,
            **({} if self.task == "classification" else {"task": self.task}),
            **keywords,
        }
        try:
            return dict(json.loads(json.dumps(config)))
        except (TypeError, ValueError):
            return None


class Builder(Protocol):
    """Makes the models of one prefix.

    One that makes language models too says so by an attribute `language = True`.
    """

    def names(self) -> list[str]:
        """Return the names that can be listed; empty where any path or module may stand."""

    def build(self, request: Request) -> Model:
        """Make the model, drawing initial weights from torch's global generator."""


builders: Registry[Callable[[], Builder]] = Registry("model prefix", "understudy.models.builders")
"""Classes that make the models of one prefix; one file each in `models/builders/`."""


def build(
    name: str,
    *,
    classes: int,
    kind: Kind,
    input_shape: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    weights: str | None = None,
    preprocess: Mapping[str, Any] | None = None,
    statistics: Statistics | None = None,
    texts: Callable[[], Iterable[Any]] | None = None,
    task: Task = "classification",
    **keywords: Any,
) -> Model:
    """Build a model by name.

    Args:
        name: `prefix:name`, such as "kd:resnet20", "timm:resnet18", "hf:FOLDER", "py:module:callable".
        classes: number of logits.
        kind: what the raw samples are: "image", "text" or "tensor".
        input_shape: shape of one raw sample ((C, H, W) for images); None for texts.
        class_names: names in label order, given to models that carry class names but have none of their own.
        weights: a file with weights, or a name that the prefix knows ("pretrained" for timm, "DEFAULT" for
            torchvision).
        preprocess: settings that replace the model's own preprocessing, such as {"size": 64}.
        statistics: mean and standard deviation per channel of the data. Used by models whose weights start fresh;
            pretrained ones keep the statistics that they were trained with.
        texts: gives the training texts, for text models from scratch whose tokenizer is to be trained on them.
        task: what the model is for: "classification", or a language model's "causal_lm", "masked_lm" or "seq2seq".
            The latter have no classes of their own; what the data call classes are domains of their documents.
        keywords: what the model takes beyond that; an unknown one is answered with the valid ones.

    Returns:
        The model. Initial weights are drawn from torch's global generator, which nothing here seeds.

    Raises:
        UnknownName: no such prefix, model or keyword.
        ModelError: it cannot be built, or its weights not be loaded.
    """
    prefix, colon, rest = name.partition(":")
    if not colon or not rest:
        raise UnknownName(_without_prefix(name))
    if prefix not in builders:
        raise unknown_name("model prefix", prefix, builders.names())
    if classes < 1:
        raise ModelError(f"'{name}' was asked for {classes} classes; there must be at least 1.")
    if class_names is not None and len(class_names) != classes:
        raise ModelError(
            f"'{name}': there are {len(class_names)} class names for {classes} classes."
        )
    request = Request(
        prefix,
        rest,
        classes,
        kind,
        None if input_shape is None else tuple(input_shape),
        None if class_names is None else tuple(class_names),
        weights,
        preprocess,
        statistics,
        texts,
        dict(keywords),
        task,
    )
    builder = builders.get(prefix)()
    if task != "classification":
        _check_language(request, builder)
    return builder.build(request)


def _check_language(request: Request, builder: Builder) -> None:
    """Refuse a task that does not exist, that the builder has no models for, or that the data are not for."""
    if request.task not in TASKS:
        raise unknown_name("task", request.task, TASKS)
    if not getattr(builder, "language", False):
        able = [f"{name}:" for name, made in builders if getattr(made, "language", False)]
        raise ModelError(
            f"'{request.full_name}' is no language model, so it cannot be used for the task {request.task}. "
            f"Language models have the prefixes {', '.join(able)}."
        )
    if request.kind != "text":
        raise ModelError(
            f"The task {request.task} takes texts; the data of '{request.full_name}' are {request.kind}s."
        )


def names(prefix: str | None = None) -> list[str]:
    """Return the full names of all models of a prefix (None: of all prefixes); empty where any path may stand."""
    prefixes = builders.names() if prefix is None else [prefix]
    return [f"{each}:{name}" for each in prefixes for name in builders.get(each)().names()]


def live(
    module: nn.Module,
    *,
    kind: Kind,
    input_shape: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    statistics: Statistics | None = None,
    name: str | None = None,
) -> Model:
    """Wrap a module that the caller made. Wrappers around it (distributed, compiled) are taken off.

    Args:
        module: the network; used as it is, not copied.
        kind: what the raw samples are.
        input_shape: shape of one raw sample.
        class_names: names in logit order, if the model has them.
        preprocess: an object, or settings for the default one ({"tokenizer": ..., "max_length": 128} for texts).
        statistics: mean and standard deviation per channel, where `preprocess` says nothing.
        name: what a log calls it.
    """
    module = unwrap(module)
    if not isinstance(module, nn.Module):
        raise ModelError(f"A model is a torch.nn.Module, not a {type(module).__name__}.")
    if preprocess is None or isinstance(preprocess, Mapping):
        shape = None if input_shape is None else tuple(input_shape)
        preprocess = Request(
            "live",
            type(module).__name__,
            len(class_names or ()),
            kind,
            shape,
            preprocess=preprocess,
            statistics=statistics,
        ).plain()
    return Model(
        module,
        preprocess,
        name or f"live:{type(module).__name__}",
        weights="given with the module",
        classes=None if class_names is None else tuple(class_names),
    )


def call_constructor(
    constructor: Callable[..., T],
    what: str,
    keywords: Mapping[str, Any],
    valid: Callable[[], Iterable[str]],
    **given: Any,
) -> T:
    """Call `constructor(**given, **keywords)`; an unknown keyword is answered with those that `valid()` gives."""
    try:
        return constructor(**given, **keywords)
    except TypeError as error:
        wrong = _UNEXPECTED.search(str(error))
        if wrong is not None and wrong[1] in keywords:
            raise unknown_name(f"keyword of '{what}'", wrong[1], valid()) from error
        twice = _GIVEN_TWICE.search(str(error))
        if twice is not None and twice[1] in keywords:
            raise ModelError(f"'{what}' fixes '{twice[1]}' by its name; leave it out.") from error
        raise ModelError(f"'{what}' cannot be built with {dict(keywords)}: {error}") from error


def refuse_reserved(request: Request, reserved: Mapping[str, str]) -> None:
    """Refuse keywords that `build` answers for itself; `reserved` maps each to what to use instead."""
    for name, instead in reserved.items():
        if name in request.keywords:
            raise ModelError(f"'{request.full_name}' takes no '{name}': {instead}.")


def load_file(
    module: nn.Module, request: Request, drop_head: bool, *, published: bool = False
) -> str:
    """Load the weights file asked for, if any; return where the weights come from."""
    if request.weights is None:
        if drop_head:
            raise ModelError(
                f"'{request.full_name}': `drop_head` is set, but no `weights` are given."
            )
        return "random"
    return load_weights(module, request.weights, published=published, drop_head=drop_head)


def _without_prefix(name: str) -> str:
    """Say what is missing in a model name without prefix."""
    wanted = name.strip(":")
    listed = [full for prefix in ("kd", "torchvision") for full in _names_if_installed(prefix)]
    exact = [full for full in listed if full.partition(":")[2] == wanted]
    close = exact or nearest(wanted, [full.partition(":")[2] for full in listed])
    matches = [full for full in listed if full.partition(":")[2] in close or full in exact]
    hint = f" Did you mean {' or '.join(repr(full) for full in matches[:3])}?" if matches else ""
    return (
        f"'{name}' is no model name: it is written 'prefix:name', with the prefix "
        f"{', '.join(builders.names())}.{hint}"
    )


def _names_if_installed(prefix: str) -> list[str]:
    try:
        return names(prefix)
    except ModelError:
        return []
