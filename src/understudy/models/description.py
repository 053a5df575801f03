"""What a model looks like from outside: its modules with their shapes, its stages, its classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models.heads import Head
from understudy.models.splice import grafts_of, inside_grafts
from understudy.models.taps import first_tensor, unchanged, unwrap

ACTIVATIONS = frozenset({"ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "GELU", "SiLU", "Hardswish"})
"""Types of modules before which a feature has no bend yet."""
IDENTITIES = frozenset({"Identity", "Dropout", "Dropout2d", "DropPath"})
"""Types of modules that give what they take when a model is evaluated."""


@dataclass(frozen=True)
class ModuleRow:
    """One tappable module as a forward pass met it. Shapes leave out the batch dimension."""

    path: str
    type: str
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    parameters: int
    calls: int


@dataclass(frozen=True)
class StageDescription:
    """One stage of a model: where its output can be tapped.

    Attributes:
        tap: module path.
        shape: output shape without the batch: (C, H, W) for maps, (tokens, D) for sequences, (D,) for vectors.
        stride: input height divided by the map's height; None where there is no map.
    """

    tap: str
    shape: tuple[int, ...]
    stride: float | None


@dataclass(frozen=True)
class ModelDescription:
    """A model's modules, its stages in order of depth, and its classifier.

    Attributes:
        modules: every module that ran, in order of definition.
        stages: where features can be tapped, in order of depth.
        classifier: path of the last linear layer; None where none was found.
        pooled_width: what the classifier reads; None where none was found.
        classes: number of logits.
        order: paths of all modules in the order in which they finished; one that is called twice stands there twice.
    """

    modules: tuple[ModuleRow, ...]
    stages: tuple[StageDescription, ...]
    classifier: str | None
    pooled_width: int | None
    classes: int
    order: tuple[str, ...] = ()

    @property
    def main_stages(self) -> tuple[StageDescription, ...]:
        """The deepest stage at each resolution, which leaves a stem out that is followed by a stage of its size.

        Without maps, all stages.
        """
        strides = [stage.stride for stage in self.stages]
        if any(stride is None for stride in strides):
            return self.stages
        return tuple(
            stage
            for number, stage in enumerate(self.stages)
            if stage.stride not in strides[number + 1 :]
        )

    def before_activation(self, tap: str) -> str:
        """Return the tap of what goes into the activation that ends a module, or that reads what the module gives.

        The latter is so in networks of pre-activated blocks, where a normalisation may stand between. Without either it
        is the tap itself.

        Args:
            tap: a module path; `path@input` and `path#2` are returned as they are.
        """
        rows = {row.path: row for row in self.modules}
        if tap not in rows:
            return tap
        inner = {path.rpartition(".")[0] for path in self.order}
        leaves = [number for number, path in enumerate(self.order) if path not in inner]
        last = max(number for number, path in enumerate(self.order) if path == tap)
        inside = [n for n in leaves if f"{self.order[n]}.".startswith(f"{tap}.") and n <= last]
        if inside and rows[self.order[inside[-1]]].type in ACTIVATIONS:
            return self._input_of(inside[-1])
        shape = rows[tap].output_shape
        after = [n for n in leaves if n > last and rows[self.order[n]].type not in IDENTITIES]
        for number in after[:2]:
            row = rows[self.order[number]]
            if row.input_shape != shape or row.output_shape != shape:
                break
            if row.type in ACTIVATIONS:
                return self._input_of(number)
            if "Norm" not in row.type:
                break
        return tap

    def _input_of(self, number: int) -> str:
        """Return the tap of what went into the call at a place in `order`; a later call of the module is another."""
        path = self.order[number]
        call = self.order[:number].count(path)
        return f"{path}@input" if path not in self.order[number + 1 :] else f"{path}@input#{call}"


def describe(
    module: nn.Module, run: Callable[[nn.Module], torch.Tensor], *, input_height: int | None = None
) -> ModelDescription:
    """Describe any model from one forward pass in evaluation mode.

    Args:
        module: the model; left as it was.
        run: calls the model on an example batch and returns its logits, [B, C].
        input_height: height of the input image, from which strides follow.

    Stages are what the model itself names (`tap_stages()`), else the last module at each spatial
    resolution of a network with maps, else the repeated blocks of a network with tokens. A vision transformer, whose
    only map is that of its patches, is a network with tokens.
    """
    module = unwrap(module)
    rows, order, logits = _trace(module, run)
    classifier = _find_classifier(module, order, logits.shape[-1])
    named = getattr(module, "tap_stages", None)
    own = [str(path) for path in named()] if callable(named) else None
    paths = _find_stages(module, rows, order) if own is None else own
    by_path = {row.path: row for row in rows}
    stages = []
    for path in paths:
        if path not in by_path or by_path[path].output_shape is None:
            raise ModelError(
                f"{type(module).__name__} names the stage '{path}', which did not run."
            )
        shape = by_path[path].output_shape
        assert shape is not None
        is_map = len(shape) == 3 and input_height is not None
        stages.append(
            StageDescription(
                path, shape, input_height / shape[1] if is_map and input_height else None
            )
        )
    width = None
    if classifier is not None:
        width = int(dict(module.named_modules())[classifier].in_features)
    return ModelDescription(
        tuple(rows), tuple(stages), classifier, width, int(logits.shape[-1]), tuple(order)
    )


def _trace(
    module: nn.Module, run: Callable[[nn.Module], torch.Tensor]
) -> tuple[list[ModuleRow], list[str], torch.Tensor]:
    """Run once with a hook on every module; return rows in definition order and paths in order of completion.

    Grafts and the parts of heads have rows, for they can be tapped, but are left out of the order, from which the
    model's own stages and its classifier follow.
    """
    added = inside_grafts(module) | _inside_heads(module)
    shapes: dict[str, tuple[Any, Any]] = {}
    calls: dict[str, int] = {}
    order: list[str] = []
    handles = []

    def hook_for(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            taken = first_tensor(args if args else kwargs)
            given = first_tensor(output)
            shapes[path] = (
                None if taken is None else tuple(taken.shape[1:]),
                None if given is None else tuple(given.shape[1:]),
            )
            calls[path] = calls.get(path, 0) + 1
            if path not in added:
                order.append(path)

        return hook

    try:
        for path, part in module.named_modules():
            if path:
                handles.append(part.register_forward_hook(hook_for(path), with_kwargs=True))
        with unchanged(module), torch.no_grad():
            module.eval()
            logits = run(module)
    finally:
        for handle in handles:
            handle.remove()
    rows = [
        ModuleRow(
            path,
            type(part).__name__,
            shapes[path][0],
            shapes[path][1],
            sum(parameter.numel() for parameter in part.parameters()),
            calls[path],
        )
        for path, part in module.named_modules()
        if path in shapes
    ]
    return rows, order, logits


def _inside_heads(module: nn.Module) -> set[str]:
    tops = [path for path, part in module.named_modules() if isinstance(part, Head)]
    return {p for p, _ in module.named_modules() if any(p.startswith(f"{top}.") for top in tops)}


def _find_classifier(module: nn.Module, order: list[str], classes: int) -> str | None:
    modules = dict(module.named_modules())
    for path in reversed(order):
        part = modules[path]
        if isinstance(part, nn.Linear | Head) and part.out_features == classes:
            return path
    return None


def _find_stages(module: nn.Module, rows: list[ModuleRow], order: list[str]) -> list[str]:
    """Return the paths of the stages of a model that does not name them."""
    blocks = _token_stages(module, rows)
    # What has four dimensions inside of a block of tokens is split by heads: no map.
    outside = [path for path in order if not any(path.startswith(f"{b}.") for b in blocks)]
    maps = _map_stages(rows, outside)
    if len(blocks) > 1 and len(maps) <= 1:
        return blocks
    return maps or blocks or _vector_stages(module, order)


def _map_stages(rows: list[ModuleRow], order: list[str]) -> list[str]:
    """Return the last module to finish at each spatial size, in order of depth."""
    output = {row.path: row.output_shape for row in rows}
    last: dict[tuple[int, int], str] = {}
    for path in order:
        shape = output[path]
        if shape is not None and len(shape) == 3 and shape[1] > 1 and shape[2] > 1:
            last[(shape[1], shape[2])] = path
    sizes = sorted(last, key=lambda size: order.index(last[size]))
    return [last[size] for size in sizes]


def _token_stages(module: nn.Module, rows: list[ModuleRow]) -> list[str]:
    """Return the blocks of the longest list of equal modules that give token sequences."""
    output = {row.path: row.output_shape for row in rows}
    best: list[str] = []
    for path, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential):
            continue
        named = {
            f"{path}.{name}" if path else name: child
            for name, child in part.named_children()
            if name not in grafts_of(part)
        }
        children, types = list(named), {type(child) for child in named.values()}
        sequences = all(len(output.get(child) or ()) == 2 for child in children)
        if len(types) == 1 and sequences and len(children) > len(best):
            best = children
    return best


def _vector_stages(module: nn.Module, order: list[str]) -> list[str]:
    """Return the linear layers of a network of vectors but for the last."""
    modules = dict(module.named_modules())
    kinds = nn.Linear | Head
    linear = [path for path in dict.fromkeys(order) if isinstance(modules[path], kinds)]
    return linear[:-1]


def pair_stages(
    student: ModelDescription, teacher: ModelDescription
) -> list[tuple[StageDescription, StageDescription]]:
    """Pair every student stage with the teacher stage it corresponds to.

    Stages with maps pair by stride: of several stages at one stride the deepest with the deepest, the one before with
    the one before; where the teacher has none at that stride, the nearest stride counts. Others pair by relative
    depth: stage i of n with stage round((i + 1) / n * m) of m.
    """
    if not student.stages or not teacher.stages:
        side = "student" if not student.stages else "teacher"
        raise ModelError(f"No stages were found in the {side}; name the taps in the recipe.")
    pairs = []
    both_maps = all(stage.stride for stage in (*student.stages, *teacher.stages))
    for index, stage in enumerate(student.stages):
        if both_maps:
            partners = _at_nearest_stride(stage, teacher.stages)
            deeper = sum(other.stride == stage.stride for other in student.stages[index + 1 :])
            partner = partners[max(0, len(partners) - 1 - deeper)]
        else:
            share = (index + 1) / len(student.stages)
            partner = teacher.stages[max(0, round(share * len(teacher.stages)) - 1)]
        pairs.append((stage, partner))
    return pairs


def _at_nearest_stride(
    stage: StageDescription, others: tuple[StageDescription, ...]
) -> list[StageDescription]:
    distance = [abs(_log2(other.stride) - _log2(stage.stride)) for other in others]
    return [other for other, value in zip(others, distance, strict=True) if value == min(distance)]


def _log2(value: float | None) -> float:
    return 0.0 if value is None else math.log2(value)
