"""The language models of `hf:`, from a configuration or with their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from understudy.errors import ModelError, unknown_name
from understudy.models.build import Request, load_file
from understudy.models.language_models import language_preprocess
from understudy.models.language_tokenizer import language_tokenizer
from understudy.models.lora import Lora, add_adapters
from understudy.models.model import Model
from understudy.models.optional import first_line, quiet_transformers

KEYWORDS = (
    "config", "tokenizer", "dtype", "attn_implementation", "revision", "pad_vocabulary_to", "lora",
)  # fmt: skip
_AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
_TABLES = {
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked_lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}
LANGUAGE_TASKS = tuple(_TABLES)
_DTYPES = ("float32", "bfloat16", "float16")
_SPECIAL = ("bos", "eos", "pad", "cls", "sep", "mask", "unk")
# What a complete configuration carries that belongs to a file, or to another task.
_NOT_ARCHITECTURE = (
    "id2label", "label2id", "num_labels", "transformers_version", "_name_or_path", "architectures", "dtype",
    "problem_type", "model_type",
)  # fmt: skip


def build_language(request: Request) -> Model:
    """Make the language model of a task."""
    for name in request.keywords:
        if name not in KEYWORDS:
            raise unknown_name(f"keyword of '{request.full_name}'", name, KEYWORDS)
    dtype = request.keywords.get("dtype", "float32")
    if dtype not in _DTYPES:
        raise unknown_name("dtype", str(dtype), _DTYPES)
    wanted = request.keywords.get("lora")
    lora = None if wanted is None else Lora.read(wanted)
    with quiet_transformers():
        if _is_type(request):
            module, tokenizer = _from_scratch(request, getattr(torch, dtype))
            weights = load_file(module, request, drop_head=False)
        else:
            module, tokenizer = _pretrained(request, getattr(torch, dtype))
            weights = request.full_name
            if request.weights is not None:
                weights = load_file(module, request, drop_head=False)
        if lora is not None:
            add_adapters(module, lora, request.full_name)
        embedding = module.get_input_embeddings()
        if getattr(embedding, "padding_idx", None) == tokenizer.eos_token_id:
            # Where the end token pads, its embedding would get no gradient; the index has no other use.
            embedding.padding_idx = None
        # A cache of keys and values is for generation, which asks for it; a training pass has no use for one.
        if hasattr(module.config, "use_cache"):
            module.config.use_cache = False
        preprocess, notes = language_preprocess(
            request.full_name, request.task, module, tokenizer, request.preprocess
        )
    return Model(
        module,
        preprocess,
        request.full_name,
        _config(request, module, preprocess, lora),
        weights,
        None,
        {"task": request.task, "notes": notes},
    )


def language_types(task: str) -> list[str]:
    """Return the model types of transformers for a task."""
    from transformers.models.auto import modeling_auto

    return [str(name) for name in getattr(modeling_auto, _TABLES[task])]


def _is_type(request: Request) -> bool:
    """Tell a model type from a folder or hub name: a type comes with `config`, and is not a folder."""
    name = request.name
    if Path(name).is_dir() or "/" in name or "config" not in request.keywords:
        return False
    known = language_types(request.task)
    if name not in known:
        raise unknown_name(f"{request.task} model type of transformers", name, known)
    return True


def _from_scratch(request: Request, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers

    default = transformers.AutoConfig.for_model(request.name)
    given = _architecture(request, default)
    tokenizer = language_tokenizer(request, None)
    given["vocab_size"] = _vocabulary(request, given.get("vocab_size"), len(tokenizer))
    for special in _SPECIAL:
        token = getattr(tokenizer, f"{special}_token_id")
        if hasattr(default, f"{special}_token_id"):
            given.setdefault(f"{special}_token_id", token)
    if request.task == "seq2seq":
        for name, token in _decoder_tokens(default, tokenizer).items():
            given.setdefault(name, token)
    config = transformers.AutoConfig.for_model(request.name, **given)
    auto = getattr(transformers, _AUTO[request.task])
    try:
        module = auto.from_config(config, dtype=dtype, **_attention(request))
    except (ValueError, TypeError, RuntimeError, AttributeError, AssertionError) as error:
        raise ModelError(f"'{request.full_name}' cannot be built: {first_line(error)}") from error
    return module, tokenizer


def _decoder_tokens(default: Any, tokenizer: Any) -> dict[str, int]:
    """Return what a decoder begins and ends with: the token that plays the same part in the default configuration."""
    found = {
        "decoder_start_token_id": tokenizer.pad_token_id
    }  # as T5 has it, where nothing is said
    for name in ("decoder_start_token_id", "forced_eos_token_id"):
        if getattr(default, name, None) == default.eos_token_id:
            found[name] = tokenizer.eos_token_id
    return found


def _architecture(request: Request, default: Any) -> dict[str, Any]:
    """Return the settings that were given for an architecture, checked by name."""
    given: dict[str, Any] = dict(request.keywords["config"] or {})
    if (
        given.get("model_type") == request.name
    ):  # a complete configuration, as `Model.config` keeps it
        return {name: value for name, value in given.items() if name not in _NOT_ARCHITECTURE}
    valid = {*default.to_dict(), *default.attribute_map} - {*_NOT_ARCHITECTURE}
    for name in given:
        if name not in valid:
            raise unknown_name(f"setting of '{request.full_name}'", name, valid)
    return given


def _vocabulary(request: Request, wanted: Any, tokens: int) -> int:
    """Return the rows of a fresh embedding: those of the tokenizer, or more to fill a multiple."""
    if wanted is not None and wanted < tokens:
        raise ModelError(
            f"'{request.full_name}' has vocab_size {wanted}, its tokenizer has {tokens} entries."
        )
    multiple = request.keywords.get("pad_vocabulary_to")
    if multiple is None:
        return int(wanted or tokens)
    if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
        raise ModelError(
            f"'{request.full_name}': 'pad_vocabulary_to' is {multiple!r}; it is a number of rows, such as 64, of "
            "which the embedding gets a multiple."
        )
    return -(-int(wanted or tokens) // multiple) * multiple


def _pretrained(request: Request, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers

    place = request.name
    shared = {"trust_remote_code": False, "revision": request.keywords.get("revision") or "main"}
    if request.keywords.get("pad_vocabulary_to") is not None:
        raise ModelError(
            f"'{request.full_name}' has its embedding already; 'pad_vocabulary_to' is for models from scratch."
        )
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise ModelError(
            f"The folder {place} holds no config.json, so it is no transformers model."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(place, **shared)
        _change(request, config)
        auto = getattr(transformers, _AUTO[request.task])
        module, loaded = auto.from_pretrained(
            place,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            **shared,
            **_attention(request),
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        scratch = (
            f" To build a fresh '{place}', give `config: {{...}}`."
            if place in language_types(request.task)
            else ""
        )
        raise ModelError(
            f"'{request.full_name}' cannot be loaded: {first_line(error)}{scratch}"
        ) from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise ModelError(
            f"'{request.full_name}' lacks weights for {len(missing)} tensors of {type(module).__name__} "
            f"({', '.join(missing[:5])}); it is no model for the task {request.task}."
        )
    return module, language_tokenizer(request, place)


def _change(request: Request, config: Any) -> None:
    changes: Mapping[str, Any] = request.keywords.get("config") or {}
    for name, value in changes.items():
        if not hasattr(config, name):
            raise unknown_name(f"setting of '{request.full_name}'", name, config.to_dict())
        setattr(config, name, value)


def _config(
    request: Request, module: Any, preprocess: Any, lora: Lora | None
) -> dict[str, Any] | None:
    """Describe the model by its complete configuration, which does not depend on where it came from."""
    described = module.config.to_dict()
    architecture = {
        name: value
        for name, value in described.items()
        if name not in _NOT_ARCHITECTURE or name == "model_type"
    }
    kept: dict[str, Any] = {
        name: request.keywords[name]
        for name in ("dtype", "attn_implementation")
        if name in request.keywords
    }
    if lora is not None:
        kept["lora"] = lora.described()
    config = request.rebuilt_by(preprocess, config=architecture, **kept)
    if config is not None:
        # Domains of the data are no part of the model.
        config |= {"name": f"hf:{module.config.model_type}", "classes": 1, "class_names": None}
    return config


def _attention(request: Request) -> dict[str, Any]:
    wanted = request.keywords.get("attn_implementation")
    return {} if wanted is None else {"attn_implementation": wanted}
