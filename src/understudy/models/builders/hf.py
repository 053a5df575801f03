"""`hf:` models of Hugging Face transformers: classifiers of texts and images here, language models beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from understudy.errors import ModelError, unknown_name
from understudy.models.build import Request, builders, load_file
from understudy.models.builders._language import build_language
from understudy.models.hf_preprocess import image_preprocess, text_preprocess
from understudy.models.model import Model
from understudy.models.optional import first_line, quiet_transformers, require
from understudy.models.preprocess import AnyPreprocess
from understudy.models.tokenizer import flat_texts, load_tokenizer, train_tokenizer

_KEYWORDS = ("config", "tokenizer", "drop_head", "dtype", "attn_implementation", "revision")
_DTYPES = ("float32", "bfloat16", "float16")
# What a complete configuration carries that belongs to the data, or to a file.
_NOT_ARCHITECTURE = (
    "id2label", "label2id", "num_labels", "transformers_version", "_name_or_path", "architectures", "dtype",
    "problem_type",
)  # fmt: skip
_SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")


@builders.register("hf")
class HuggingFaceBuilder:
    """`hf:FOLDER` or `hf:HUB_ID` with its weights, or `hf:MODEL_TYPE` with `config: {...}` from scratch.

    Keywords: `config` (from scratch: the architecture; else changes to it), `tokenizer` (folder, hub name, object, or
    {train: {size: 8000, kind: wordpiece}} to train one on the data), `drop_head`, `dtype` (of the parameters, float32),
    `attn_implementation`, `revision`. Language models take further ones, and no `drop_head`.
    """

    language = True

    def names(self) -> list[str]:
        """Return the model types that can be built from scratch."""
        return sorted({*_model_types("text"), *_model_types("image")})

    def build(self, request: Request) -> Model:
        """Make the model for the kind of the data."""
        require("transformers", "text")
        if request.task != "classification":
            return build_language(request)
        for name in request.keywords:
            if name not in _KEYWORDS:
                raise unknown_name(f"keyword of '{request.full_name}'", name, _KEYWORDS)
        if request.kind not in ("text", "image"):
            raise ModelError(
                f"'{request.full_name}' takes texts or images; the data are {request.kind}s."
            )
        if request.kind == "image":
            request.image_channels()
        dtype = request.keywords.get("dtype", "float32")
        if dtype not in _DTYPES:
            raise unknown_name("dtype", str(dtype), _DTYPES)
        from_scratch = _is_type(request)
        with quiet_transformers():
            if from_scratch:
                model = _from_scratch(request, getattr(torch, dtype))
            else:
                model = _pretrained(request, getattr(torch, dtype))
        return model


def _is_type(request: Request) -> bool:
    """Tell a model type from a folder or hub name: a type comes with `config`, and is not a folder."""
    if Path(request.name).is_dir() or "/" in request.name or "config" not in request.keywords:
        return False
    known = _model_types(request.kind)
    if request.name not in known:
        raise unknown_name(f"{request.kind} model type of transformers", request.name, known)
    return True


def _model_types(kind: str) -> list[str]:
    require("transformers", "text")
    from transformers.models.auto import modeling_auto

    tables: dict[str, Any] = {
        "text": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    return [str(name) for name in tables[kind]]


def _auto_class(kind: str) -> Any:
    import transformers

    if kind == "text":
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForImageClassification


def _from_scratch(request: Request, dtype: torch.dtype) -> Model:
    from transformers import AutoConfig

    given = dict(request.keywords["config"] or {})
    complete = given.get("model_type") == request.name
    default = AutoConfig.for_model(request.name)
    if complete:
        given = {name: value for name, value in given.items() if name not in _NOT_ARCHITECTURE}
        given.pop("model_type")
    else:
        valid = {*default.to_dict(), *default.attribute_map} - {*_NOT_ARCHITECTURE, "model_type"}
        for name in given:
            if name in ("num_labels", "id2label", "label2id"):
                raise ModelError(
                    f"'{request.full_name}': leave '{name}' out; classes come from the data."
                )
            if name not in valid:
                raise unknown_name(f"setting of '{request.full_name}'", name, valid)
    tokenizer = None
    if request.kind == "text":
        tokenizer = _tokenizer(request, None)
        if "vocab_size" in given and given["vocab_size"] < len(tokenizer):
            raise ModelError(
                f"'{request.full_name}' has vocab_size {given['vocab_size']}, "
                f"its tokenizer has {len(tokenizer)} entries."
            )
        given.setdefault("vocab_size", len(tokenizer))
        for special in _SPECIAL:
            if hasattr(default, f"{special}_token_id"):
                given.setdefault(f"{special}_token_id", getattr(tokenizer, f"{special}_token_id"))
    elif hasattr(default, "num_channels"):
        given.setdefault("num_channels", request.image_channels())
    config = AutoConfig.for_model(request.name, num_labels=request.classes, **given)
    _name_classes(config, request.class_names)
    try:
        module = _auto_class(request.kind).from_config(config, dtype=dtype, **_attention(request))
    except (ValueError, TypeError, RuntimeError, AttributeError, AssertionError) as error:
        raise ModelError(f"'{request.full_name}' cannot be built: {first_line(error)}") from error
    _check_tokenizer(request, module, tokenizer)
    drop_head = bool(request.keywords.get("drop_head", False))
    weights = load_file(module, request, drop_head)
    preprocess = _preprocess(request, module, tokenizer, None)
    return _finished(request, module, preprocess, weights, request.class_names)


def _pretrained(request: Request, dtype: torch.dtype) -> Model:
    from transformers import AutoConfig

    place = request.name
    shared = {"trust_remote_code": False, "revision": request.keywords.get("revision") or "main"}
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise ModelError(
            f"The folder {place} holds no config.json, so it is no transformers model."
        )
    try:
        config = AutoConfig.from_pretrained(place, **shared)
    except (OSError, ValueError, KeyError) as error:
        scratch = (
            f" To build a fresh '{place}', give `config: {{...}}`."
            if place in _model_types(request.kind)
            else ""
        )
        raise ModelError(
            f"'{request.full_name}' cannot be loaded: {first_line(error)}{scratch}"
        ) from error
    for name, value in dict(request.keywords.get("config") or {}).items():
        if not hasattr(config, name):
            raise unknown_name(f"setting of '{request.full_name}'", name, config.to_dict())
        setattr(config, name, value)
    if config.num_labels != request.classes:
        config.num_labels = request.classes
    try:
        module, loaded = _auto_class(request.kind).from_pretrained(
            place,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **shared,
            **_attention(request),
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"'{request.full_name}' cannot be loaded: {first_line(error)}") from error
    head = _new_head(request, module, loaded)
    tokenizer = _tokenizer(request, place) if request.kind == "text" else None
    _check_tokenizer(request, module, tokenizer)
    carried = None if head else _carried_names(module.config)
    _name_classes(module.config, carried or request.class_names)
    preprocess = _preprocess(request, module, tokenizer, place)
    weights = f"{request.full_name}{head}"
    if request.weights is not None:
        weights = load_file(module, request, bool(request.keywords.get("drop_head", False)))
    return _finished(request, module, preprocess, weights, carried or request.class_names)


def _new_head(request: Request, module: Any, loaded: Any) -> str:
    """Check what was not loaded: only the classifier may be new, and one of another size only if that was asked for."""
    base = f"{module.base_model_prefix}."
    mismatched = sorted(loaded["mismatched_keys"])
    body = [name for name, _, _ in mismatched if name.startswith(base)]
    body += [
        name for name in loaded["missing_keys"] if name.startswith(base) and ".pooler." not in name
    ]
    if body:
        raise ModelError(
            f"'{request.full_name}' lacks weights for {len(body)} tensors of {type(module).__name__} "
            f"({', '.join(body[:5])})."
        )
    if mismatched and not request.keywords.get("drop_head"):
        name, theirs, mine = mismatched[-1]
        raise ModelError(
            f"The classifier of '{request.full_name}' ('{name.rpartition('.')[0]}') has {theirs[0]} classes, "
            f"the task has {mine[0]}. If it is to be learnt anew, give `drop_head: true`."
        )
    if mismatched:
        _, theirs, mine = mismatched[-1]
        return f", classifier new ({theirs[0]} -> {mine[0]} classes)"
    return ", classifier new" if loaded["missing_keys"] else ""


def _tokenizer(request: Request, place: str | None) -> Any:
    wanted = request.keywords.get("tokenizer") or (request.preprocess or {}).get("tokenizer")
    if wanted is None and place is not None:
        return load_tokenizer(place)
    if wanted is None or isinstance(wanted, dict):
        settings = dict((wanted or {"train": {}}).get("train") or {})
        if wanted is not None and set(wanted) != {"train"}:
            raise ModelError(
                "A tokenizer is a folder, a hub name, or {train: {size: ..., kind: ...}}."
            )
        for name in settings:
            if name not in ("size", "kind"):
                raise unknown_name("setting of tokenizer training", name, ("size", "kind"))
        if request.texts is None:
            raise ModelError(
                f"'{request.full_name}' needs a tokenizer: name its folder as `tokenizer`, "
                "or give texts to train one on."
            )
        return train_tokenizer(list(flat_texts(request.texts())), **settings)
    tokenizer = wanted if callable(wanted) else load_tokenizer(wanted)
    return tokenizer


def _check_tokenizer(request: Request, module: Any, tokenizer: Any) -> None:
    """Make tokenizer and model agree on padding, and refuse ids that have no embedding."""
    if tokenizer is None:
        return
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"The tokenizer of '{request.full_name}' has neither padding nor end token."
            )
        # The model was trained without padding. Any token will do where the mask hides it; this is the usual choice.
        tokenizer.pad_token = tokenizer.eos_token
    embeddings = module.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise ModelError(
            f"The tokenizer of '{request.full_name}' has {len(tokenizer)} entries, the model embeds {embeddings}."
        )
    known = getattr(module.config, "pad_token_id", None)
    if known is None:
        module.config.pad_token_id = tokenizer.pad_token_id
    elif known != tokenizer.pad_token_id:
        raise ModelError(
            f"'{request.full_name}' takes {known} for padding, its tokenizer writes {tokenizer.pad_token_id}."
        )


def _preprocess(request: Request, module: Any, tokenizer: Any, place: str | None) -> AnyPreprocess:
    if request.kind == "text":
        return text_preprocess(request, module, tokenizer)
    return image_preprocess(request, module, place)


def _finished(
    request: Request,
    module: Any,
    preprocess: AnyPreprocess,
    weights: str,
    classes: tuple[str, ...] | None,
) -> Model:
    """Describe the model by its complete configuration, which does not depend on where it came from."""
    architecture = {
        name: value
        for name, value in module.config.to_dict().items()
        if name not in _NOT_ARCHITECTURE
    }
    kept = {
        name: request.keywords[name]
        for name in ("dtype", "attn_implementation")
        if name in request.keywords
    }
    config = request.rebuilt_by(preprocess, config=architecture, **kept)
    if config is not None:
        config["name"] = f"hf:{module.config.model_type}"
        config["class_names"] = None if classes is None else list(classes)
    return Model(module, preprocess, request.full_name, config, weights, classes)


def _name_classes(config: Any, names: tuple[str, ...] | None) -> None:
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}


def _carried_names(config: Any) -> tuple[str, ...] | None:
    """Return the class names in a configuration, None where they are transformers' place holders."""
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return None if names == tuple(f"LABEL_{index}" for index in range(config.num_labels)) else names


def _attention(request: Request) -> dict[str, Any]:
    wanted = request.keywords.get("attn_implementation")
    return {} if wanted is None else {"attn_implementation": wanted}
