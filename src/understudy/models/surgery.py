"""What was done to a model beyond its own code: grafts and heads, listed, done again, undone, folded.

The list is read off the model itself, so it is right after copying, averaging and loading. An entry is one of

    {"kind": "graft", "path": "layer3.0", "child": "graft", "name": "templates", "keywords": {...}}
    {"kind": "head", "path": "fc", "name": "marginal", "keywords": {...}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from understudy import seeding
from understudy.errors import ModelError
from understudy.models.grafts.graft import Graft, grafts
from understudy.models.heads import Head, heads
from understudy.models.rebuildable import Rebuildable, remake
from understudy.models.splice import grafts_of, remove_hook, settle, splice
from understudy.models.taps import find_module, unwrap

Entry = dict[str, Any]


def surgery_of(model: nn.Module) -> list[Entry]:
    """Return what was done to a model, in an order in which it can be done again."""
    entries: list[Entry] = []
    for path, part in unwrap(model).named_modules():
        if isinstance(part, Head):
            entries.append({"kind": "head", "path": path, **part.identity})
        for child, graft in grafts_of(part).items():
            entries.append({"kind": "graft", "path": path, "child": child, **graft.identity})
    return entries


def operate(model: nn.Module, entries: Sequence[Mapping[str, Any]]) -> None:
    """Do to a model what the entries say, unless it was done already. The random state of torch is left alone.

    Args:
        model: the model; changed.
        entries: what `surgery_of` returned. New parameters have some initial values, to be overwritten.

    Raises:
        UnknownName: a path, name or keyword that does not exist.
        ModelError: something else sits in the place.
    """
    root = unwrap(model)
    if not isinstance(entries, list | tuple):
        raise ModelError(f"{entries!r} is no list of grafts and heads.")
    with seeding.isolated(0, "surgery"):
        for entry in entries:
            _check(entry)
            path, name, keywords = entry["path"], entry["name"], entry["keywords"]
            place = find_module(root, path)
            if entry["kind"] == "head":
                present: nn.Module | None = place if isinstance(place, Head) else None
            else:
                present = grafts_of(place).get(entry["child"])
            if present is not None:
                _check_same(present, entry)
            elif entry["kind"] == "head":
                replace_classifier(root, path, remake(heads, Head, name, keywords))
            else:
                splice(root, path, remake(grafts, Graft, name, keywords), name=entry["child"])


def replace_classifier(model: nn.Module, path: str, head: Head) -> None:
    """Put a head in the place of the module at `path`."""
    root = unwrap(model)
    old = find_module(root, path)
    settle(head, root)
    head.train(old.training)
    put(root, path, head)


def fold_heads(model: nn.Module) -> None:
    """Put one linear layer in the place of each head that folds into one."""
    root = unwrap(model)
    for path, part in list(root.named_modules()):
        if isinstance(part, Head):
            linear = part.fold()
            if linear is not None:
                linear.train(part.training)
                put(root, path, linear)


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Fold the heads of a model for the block."""
    with restored(model):
        fold_heads(model)
        yield


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Undo at the end of the block whatever surgery was done in it."""
    root = unwrap(model)
    before = [(part, dict(part._modules), grafts_of(part)) for part in root.modules()]
    try:
        yield
    finally:
        for part, children, grafted in before:
            for name, graft in grafts_of(part).items():
                if name not in grafted:
                    graft.spliced = False
            if dict(part._modules) != children:
                part._modules.clear()
                part._modules.update(children)
            if not grafted:
                remove_hook(part)


def _check(entry: Any) -> None:
    kind = entry.get("kind") if isinstance(entry, Mapping) else None
    wanted = {
        "graft": {"kind", "path", "child", "name", "keywords"},
        "head": {"kind", "path", "name", "keywords"},
    }
    if (
        kind not in wanted
        or set(entry) != wanted[kind]
        or not isinstance(entry["keywords"], Mapping)
    ):
        raise ModelError(f"{entry!r} describes neither a graft nor a head.")


def _check_same(present: nn.Module, entry: Mapping[str, Any]) -> None:
    assert isinstance(present, Rebuildable)
    wanted = {key: entry[key] for key in ("name", "keywords")}
    if present.identity != wanted:
        raise ModelError(f"At '{entry['path']}' sits {present.identity}, where {wanted} belongs.")


def put(root: nn.Module, path: str, part: nn.Module) -> None:
    """Put `part` in the place of the module at `path`."""
    around, _, name = path.rpartition(".")
    (root.get_submodule(around) if around else root)._modules[name] = part
