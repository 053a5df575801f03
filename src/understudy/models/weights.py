"""Weights from files: safetensors, and PyTorch checkpoints that hold nothing but tensors and plain values."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError, nearest
from understudy.models.optional import first_line
from understudy.models.taps import unwrap

WRAPPERS = ("model", "state_dict", "model_state_dict")
_PARALLEL, _COMPILED = "module.", "_orig_mod."
_HOW_TO_DROP = (
    "If the classifier is to be learnt anew, give `drop_head: true`: everything else is loaded, "
    "the classifier keeps its fresh weights."
)


def load_weights(
    module: nn.Module,
    path: str | Path,
    *,
    strict: bool = True,
    published: bool = False,
    drop_head: bool = False,
) -> str:
    """Copy the weights in a file into a module.

    Args:
        module: the network, freshly built.
        path: a safetensors file, a PyTorch checkpoint, or a folder with a `model.safetensors`. Wrappers such as
            {"model": ...} and prefixes left by DistributedDataParallel and torch.compile are taken off.
        strict: every tensor of the module must be in the file and the other way round.
        published: the module is of the `kd:` family, and the file may be one that RepDistiller or mdistiller published.
        drop_head: leave out a classifier with another number of classes.

    Returns:
        What was loaded, for the log: "resnet20.safetensors (sha256 0123456789ab)".

    Raises:
        ModelError: the file is missing, damaged, holds more than tensors, or does not fit. The module is as before.
    """
    file = _file_at(Path(path))
    state = clean_names(read_state(file), module)
    module = unwrap(module)
    description = f"{file.name} (sha256 {file_hash(file)[:12]})"
    target = module.state_dict()
    differing = [
        name
        for name, value in state.items()
        if name in target and value.shape != target[name].shape
    ]
    heads = _classifiers(module, state, differing)
    if heads:
        theirs, mine = _classes(state, heads[0]), _classes(target, heads[0])
        named = " and ".join(f"'{head}'" for head in heads)
        if not drop_head:
            raise ModelError(
                f"The classifier {named} has {theirs} classes in {file.name}, the model has {mine}. {_HOW_TO_DROP}"
            )
        state = {name: value for name, value in state.items() if not _inside(name, heads)}
        description += f", classifier {named} new ({theirs} -> {mine} classes)"
    elif drop_head:
        raise ModelError(
            f"`drop_head` is set, but {file.name} has no classifier with another number of classes; leave it out."
        )
    elif differing:
        shown = ", ".join(
            f"{name}: {list(state[name].shape)} in the file, {list(target[name].shape)} in the model"
            for name in differing[:5]
        )
        raise ModelError(
            f"{file.name} does not fit {type(module).__name__}: {len(differing)} tensors have another shape ({shown})."
        )
    _check_finite(state, file)
    if published and strict and not drop_head:
        from understudy.models.kd.published import load_published

        load_published(module, state)
        return description
    missing, unexpected = _unmatched(module, state, heads)
    if not set(state) & set(target):
        raise ModelError(_misfit(file, module, missing, unexpected) + " Nothing in it has a place.")
    if strict and (missing or unexpected):
        raise ModelError(_misfit(file, module, missing, unexpected))
    if missing or unexpected:
        description += f", {len(missing)} tensors missing, {len(unexpected)} not used"
    module.load_state_dict(state, strict=False)
    return description


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """Read the tensors in a file, on the CPU, by name, without running any code that it may carry."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(file))
        except (SafetensorError, ValueError) as error:
            raise ModelError(
                f"{file} is damaged or no safetensors file: {first_line(error)}"
            ) from error
    try:
        with torch.serialization.safe_globals(_number_types()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{file} is no checkpoint, or holds pickled Python objects, which could run code when they are read. "
            "Only tensors, numbers, strings and containers of them are read. Save `model.state_dict()` alone, or as "
            "safetensors."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(
            f"{file} is damaged or no PyTorch checkpoint ({type(error).__name__}: {first_line(error)})."
        ) from error
    return _tensors_in(content, file)


def clean_names(state: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """Take off what wrappers put into the names of parameters: `module.` in front, `_orig_mod.` anywhere."""
    own = unwrap(module).state_dict()
    if set(state) <= set(own):
        return dict(state)
    clean = {name.replace(_COMPILED, ""): value for name, value in state.items()}
    while clean and all(name.startswith(_PARALLEL) for name in clean) and not set(clean) & set(own):
        clean = {name.removeprefix(_PARALLEL): value for name, value in clean.items()}
    return clean


def file_hash(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file_at(path: Path) -> Path:
    if path.is_dir():
        inner = path / "model.safetensors"
        if inner.is_file():
            return inner
        raise ModelError(
            f"The folder {path} holds no model.safetensors; name the file with the weights."
        )
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, beside)
        hint = f" Beside it lies {' and '.join(close)}." if close else ""
        raise ModelError(f"There is no file with weights at {path}.{hint}")
    return path


def _number_types() -> list[Any]:
    """Name the NumPy scalars that training scripts leave beside the weights, such as a best accuracy."""
    import numpy as np
    from numpy.dtypes import Float32DType, Float64DType, Int32DType, Int64DType

    # The function lies elsewhere in NumPy 1, but is always what a pickled scalar names.
    scalar = np.float32(0).__reduce__()[0]
    # Checkpoints written under NumPy 1 use the old path of the same function.
    paths = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*paths, np.dtype, Float32DType, Float64DType, Int32DType, Int64DType]


def _tensors_in(content: Any, file: Path) -> dict[str, torch.Tensor]:
    """Find the state dictionary in what a checkpoint holds."""
    found = content
    for _ in WRAPPERS:
        if not isinstance(found, Mapping):
            break
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if (
        isinstance(found, Mapping)
        and found
        and all(isinstance(value, torch.Tensor) for value in found.values())
    ):
        return {str(name): value for name, value in found.items()}
    keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise ModelError(
        f"No weights were found in {file}: it holds {keys[:200] or 'nothing'}. They should be a dictionary of "
        f"tensors, or lie under one of the keys {', '.join(WRAPPERS)}."
    )


def _classifiers(
    module: nn.Module, state: Mapping[str, torch.Tensor], differing: list[str]
) -> list[str]:
    """Return the modules that explain all differing shapes as another number of classes, or none."""
    target = module.state_dict()
    parts = dict(module.named_modules())
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in differing))
    layers = all(
        isinstance(parts.get(owner), nn.Linear | nn.Conv1d | nn.Conv2d) for owner in owners
    )
    # The input side agrees; only the number of outputs differs, for all in the same way.
    same_inside = all(state[name].shape[1:] == target[name].shape[1:] for name in differing)
    counts = {
        (state[name].shape[0], target[name].shape[0]) for name in differing if target[name].dim()
    }
    return owners if layers and same_inside and len(counts) == 1 else []


