"""Exports of a trained model, each reloaded in a fresh process and compared before it counts as one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from understudy.errors import ModelError, unknown_name
from understudy.models.export_copy import copied
from understudy.models.export_formats import write_hf, write_onnx, write_torch_export
from understudy.models.export_language import export_language
from understudy.models.export_verify import Case, compare, compare_tensors, run_fresh
from understudy.models.folder import read_json, replaced_folder, write_json
from understudy.models.model import Model
from understudy.models.outputs import call, logits_of
from understudy.models.preprocess import Kind, TextPreprocess
from understudy.models.saved import DESCRIPTION, TOKENIZER, write_model
from understudy.models.surgery import fold_heads

Format = Literal["safetensors", "hf", "onnx", "torch-export"]
LOADED: dict[str, str] = {
    "safetensors": "",
    "hf": "",
    "onnx": "model.onnx",
    "torch-export": "model.pt2",
}
"""What is loaded, inside the folder: a file, or the folder itself."""

_BATCH = 5


def export(
    model: Model,
    to: Format,
    folder: str | Path,
    *,
    example_raw: Any,
    kind: Kind,
    classes: Sequence[str] | None = None,
    input_shape: Sequence[int] | None = None,
    metadata: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
) -> Path:
    """Export a model, and prove it.

    What is exported takes preprocessed inputs, in batches of any size (and texts of any length), and gives logits
    [B, C] in float32. Preprocessing and class names lie beside it as JSON, for ONNX also in the file's metadata. The
    export is loaded in a fresh Python process, by onnxruntime, torch or transformers alone (only "safetensors" is
    loaded by understudy, without the rooms that train), run at batches of 5 and of 1, and compared with the model.
    Language models are exported by `export_language`.

    Args:
        model: the model; it is not changed.
        to: "safetensors", "hf" (for models of transformers), "onnx" or "torch-export".
        folder: where to; an earlier export or model there is replaced once this one has passed.
        example_raw: some raw samples, as a source gives them: images [N, C, H, W], texts, or tensors [N, ...].
        kind: what raw samples are.
        classes: class names in logit order; by default those that the model carries.
        input_shape: shape of one raw sample, None for texts.
        metadata: more JSON values to keep.
        tolerance: largest difference of a logit, as a part of the largest logit of the batch.

    Returns:
        The file, or for "safetensors" and "hf" the folder, to load.

    Raises:
        ModelError: it cannot be exported, or what was exported fails or answers differently. Nothing new is left then.
    """
    if to not in LOADED:
        raise unknown_name("export format", to, LOADED)
    if model.extra.get("black_box"):
        raise ModelError(f"'{model.name}' is an exported program already.")
    if "task" in model.extra:
        return export_language(
            model, to, folder, example_raw=example_raw, metadata=metadata, tolerance=tolerance
        )
    network = copied(model)
    reference = copy.deepcopy(network).float()
    cases = _cases(model, example_raw)
    expected = [_answer(reference, case) for case in cases]
    # Only now, so that folding is proved with the rest.
    fold_heads(network)
    fold_heads(reference)
    count = expected[0].shape[1]
    names = list(classes or model.classes or ()) or None
    if names is not None and len(names) != count:
        raise ModelError(
            f"'{model.name}' gives {count} logits; there are {len(names)} class names."
        )
    description = {
        "format": "understudy-export",
        "version": 1,
        "to": to,
        "name": model.name,
        "kind": kind,
        "class_count": count,
        "classes": names,
        "input_shape": None if input_shape is None else list(input_shape),
        "preprocess": model.preprocess.config(),
        "inputs": _described_inputs(cases[0]),
        "output": {"name": "logits", "shape": ["batch", count], "type": "float32"},
        "metadata": dict(metadata or {}),
    }
    longest = getattr(model.preprocess, "max_length", None)
    with replaced_folder(folder) as fresh:
        place = fresh / LOADED[to]
        file = fresh / ("understudy.json" if to == "hf" else DESCRIPTION)
        if to == "onnx":
            write_onnx(reference, cases[0], place, description, longest)
        elif to == "torch-export":
            write_torch_export(reference, cases[0], place, longest)
        elif to == "hf":
            write_hf(model, network, fresh, names, input_shape)
        else:
            same = Model(network, model.preprocess, model.name, model.config, model.weights)
            write_model(
                same,
                fresh,
                classes=names or count,
                input_shape=input_shape,
                kind=kind,
                metadata=metadata,
            )
            description = read_json(file)
        if to in ("onnx", "torch-export") and isinstance(model.preprocess, TextPreprocess):
            model.preprocess.tokenizer.save_pretrained(str(fresh / TOKENIZER))
        if to == "safetensors" and model.config is None:
            compare_tensors(place, network)
            description["verified"] = {"tensors": "bit for bit"}
        else:
            answers = run_fresh(to, place, cases)
            worst = compare(answers, expected, tolerance, f"The {to} export of '{model.name}'")
            description["verified"] = {
                "batches": [len(answer) for answer in answers],
                "largest_difference": worst,
                "tolerance": tolerance,
            }
        write_json(file, description)
    return Path(folder) / LOADED[to]


def _cases(model: Model, example_raw: Any) -> list[Case]:
    """Return the inputs to compare on: a batch of 5, and one of 1, for texts with another length."""
    count = len(example_raw)
    if count == 0:
        raise ModelError("An export needs at least one example to compare on.")
    chosen = [index % count for index in range(_BATCH)]
    if isinstance(example_raw, torch.Tensor):
        raw: Any = example_raw.detach().cpu()[chosen]
    else:
        raw = [example_raw[index] for index in chosen]
    encoded = model.preprocess(raw, torch.device("cpu"))
    if not isinstance(encoded, Mapping):
        batch = encoded.contiguous()
        name = "images" if batch.dim() == 4 else "inputs"
        return [Case({name: batch}), Case({name: batch[-1:].clone()})]
    tensors = {name: tensor.contiguous() for name, tensor in encoded.items()}
    length = max(2, next(iter(tensors.values())).shape[1] // 2)
    shorter = {name: tensor[:1, :length].contiguous() for name, tensor in tensors.items()}
    return [Case(tensors, list(raw)), Case(shorter)]


def _answer(network: nn.Module, case: Case) -> torch.Tensor:
    with torch.no_grad():
        raw = call(network, case.tensors if case.single is None else case.single)
    logits = logits_of(raw)
    if logits.dim() != 2:
        raise ModelError(f"A classifier gives logits [B, C]; this one gives {tuple(logits.shape)}.")
    return logits.float()


def _described_inputs(case: Case) -> list[dict[str, Any]]:
    free = ["batch", "length"] if case.single is None else ["batch"]
    return [
        {
            "name": name,
            "shape": [*free, *tensor.shape[len(free) :]],
            "type": str(tensor.dtype).removeprefix("torch."),
        }
        for name, tensor in case.tensors.items()
    ]
