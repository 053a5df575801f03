"""What `Wiring.graft` and `Wiring.head` do: put modules into the student that stay there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models.grafts import Graft
from understudy.models.heads import Head
from understudy.models.optional import first_line
from understudy.models.outputs import call, logits_of
from understudy.models.rebuildable import Rebuildable
from understudy.models.splice import WHAT_TORCH_RAISES, check_spliced, grafts_of, output_at, splice
from understudy.models.surgery import put, replace_classifier
from understudy.models.taps import find_module, unchanged

if TYPE_CHECKING:
    from understudy.methods.wiring import Side, TapShape

P = TypeVar("P", bound=Rebuildable)
G = TypeVar("G", bound=Graft)
H = TypeVar("H", bound=Head)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Placed(Generic[P]):
    """A graft or a head that sits in the student.

    It is no module itself, so that a method may keep it without owning what it holds: that is the student's.

    Attributes:
        module: the live module.
        path: where it sits in the student, such as "layer3.0.graft" or "fc".
        new: whether it was made now; False when an earlier stage, or the folder that the student came from, brought it.
        student: the side that it sits in.
    """

    module: P
    path: str
    new: bool
    student: Side

    def tap(self, name: str = "") -> TapShape:
        """Ask for a tap inside of it: a submodule's name, "" for its own output, "@input" for what goes into it."""
        joined = self.path if not name else f"{self.path}{'' if name[0] in '@#' else '.'}{name}"
        return self.student.tap(joined)


def graft_student(
    student: Side, path: str, graft: G | Callable[[Shape], G], claimed: set[nn.Module]
) -> Placed[G]:
    """Do what `Wiring.graft` says; `claimed` holds what this stage's methods have asked for already."""
    root = student.module

    def run(module: nn.Module) -> object:
        return call(module, student.inputs)

    shape = tuple(output_at(root, path, run).shape[1:])
    present = {
        f"{path}.{name}": child
        for name, child in grafts_of(find_module(root, path)).items()
        if child not in claimed
    }
    if present:
        shape = student.shape_at(f"{next(iter(present))}@input")
    made: Any = graft if isinstance(graft, Graft) else graft(shape)
    if not isinstance(made, Graft):
        raise ModelError(
            f"What is grafted is a Graft of understudy.models.grafts, not a {type(made).__name__}: a saved student has "
            "to be rebuilt from names and settings."
        )
    wanted = made.identity
    for where, child in present.items():
        found = child.identity
        if found == wanted:
            claimed.add(child)
            return Placed(child, where, False, student)  # type: ignore[arg-type]
        if found["name"] == wanted["name"]:
            raise ModelError(
                f"'{path}' has a graft '{wanted['name']}' with {found['keywords']} from before; this stage asks for "
                f"one with {wanted['keywords']}. Give both the same settings."
            )
    name = splice(root, path, made)
    check_spliced(root, path, name, run)
    claimed.add(made)
    student.refresh(f"the graft at '{path}'")
    return Placed(made, f"{path}.{name}", True, student)  # type: ignore[arg-type]


def replace_head(
    student: Side, factory: Callable[[int, int], H], claimed: set[nn.Module]
) -> Placed[H]:
    """Do what `Wiring.head` says; `claimed` as in `graft_student`."""
    root, path = student.module, student.description.classifier
    if path is None:
        raise ModelError(
            f"The student ({type(root).__name__}) has no linear classifier that a head could replace: none of its "
            f"linear layers gives {student.description.classes} values."
        )
    present = find_module(root, path)
    assert isinstance(present, nn.Linear | Head)
    if present in claimed:
        raise ModelError(
            f"Two methods of a stage replace the student's classifier '{path}'; it can have one head."
        )
    if isinstance(present, nn.Linear):
        _check_classifier(student, path, present)
    sizes = (int(present.in_features), int(present.out_features))
    made: Any = factory(*sizes)
    if not isinstance(made, Head):
        raise ModelError(
            f"A head is a Head of understudy.models.heads, not a {type(made).__name__}: a saved student has to be "
            "rebuilt from names and settings."
        )
    if isinstance(present, Head):
        found, wanted = present.identity, made.identity
        if found != wanted:
            raise ModelError(
                f"The student's classifier '{path}' is the head {found} from before; this stage asks for {wanted}. "
                "Give both the same settings."
            )
        claimed.add(present)
        return Placed(present, path, False, student)  # type: ignore[arg-type]
    if (made.in_features, made.out_features) != sizes:
        raise ModelError(
            f"The student's classifier '{path}' maps {sizes[0]} features to {sizes[1]} classes; the head "
            f"{type(made).__name__} maps {made.in_features} to {made.out_features}."
        )
    _ = made.identity  # raises for what a saved student could not name
    replace_classifier(root, path, made)
    try:
        _logits(student)
    except WHAT_TORCH_RAISES as error:
        put(root, path, present)
        raise ModelError(
            f"The student cannot run with {type(made).__name__} for its classifier '{path}': {first_line(error)}. Its "
            "code may read the classifier's weights itself."
        ) from error
    claimed.add(made)
    student.refresh(f"the head at '{path}'")
    return Placed(made, path, True, student)  # type: ignore[arg-type]


def _check_classifier(student: Side, path: str, linear: nn.Linear) -> None:
    """Refuse a classifier that a head cannot stand in for."""
    root = student.module
    given = output_at(root, path, lambda module: call(module, student.inputs))
    if grafts_of(linear):
        raise ModelError(
            f"The student's classifier '{path}' has a graft, which a head in its place would lose; choose one of them."
        )
    holders = [
        name
        for name, parameter in root.named_parameters(remove_duplicate=False)
        if parameter is linear.weight
    ]
    if len(holders) > 1:
        raise ModelError(
            f"The student's classifier '{path}' shares its weight ({' and '.join(map(repr, holders))}); a head in its "
            "place would cut that tie."
        )
    logits = _logits(student)
    if logits.shape != given.shape or not torch.equal(logits.float(), given.float()):
        raise ModelError(
            f"The student's logits are not what its last linear layer '{path}' gives: its code goes on after it, so a "
            "head in its place would not give the logits."
        )


def _logits(student: Side) -> torch.Tensor:
    with unchanged(student.module), torch.no_grad():
        student.module.eval()
        return logits_of(call(student.module, student.inputs))