def _classes(state: Mapping[str, torch.Tensor], head: str) -> int:
    return int(state[f"{head}.weight"].shape[0])


def _inside(name: str, owners: Sequence[str]) -> bool:
    return any(name.startswith(f"{owner}.") for owner in owners)


def _unmatched(
    module: nn.Module, state: Mapping[str, torch.Tensor], dropped: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the names that only the module has, and those that only the file has."""
    target = module.state_dict(keep_vars=True)
    present = {_place(target[name]) for name in state if name in target}
    missing = [
        name
        for name, value in target.items()
        if name not in state
        # A tensor shared by two modules is written once; the counter of old batch norms is not read by a forward pass.
        and _place(value) not in present
        and not name.endswith("num_batches_tracked")
        and not _inside(name, dropped)
    ]
    return missing, [name for name in state if name not in target]


def _place(value: torch.Tensor) -> tuple[Any, ...]:
    """Tell where a tensor lies in memory; empty ones lie nowhere and are told apart by identity."""
    address = value.data_ptr()
    return (value.device, address, value.shape, value.stride()) if address else (id(value),)


def _misfit(file: Path, module: nn.Module, missing: list[str], unexpected: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing in it ({_listed(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} are unknown to the model ({_listed(unexpected)})")
    return f"{file.name} does not fit {type(module).__name__}: {'; '.join(parts)}."


def _listed(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _check_finite(state: Mapping[str, torch.Tensor], file: Path) -> None:
    for name, value in state.items():
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise ModelError(f"The weights in {file} hold NaN, in '{name}'.")
