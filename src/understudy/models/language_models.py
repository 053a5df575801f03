"""What a module needs to be a language model here: its preprocessing, the proof of its packing, notes on both."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from understudy.errors import ModelError
from understudy.models.configured import construct
from understudy.models.hf_preprocess import positions
from understudy.models.language_head import vocabulary_of
from understudy.models.language_masked import MaskedPreprocess
from understudy.models.language_pairs import PairPreprocess
from understudy.models.language_preprocess import PACKINGS, CausalPreprocess
from understudy.models.packing_proof import prove_packing

DEFAULT_LENGTH = 1024
"""Most tokens of a row where nothing is said; models have positions for many more than fit in memory."""


LanguagePreprocess = CausalPreprocess | MaskedPreprocess | PairPreprocess


def language_preprocess(
    name: str, task: str, module: Any, tokenizer: Any, settings: Mapping[str, Any] | None
) -> tuple[LanguagePreprocess, tuple[str, ...]]:
    """Return the preprocessing of a language model and notes on it, for the log.

    Args:
        name: what an error calls the model.
        task: what it is for.
        module: the model. Its positions limit `max_length`; what it gives for a tiny example decides on packing.
        tokenizer: its tokenizer.
        settings: `max_length`, `packing` (auto, true or false), `long`, and what else the task's preprocessing takes.

    Raises:
        ModelError: a setting does not fit the model.
        UnknownName: there is no such setting.
    """
    embedded = vocabulary_of(module)
    if len(tokenizer) > embedded:
        raise ModelError(
            f"The tokenizer of '{name}' has {len(tokenizer)} entries, the model embeds {embedded}."
        )
    given = {key: value for key, value in (settings or {}).items() if key not in _NOT_SETTINGS}
    if given.pop("type", task) != task:
        raise ModelError(f"'{name}' is for the task {task}; its preprocessing is for another.")
    given["max_length"] = _length(name, module, tokenizer, given.get("max_length"))
    taken = inspect.signature(module.forward).parameters
    if task == "causal_lm":
        given["attention_mask"] = "attention_mask" in taken
        return _causal(name, module, tokenizer, given)
    if given.pop("packing", "auto") not in (False, "auto"):
        raise ModelError(f"'{name}': rows are not packed in the task {task}; leave `packing` out.")
    if task == "masked_lm":
        kinds = int(getattr(module.config, "type_vocab_size", 0) or 0)
        given["token_types"] = "token_type_ids" in taken and kinds > 1
        return construct(MaskedPreprocess, "language preprocessing", given, tokenizer), ()
    start = module.config.decoder_start_token_id
    if start is None:
        raise ModelError(
            f"The configuration of '{name}' has no 'decoder_start_token_id', from which a decoder begins."
        )
    given["start_token"] = int(start)
    return construct(PairPreprocess, "language preprocessing", given, tokenizer), ()


def _causal(
    name: str, module: nn.Module, tokenizer: Any, given: dict[str, Any]
) -> tuple[CausalPreprocess, tuple[str, ...]]:
    wanted = given.pop("packing", "auto")
    plain = construct(CausalPreprocess, "language preprocessing", given, tokenizer)
    if wanted in (False, "padded"):
        return plain, ()
    if wanted not in (True, "auto", *PACKINGS):
        raise ModelError(f"'{name}': 'packing' is {wanted!r}; it is auto, true or false.")
    way, why = prove_packing(module, plain, given["max_length"])
    if way == "padded" and wanted != "auto":
        raise ModelError(f"'{name}' cannot pack its rows (`packing: {wanted}`). {why}")
    preprocess = construct(
        CausalPreprocess, "language preprocessing", {**given, "packing": way}, tokenizer
    )
    return preprocess, (why,)


_NOT_SETTINGS = ("tokenizer", "attention_mask", "token_types", "start_token")
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
