"""The kinds of components: sources, transforms, models, methods, optimisers, schedules."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field, create_model
from torch import nn
from torch.utils.data import Dataset

from understudy.data.curation import Filter, filters
from understudy.data.source import Source, sources
from understudy.data.sources.python import from_dataset, from_tensors
from understudy.data.views import Mixing, Transform, transforms
from understudy.errors import UnknownName, suggestion
from understudy.methods.method import Method, Ramp, TeacherFeatures, methods
from understudy.models.build import builders
from understudy.models.build import names as model_names
from understudy.models.model import Model
from understudy.recipe.components import Component, Extra, Kind
from understudy.recipe.hints import strict
from understudy.recipe.problems import Section, found, problem
from understudy.recipe.words import Known
from understudy.teachers.listening import Route
from understudy.training.optimizers import Optimizer, optimizer_class, optimizer_classes
from understudy.training.schedules import Schedule, schedules


class _MethodKind(Kind):
    """Methods, which have a weight beside their keywords, and may listen to one of several teachers."""

    extra: ClassVar[Extra] = {
        "weight": (
            float | Ramp,
            1.0,
            "factor of the loss in the stage's sum; a ramp changes it over the stage",
        ),
        "teacher": (
            str | list[str] | dict[str, float] | Route | None,
            None,
            "which of several teachers it listens to: a name; names, or name -> weight, for the average of their "
            "probabilities; or a route that chooses one for each sample",
        ),
        "teacher_features": (
            TeacherFeatures | None,
            None,
            "how the teacher's features are standardised before the method reads them; null for as they are",
        ),
    }

    def component(self, name: str, values: Mapping[str, Any]) -> Component:
        # Nothing said is nothing written: a recipe with one teacher needs no key for it.
        optional = ("teacher", "teacher_features")
        given = {
            key: value for key, value in values.items() if key not in optional or value is not None
        }
        return super().component(name, given)

    def from_object(self, value: Any) -> Component:
        component = super().from_object(value)
        extra = {"weight": value.weight}
        if value.hears is not None:
            extra["teacher"] = value.hears
        if value.teacher_features is not None:
            extra["teacher_features"] = value.teacher_features
        return Component(self.label, component.name, component.keywords, extra, component.live)

    def make(self, component: Component) -> Method:
        method: Method = super().make(component)
        if component.live is not None:
            # A method holds projectors and banks once it is wired: every member needs its own.
            method = copy.deepcopy(method)
        method.weighted(component.extra.get("weight", 1.0))
        return method.listening_to(
            component.extra.get("teacher"), features=component.extra.get("teacher_features")
        )


class _OptimizerKind(Kind):
    """Optimisers, whose first parameter is what they optimise."""

    def skipped(self, target: Callable[..., Any]) -> int:
        return 1

    def shown(self, name: str, read: BaseModel) -> list[str]:
        # None leaves a choice such as `foreach` to torch; written down, it would look like one.
        return [key for key in type(read).model_fields if getattr(read, key) is not None]

    def name_of(self, value: Optimizer) -> Component:
        return self._named(value.name, value.keywords, ())

    def make(self, component: Component) -> Optimizer:
        optimizer = Optimizer(component.name, **component.keywords)
        # Muon takes matrices only, SGD anything; the values are judged by torch's own constructor.
        optimizer.build([nn.Parameter(torch.zeros(1, 1))])
        return optimizer


class _SourceKind(Kind):
    """Sources: functions that load a `Source`. From Python also what `as_source` takes."""

    def from_object(self, value: Any) -> Component:
        return super().from_object(as_source(value))


class _ModelKind(Kind):
    """Models, by prefix and name. Their keywords depend on the prefix, so they are checked when one is built."""

    extra: ClassVar[Extra] = {
        "weights": (str | None, None, "where the weights come from, None for fresh ones"),
        "preprocess": (dict[str, Any] | None, None, "changes of the model's own preprocessing"),
    }

    def section(self, name: str) -> type[Section]:
        self.find(name)
        return _ModelKeywords

    def shown(self, name: str, read: BaseModel) -> list[str]:
        return [key for key in type(read).model_fields if getattr(read, key) is not None]

    def from_object(self, value: Any) -> Component:
        if not isinstance(value, nn.Module | Model) and not callable(value):
            raise problem(
                "expected a model (a name such as kd:resnet20, a mapping with `name`, a module, or a function that "
                f"makes one), found {found(value)}"
            )
        named = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
        return Component(self.label, f"{named.__module__}.{named.__qualname__}", live=value)


_ModelKeywords = create_model(
    "model",
    __base__=Section,
    __cls_kwargs__={"extra": "allow"},
    **{  # type: ignore[call-overload]
        key: (strict(hint), Field(default, description=text))
        for key, (hint, default, text) in _ModelKind.extra.items()
    },
)


def find_prefix(name: str) -> Callable[..., Any]:
    """Return what builds models like `name`; only the prefix is judged, for listing a library takes seconds."""
    prefix, _, rest = name.partition(":")
    if not prefix or not rest or prefix not in builders:
        known = ", ".join(f"{each}:" for each in builders.names())
        close = suggestion(
            name, model_names("kd") if not rest else [f"{each}:{rest}" for each in builders.names()]
        )
        raise UnknownName(
            f"'{name}' is no model name; it is written prefix:name with one of the prefixes {known}. {close}"
        )
    return builders.get(prefix)


SOURCE = _SourceKind("data source", sources.names, sources.get, Source, checked=False)
TRANSFORM = Kind("transform", transforms.names, transforms.get, (Transform, Mixing))
FILTER = Kind("filter", filters.names, filters.get, Filter)
METHOD = _MethodKind("method", methods.names, methods.get, Method)
SCHEDULE = Kind("schedule", schedules.names, schedules.get, Schedule)
OPTIMIZER = _OptimizerKind(
    "optimiser", lambda: list(optimizer_classes()), optimizer_class, Optimizer
)
MODEL = _ModelKind("model", model_names, find_prefix, (nn.Module, Model), checked=False)

DEFAULT_TEST = 0.2
"""The part of a lone dataset that is kept for the test."""

KINDS = (SOURCE, TRANSFORM, FILTER, MODEL, METHOD, OPTIMIZER, SCHEDULE)

KNOWN: Known = {
    Source: SOURCE.field,
    Transform: TRANSFORM.field,
    Mixing: TRANSFORM.field,
    Filter: FILTER.field,
    Method: METHOD.field,
    Optimizer: OPTIMIZER.field,
    Schedule: SCHEDULE.field,
}
"""What a recipe holds in place of objects of these classes."""


def as_source(value: Any) -> Any:
    """Return the source for data given from Python.

    Args:
        value: a `Source`; a dataset, or a pair of one to train and one (or a fraction) to test on; or a pair
            ((inputs, labels), (test inputs, test labels)).
    """
    if isinstance(value, Dataset):
        return from_dataset(value, DEFAULT_TEST)
    if isinstance(value, tuple | list) and len(value) == 2:
        train, test = value
        if isinstance(train, Dataset):
            return from_dataset(train, test)
        if (
            isinstance(train, tuple | list)
            and isinstance(test, tuple | list)
            and len(train) == len(test) == 2
        ):
            return from_tensors(*train, test_inputs=test[0], test_labels=test[1])
    return value


def component_of(value: Any) -> Any:
    """Return the component for a default object; other values as they are."""
    for cls, kind in ((Optimizer, OPTIMIZER), (Schedule, SCHEDULE)):
        if isinstance(value, cls):
            return kind.from_object(value)
    return value


def merged(kind: Kind, value: Any, inherited: Component) -> Any:
    """Return what a recipe says about a component, completed by an inherited one of the same name.

    Args:
        kind: the kind of component.
        value: a mapping, which may leave the name out to mean the inherited one; a name; or a live object.
        inherited: the component that holds where nothing else is said.
    """
    if inherited.live is not None:
        return value
    if value == inherited.name:
        return inherited
    if not isinstance(value, Mapping) or value.get("name", inherited.name) != inherited.name:
        return value
    return {"name": inherited.name, **inherited.keywords, **value}
