"""A model in a folder: `model.safetensors`, `config.json`, and the tokenizer where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy import seeding
from understudy.errors import ModelError
from understudy.models.build import build
from understudy.models.folder import read_json, replaced_folder, write_json
from understudy.models.model import Model, fingerprint
from understudy.models.preprocess import Kind, from_config
from understudy.models.surgery import folded, operate, surgery_of
from understudy.models.taps import unwrap
from understudy.models.weights import file_hash, load_weights

FORMAT = "understudy-model"
VERSION = 1
WEIGHTS, DESCRIPTION, TOKENIZER = "model.safetensors", "config.json", "tokenizer"


def save(
    model: Model,
    folder: str | Path,
    *,
    classes: int | Sequence[str],
    input_shape: Sequence[int] | None,
    kind: Kind,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model into a folder, whole or not at all.

    Args:
        model: the model; it is not changed. Wrappers around its module are taken off.
        folder: where to; a model of understudy that is there already is replaced.
        classes: class names in logit order, or their number.
        input_shape: shape of one raw sample, None for texts.
        kind: what raw samples are.
        metadata: more JSON values to keep, such as the run that made it.

    Returns:
        The folder.

    Raises:
        ModelError: the folder is taken or cannot be written, or the model is an exported program, a file already.
    """
    if model.extra.get("black_box"):
        raise ModelError(
            f"'{model.name}' is an exported program; copy its file instead of saving it again."
        )
    with replaced_folder(folder) as fresh:
        write_model(
            model, fresh, classes=classes, input_shape=input_shape, kind=kind, metadata=metadata
        )
    return Path(folder)


def write_model(
    model: Model,
    folder: Path,
    *,
    classes: int | Sequence[str],
    input_shape: Sequence[int] | None,
    kind: Kind,
    metadata: Mapping[str, Any] | None,
) -> None:
    """Write the files of `save` into an existing folder. Heads that fold into a linear layer are written as one."""
    with folded(model.module):
        _write_folded(
            model, folder, classes=classes, input_shape=input_shape, kind=kind, metadata=metadata
        )


def _write_folded(
    model: Model,
    folder: Path,
    *,
    classes: int | Sequence[str],
    input_shape: Sequence[int] | None,
    kind: Kind,
    metadata: Mapping[str, Any] | None,
) -> None:
    from safetensors.torch import save_model

    module = unwrap(model.module)
    save_model(module, str(folder / WEIGHTS), metadata={"format": "pt"})
    named = None if isinstance(classes, int) else list(classes)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "name": model.name,
        "kind": kind,
        "classes": classes if isinstance(classes, int) else len(classes),
        "class_names": named if named is not None else _listed(model.classes),
        "input_shape": _listed(input_shape),
        "preprocess": model.preprocess.config(),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "fingerprint": fingerprint(module),
        "sha256": file_hash(folder / WEIGHTS),
        "initial_weights": model.weights,
        "build": model.config,
        "surgery": surgery_of(module),
        "metadata": dict(metadata or {}),
    }
    if "task" in model.extra:
        description["task"] = model.extra["task"]
    tokenizer = getattr(model.preprocess, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder / TOKENIZER))
    write_json(folder / DESCRIPTION, description)


def read_description(folder: str | Path) -> dict[str, Any]:
    """Return what `config.json` in a model's folder says.

    Raises:
        ModelError: there is none, or it is of another format.
    """
    path = Path(folder)
    if not (path / DESCRIPTION).is_file():
        found = "holds no" if path.is_dir() else "does not exist, so there is no"
        raise ModelError(f"The folder {path} {found} {DESCRIPTION} of a model.")
    description = read_json(path / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise ModelError(
            f"{path / DESCRIPTION} was not written by understudy for a saved model"
            + (f" ('{description['format']}')." if "format" in description else ".")
        )
    if description.get("version") != VERSION:
        raise ModelError(
            f"{path / DESCRIPTION} has version {description.get('version')}; this understudy reads version {VERSION}."
        )
    return description


def load(folder: str | Path, *, module: nn.Module | None = None) -> Model:
    """Load a saved model. The random state of torch is left alone.

    Args:
        folder: what `save` wrote.
        module: the network to load into, for a model that was saved from a live object and cannot be built by name.
            Grafts and heads that were saved with it are put into it.

    Returns:
        The model, its module on the CPU (or where `module` is).

    Raises:
        ModelError: files are missing, damaged or do not fit.
    """
    path = Path(folder)
    description = read_description(path)
    weights = path / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"The folder {path} holds no {WEIGHTS}.")
    if file_hash(weights) != description["sha256"]:
        raise ModelError(f"{weights} is damaged: its checksum is not the one in {DESCRIPTION}.")
    config = description["build"]
    tokenizer = str(path / TOKENIZER) if (path / TOKENIZER).is_dir() else None
    if module is not None:
        network = unwrap(module)
        preprocess: Any = from_config(description["preprocess"], tokenizer=tokenizer)
    elif config is None:
        raise ModelError(
            f"'{description['name']}' in {path} was saved from a Python object, not from a name; "
            "pass the network itself as `module`."
        )
    else:
        network, preprocess = _rebuilt(description, tokenizer)
    operate(network, description.get("surgery", []))
    load_weights(network, weights)
    names = description["class_names"]
    return Model(
        network,
        preprocess,
        description["name"],
        config,
        f"{path.name}/{WEIGHTS} (sha256 {description['sha256'][:12]})",
        None if names is None else tuple(names),
        {"task": description["task"]} if "task" in description else {},
    )


def _rebuilt(description: dict[str, Any], tokenizer: str | None) -> tuple[nn.Module, Any]:
    config = dict(description["build"])
    settings = {
        key: value for key, value in description["preprocess"].items() if key != "tokenizer"
    }
    if tokenizer is not None:
        settings["tokenizer"] = tokenizer
    config["preprocess"] = settings
    # The fresh weights are overwritten; drawing them must not shift what the caller draws next.
    with seeding.isolated(0, "saved"), torch.device("cpu"):
        model = build(**config)
    if model.preprocess.config() != description["preprocess"]:
        raise ModelError(
            f"'{description['name']}' was saved with the preprocessing {description['preprocess']}, "
            f"it is rebuilt with {model.preprocess.config()}."
        )
    return model.module, model.preprocess


def _listed(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)
