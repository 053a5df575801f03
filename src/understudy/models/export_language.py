"""Exports of language models: a folder of transformers, or one of understudy's, each compared in a fresh process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from understudy.errors import ModelError
from understudy.models.export_copy import copied
from understudy.models.export_verify import Case, compare, compare_tensors, run_fresh
from understudy.models.folder import read_json, replaced_folder, write_json
from understudy.models.lora import has_adapters, merge_adapters
from understudy.models.model import Model
from understudy.models.optional import quiet_transformers
from understudy.models.outputs import call, logits_of
from understudy.models.preprocess import from_config
from understudy.models.saved import DESCRIPTION, write_model
from understudy.models.surgery import surgery_of
from understudy.models.tokenizer import language_fingerprint, load_tokenizer

_FORMATS = ("safetensors", "hf")
_EXAMPLES = 5


def export_language(
    model: Model,
    to: str,
    folder: str | Path,
    *,
    example_raw: Any,
    metadata: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
) -> Path:
    """Export a language model, and prove it: a fresh process loads it and gives the same logits.

    Args:
        model: the model; it is not changed.
        to: "hf", a folder with tokenizer and generation settings that transformers loads, in which adapters are merged
            into the weights; or "safetensors", a folder of understudy, in which they are kept.
        folder: where to; an earlier export or model there is replaced once this one has passed.
        example_raw: some documents, strings or pairs.
        metadata: more JSON values to keep.
        tolerance: largest difference of a logit, as a part of the largest one.

    Returns:
        The folder.

    Raises:
        ModelError: it cannot be exported, or answers differently. Nothing new is left then.
    """
    task = str(model.extra["task"])
    if to not in _FORMATS:
        raise ModelError(
            f"A language model is exported as hf or safetensors, not as {to}: a program of fixed inputs cannot keep "
            "what it has read, as generation needs. Tools that convert to other formats read the hf folder."
        )
    network: Any = copied(model)
    reference = copy.deepcopy(network).float()
    cases = _cases(model, task, example_raw)
    expected = [_answer(reference, case) for case in cases]
    description = {
        "format": "understudy-export",
        "version": 1,
        "to": to,
        "name": model.name,
        "kind": "text",
        "task": task,
        "preprocess": model.preprocess.config(),
        "metadata": dict(metadata or {}),
    }
    with replaced_folder(folder) as fresh:
        if to == "hf":
            file = fresh / "understudy.json"
            description["merged"] = has_adapters(network)
            _write_hf(model, network, fresh)
        else:
            file = fresh / DESCRIPTION
            write_model(
                Model(
                    network, model.preprocess, model.name, model.config, model.weights,
                    extra={"task": task},
                ),
                fresh, classes=1, input_shape=None, kind="text", metadata=metadata,
            )  # fmt: skip
            description = read_json(file)
        if to == "safetensors" and model.config is None:
            compare_tensors(fresh, network)
            description["verified"] = {"tensors": "bit for bit"}
        else:
            answers = run_fresh(to, fresh, cases)
            worst = compare(answers, expected, tolerance, f"The {to} export of '{model.name}'")
            description["verified"] = {
                "batches": [len(answer) for answer in answers],
                "largest_difference": worst,
                "tolerance": tolerance,
            }
        write_json(file, description)
    return Path(folder)


def _write_hf(model: Model, network: Any, folder: Path) -> None:
    if not hasattr(network, "save_pretrained") or not hasattr(network, "config"):
        raise ModelError(
            f"'{model.name}' is no model of transformers, so it has no 'hf' export; choose safetensors."
        )
    surgery = surgery_of(network)
    if surgery:
        places = ", ".join(f"a {entry['kind']} at '{entry['path']}'" for entry in surgery)
        raise ModelError(
            f"'{model.name}' holds {places}, which transformers cannot build, so it has no 'hf' export; "
            "choose safetensors."
        )
    if hasattr(network, "get_base_model"):  # in the wrapper of an adapter that the caller made
        network = network.get_base_model()
    merge_adapters(network)
    tokenizer: Any = getattr(model.preprocess, "tokenizer", None)
    # Generation keeps what it has read; only training has no use for that.
    if hasattr(network.config, "use_cache"):
        network.config.use_cache = True
    settings = getattr(network, "generation_config", None)
    if settings is not None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(settings, name) is None:
                setattr(settings, name, getattr(tokenizer, name))
        if settings.pad_token_id is None:
            settings.pad_token_id = tokenizer.eos_token_id
    with quiet_transformers():
        network.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        again = load_tokenizer(folder)
    if language_fingerprint(again, True) != language_fingerprint(tokenizer, True):
        raise ModelError(f"The tokenizer of '{model.name}' is another one once it is saved.")


def _cases(model: Model, task: str, example_raw: Any) -> list[Case]:
    """Return rows of several documents and of one, without packing, as anybody would give them."""
    documents = list(example_raw)[:_EXAMPLES]
    if not documents:
        raise ModelError("An export needs at least one example to compare on.")
    if task == "seq2seq" and isinstance(documents[0], str):
        documents = [(text, text) for text in documents]
    config = model.preprocess.config()
    if "packing" in config:
        config["packing"] = "padded"
    plain: Any = from_config(config, tokenizer=getattr(model.preprocess, "tokenizer", None))
    found = []
    for chosen in (documents, documents[-1:]):
        tokens = plain(chosen, torch.device("cpu"))
        found.append(Case({name: tensor.contiguous() for name, tensor in tokens.items()}))
    return found


def _answer(network: Any, case: Case) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(call(network, case.tensors)).float()
