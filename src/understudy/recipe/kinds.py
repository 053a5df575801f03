"""The kinds of components: sources, transforms, models, methods, optimisers, schedules."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, Field, create_model
from torch import nn

from understudy.data.source import Source, sources
from understudy.data.views import Mixing, Transform, transforms
from understudy.errors import UnderstudyError
from understudy.methods.method import Method, Ramp, methods
from understudy.models.model import Model
from understudy.recipe.components import Component, Kind
from understudy.recipe.hints import Known, strict
from understudy.recipe.problems import Section, found, problem
from understudy.training.optimizers import Optimizer, optimizer_class, optimizer_classes
from understudy.training.schedules import Schedule, schedules


class _MethodKind(Kind):
    """Methods, which have a weight beside their keywords."""

    extra = {
        "weight": (float | Ramp, 1.0, "factor of the loss in the stage's sum; a ramp changes it over the stage")
    }

    def from_object(self, value: Any) -> Component:
        component = super().from_object(value)
        return Component(self.label, component.name, component.keywords, {"weight": value.weight}, component.live)

    def make(self, component: Component) -> Method:
        # A method holds projectors and banks once it is wired: every member needs its own.
        method: Method = copy.deepcopy(super().make(component))
        return method.weighted(component.extra.get("weight", 1.0))


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
        optimizer.build([nn.Parameter(nn.Linear(1, 1, bias=False, device="meta").weight)])
        return optimizer


class _SourceKind(Kind):
    """Sources: functions that load a `Source`."""


class _ModelKind(Kind):
    """Models, by prefix and name. Which keywords there are depends on the prefix, so they are checked when it is built."""

    extra = {
        "weights": (str | None, None, "where the weights come from, None for fresh ones"),
        "preprocess": (dict[str, Any] | None, None, "changes of the model's own preprocessing"),
    }

    def section(self, name: str) -> type[Section]:
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


def _model_names() -> list[str]:
    raise UnderstudyError("Models are found by prefix.")


SOURCE = _SourceKind("data source", sources.names, sources.get, Source, checked=False)
TRANSFORM = Kind("transform", transforms.names, transforms.get, (Transform, Mixing))
METHOD = _MethodKind("method", methods.names, methods.get, Method)
SCHEDULE = Kind("schedule", schedules.names, schedules.get, Schedule)
OPTIMIZER = _OptimizerKind("optimiser", lambda: list(optimizer_classes()), optimizer_class, Optimizer)
MODEL = _ModelKind("model", _model_names, lambda name: Model, (nn.Module, Model), checked=False)

KINDS = (SOURCE, TRANSFORM, MODEL, METHOD, OPTIMIZER, SCHEDULE)

KNOWN: Known = {
    Source: SOURCE.field,
    Transform: TRANSFORM.field,
    Method: METHOD.field,
    Optimizer: OPTIMIZER.field,
    Schedule: SCHEDULE.field,
}
"""What a recipe holds in place of objects of these classes."""


def component_of(value: Any) -> Any:
    """Return the component for a default object; other values as they are."""
    for cls, kind in ((Optimizer, OPTIMIZER), (Schedule, SCHEDULE)):
        if isinstance(value, cls):
            return kind.from_object(value)
    return value


def merged(kind: Kind, value: Any, inherited: Component | None) -> Any:
    """Return what a recipe says about a component, completed by an inherited one of the same name.

    Args:
        kind: the kind of component.
        value: a mapping, which may leave the name out to mean the inherited one; a name; or a live object.
        inherited: the component that holds where nothing else is said; None when it is not known.
    """
    if inherited is None or inherited.live is not None:
        return value
    if value == inherited.name:
        return inherited
    if not isinstance(value, Mapping) or value.get("name", inherited.name) != inherited.name:
        return value
    return {"name": inherited.name, **inherited.keywords, **value}
