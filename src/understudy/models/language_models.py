"""What a module needs to be a language model here: its preprocessing, the proof of its packing, notes on both."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from understudy.errors import ModelError
from understudy.models.configured import construct
from understudy.models.hf_preprocess import positions
from understudy.models.language_head import head_of, vocabulary_of
from understudy.models.language_preprocess import PACKINGS, CausalPreprocess
from understudy.models.packing_proof import prove_packing

DEFAULT_LENGTH = 1024
"""Most tokens of a row where nothing is said; models have positions for many more than fit in memory."""


def language_preprocess(
    name: str, task: str, module: nn.Module, tokenizer: Any, settings: Mapping[str, Any] | None
) -> tuple[CausalPreprocess, tuple[str, ...]]:
    """Return the preprocessing of a language model and notes on it, for the log.

    Args:
        name: what an error calls the model.
        task: what it is for.
        module: the model. Its positions limit `max_length`; what it gives for a tiny example decides on packing.
        tokenizer: its tokenizer.
        settings: `max_length`, `packing` (auto, true or false), `long`, `chat_template`, `dynamic`.

    Raises:
        ModelError: a setting does not fit the model.
        UnknownName: there is no such setting.
    """
    if task != "causal_lm":
        raise ModelError(f"'{name}' cannot be built for the task {task}.")
    embedded = vocabulary_of(module)
    if len(tokenizer) > embedded:
        raise ModelError(
            f"The tokenizer of '{name}' has {len(tokenizer)} entries, the model embeds {embedded}."
        )
    given = {key: value for key, value in (settings or {}).items() if key not in _NOT_SETTINGS}
    if given.pop("type", task) != task:
        raise ModelError(f"'{name}' is for the task {task}; its preprocessing is for another.")
    given["max_length"] = _length(name, module, tokenizer, given.get("max_length"))
    given["attention_mask"] = "attention_mask" in inspect.signature(module.forward).parameters
    wanted = given.pop("packing", "auto")
    plain = construct(CausalPreprocess, "language preprocessing", given, tokenizer)
    if wanted in (False, "padded"):
        return plain, ()
    if wanted not in (True, "auto", *PACKINGS):
        raise ModelError(f"'{name}': 'packing' is {wanted!r}; it is auto, true or false.")
    way, why = prove_packing(module, head_of(module), plain, given["max_length"])
    if way == "padded" and wanted != "auto":
        raise ModelError(f"'{name}' cannot pack its rows (`packing: {wanted}`). {why}")
    preprocess = construct(
        CausalPreprocess, "language preprocessing", {**given, "packing": way}, tokenizer
    )
    return preprocess, (why,)


_NOT_SETTINGS = ("tokenizer", "attention_mask")
"""What a configuration says of a tokenizer and a model, and is not chosen."""


def _length(name: str, module: Any, tokenizer: Any, wanted: Any) -> int:
    """Return the most tokens of a row: what was asked for, else what model and tokenizer are made for, up to 1024."""
    limit = positions(module) if hasattr(module, "config") else None
    if wanted is not None:
        if not isinstance(wanted, int) or isinstance(wanted, bool):
            raise ModelError(f"'{name}': 'max_length' is {wanted!r}; it is a number of tokens.")
        if limit is not None and wanted > limit:
            raise ModelError(
                f"'{name}' has positions for {limit} tokens; 'max_length' is {wanted}."
            )
        return wanted
    own = getattr(tokenizer, "model_max_length", None)
    return min(each for each in (limit, own, DEFAULT_LENGTH) if each)
