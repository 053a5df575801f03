"""What a module needs to be a language model here: its preprocessing, the proof of its packing, notes on both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from understudy.errors import ModelError
from understudy.models.configured import construct
from understudy.models.hf_preprocess import first_position, positions
from understudy.models.language_head import forward_keywords, vocabulary_of
from understudy.models.language_masked import PACKINGS as MASKED_PACKINGS
from understudy.models.language_masked import MaskedPreprocess
from understudy.models.language_pairs import PairPreprocess
from understudy.models.language_preprocess import PACKINGS as CAUSAL_PACKINGS
from understudy.models.language_preprocess import CausalPreprocess
from understudy.models.language_rows import Packing
from understudy.models.packing_proof import prove_packing
from understudy.models.preprocess import LanguagePreprocess
from understudy.models.tokens import Rows, Tokens, TokenSequence

DEFAULT_LENGTH = 1024
"""Most tokens of a row where nothing is said; models have positions for many more than fit in memory."""


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
    taken = forward_keywords(module)
    if task == "causal_lm":
        given["attention_mask"] = "attention_mask" in taken
        return _causal(name, module, tokenizer, given)
    if task == "masked_lm":
        kinds = int(getattr(module.config, "type_vocab_size", 0) or 0)
        given["token_types"] = "token_type_ids" in taken and kinds > 1
        return _masked(name, module, tokenizer, given)
    if given.pop("packing", "auto") not in (False, "auto"):
        raise ModelError(f"'{name}': rows are not packed in the task {task}; leave `packing` out.")
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
    if not _packs(name, wanted, CAUSAL_PACKINGS):
        return plain, ()
    way, why = _proved(name, wanted, prove_packing(module, plain, given["max_length"]))
    preprocess = construct(
        CausalPreprocess, "language preprocessing", {**given, "packing": way}, tokenizer
    )
    return preprocess, (why,)


def _masked(
    name: str, module: nn.Module, tokenizer: Any, given: dict[str, Any]
) -> tuple[MaskedPreprocess, tuple[str, ...]]:
    wanted = given.pop("packing", "auto")
    given["first_position"] = first_position(module)
    plain = construct(MaskedPreprocess, "language preprocessing", given, tokenizer)
    if not _packs(name, wanted, MASKED_PACKINGS):
        return plain, ()
    device = next(parameter.device for parameter in module.parameters())

    def lay(sequences: list[TokenSequence], rows: Rows, way: Packing) -> Tokens:
        return plain.in_rows(sequences, rows, len(sequences), device, packing=way)

    found = prove_packing(module, plain, given["max_length"], lay=lay)
    way, why = _proved(name, wanted, found)
    preprocess = construct(
        MaskedPreprocess, "language preprocessing", {**given, "packing": way}, tokenizer
    )
    return preprocess, (why,)


def _packs(name: str, wanted: Any, ways: tuple[Packing, ...]) -> bool:
    """Tell whether rows are to be packed where the model can."""
    if wanted not in (False, True, "auto", *ways):
        raise ModelError(f"'{name}': 'packing' is {wanted!r}; it is auto, true or false.")
    return wanted not in (False, "padded")


def _proved(name: str, wanted: Any, found: tuple[Packing, str]) -> tuple[Packing, str]:
    """Refuse what was asked for and cannot be."""
    way, why = found
    if way == "padded" and wanted != "auto":
        raise ModelError(f"'{name}' cannot pack its rows (`packing: {wanted}`). {why}")
    return way, why


_NOT_SETTINGS = ("tokenizer", "attention_mask", "token_types", "start_token", "first_position")
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
