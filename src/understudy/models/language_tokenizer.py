"""Tokenizers of language models: one for each byte, one trained on the data's own texts, or any by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from understudy.errors import ModelError, unknown_name
from understudy.models.build import Request
from understudy.models.optional import require
from understudy.models.tokenizer import flat_texts, load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PADDING, BEGIN, END, MASK = "<pad>", "<bos>", "<eos>", "<mask>"
_SPECIAL = (PADDING, BEGIN, END, MASK)
_SHAPE = "A tokenizer is a folder, a hub name, {kind: bytes}, or {train: {size: 8000, kind: bpe}}."


def language_tokenizer(request: Request, place: str | None) -> Any:
    """Return the tokenizer that a request names, trains or finds beside its model.

    Args:
        request: what was asked for: the keyword `tokenizer`, or that of `preprocess`.
        place: folder or hub name of a pretrained model, whose tokenizer it is by default.

    Raises:
        ModelError: there is none.
    """
    wanted = request.keywords.get("tokenizer") or (request.preprocess or {}).get("tokenizer")
    if wanted is None and place is not None:
        return load_tokenizer(place)
    if wanted is None:
        raise ModelError(f"'{request.full_name}' needs a `tokenizer`. {_SHAPE}")
    if isinstance(wanted, Mapping):
        return _made(request, wanted)
    return wanted if callable(wanted) else load_tokenizer(wanted)


def byte_tokenizer(*, both_ends: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each of the 256 bytes of UTF-8, and four special ones.

    Args:
        both_ends: whether it writes the end token behind a text, beside the begin token before it.
    """
    tokenizers = require("tokenizers", "text")
    alphabet = bytes_in_order()
    vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *alphabet))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    return _finished(tokenizers, backend, both_ends)


def train_language_tokenizer(
    texts: Iterable[str],
    size: int = 8000,
    kind: Literal["bpe", "wordpiece"] = "bpe",
    *,
    both_ends: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer for a language model. Equal texts give an equal tokenizer, in any process.

    Args:
        texts: what to train on.
        size: most entries of the vocabulary, with special tokens.
        kind: "bpe" on bytes, which gives every text back as it was, or "wordpiece", which writes small letters only.
        both_ends: see `byte_tokenizer`.
    """
    if kind == "wordpiece":
        pieces = train_tokenizer(texts, size, "wordpiece")
        pieces.bos_token, pieces.eos_token = pieces.cls_token, pieces.sep_token
        return pieces
    if kind != "bpe":
        raise unknown_name("kind of tokenizer", kind, ("bpe", "wordpiece"))
    tokenizers = require("tokenizers", "text")
    corpus = texts if isinstance(texts, list | tuple) else list(texts)
    if not any(corpus):
        raise ModelError("There is no text to train a tokenizer on.")
    alphabet = bytes_in_order()
    least = len(alphabet) + len(_SPECIAL)
    if size < least:
        raise ModelError(
            f"A vocabulary of {size} entries is too small: bytes and special tokens already take {least}."
        )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return _finished(tokenizers, backend, both_ends)


def _made(request: Request, wanted: Mapping[str, Any]) -> Any:
    # BERT and its kin mark both ends of what they read, and encoders of pairs the end.
    both_ends = request.task != "causal_lm"
    if dict(wanted) == {"kind": "bytes"}:
        return byte_tokenizer(both_ends=both_ends)
    if set(wanted) != {"train"}:
        raise ModelError(f"'{request.full_name}' has the tokenizer {dict(wanted)}. {_SHAPE}")
    settings = dict(wanted["train"] or {})
    for name in settings:
        if name not in ("size", "kind"):
            raise unknown_name("setting of tokenizer training", name, ("size", "kind"))
    if request.texts is None:
        raise ModelError(
            f"'{request.full_name}' is to train a tokenizer, but there are no texts to train one on."
        )
    texts = list(flat_texts(request.texts()))
    return train_language_tokenizer(texts, **settings, both_ends=both_ends)


def _finished(tokenizers: Any, backend: Any, both_ends: bool) -> PreTrainedTokenizerFast:
    transformers = require("transformers", "text")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(_SPECIAL))
    end = f" {END}" if both_ends else ""
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BEGIN} $A{end}",
        pair=f"{BEGIN} $A{end} $B:1{end and f'{end}:1'}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (BEGIN, END)],
    )
    roles = {"bos_token": BEGIN, "eos_token": END, "pad_token": PADDING, "mask_token": MASK}
    if both_ends:
        roles |= {"cls_token": BEGIN, "sep_token": END}
    fast: PreTrainedTokenizerFast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles
    )
    return fast


def bytes_in_order() -> list[str]:
    """Return the characters that stand for the bytes 0 to 255 in byte-level tokenizers (Radford et al. 2019).

    A byte that prints stands for itself, the others for the characters from 256 on, in order.
    """
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printed]
    moved = {byte: 256 + number for number, byte in enumerate(others)}
    return [chr(moved.get(byte, byte)) for byte in range(256)]
