"""Tokenizers: loading one, training a small one on the data's own texts, telling two apart."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from understudy.errors import ModelError, unknown_name
from understudy.models.optional import first_line, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET_LIMIT = 1000
_CONTINUED = "##"


def load_tokenizer(place: str | Path) -> Any:
    """Load a tokenizer from a local folder or by hub name.

    Raises:
        ModelError: there is none, or it would run code that comes with it.
    """
    transformers = require("transformers", "text")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(place), trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"No tokenizer can be loaded from '{place}': {first_line(error)}"
        ) from error


def train_tokenizer(
    texts: Iterable[str],
    size: int = 8000,
    kind: Literal["wordpiece", "bpe"] = "wordpiece",
) -> PreTrainedTokenizerFast:
    """Train a tokenizer. Equal texts give an equal tokenizer, in any process.

    Args:
        texts: what to train on; it is read more than once.
        size: most entries of the vocabulary, with the five special tokens (padding, unknown, start, separator, mask).
        kind: "wordpiece", lower-cased as in BERT (Devlin et al. 2019), or "bpe" on bytes as in GPT-2 (Radford et al.
            2019).

    Returns:
        A tokenizer that writes `[CLS] text [SEP]` and `[CLS] first [SEP] second [SEP]`.
    """
    tokenizers = require("tokenizers", "text")
    transformers = require("transformers", "text")
    corpus = texts if isinstance(texts, list | tuple) else list(texts)
    if not any(corpus):
        raise ModelError("There is no text to train a tokenizer on.")
    if kind == "wordpiece":
        backend = _wordpiece(tokenizers, corpus, size)
    elif kind == "bpe":
        backend = _bpe(tokenizers, corpus, size)
    else:
        raise unknown_name("kind of tokenizer", kind, ("wordpiece", "bpe"))
    start, separator = "[CLS]", "[SEP]"
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {separator}:0",
        pair=f"{start}:0 $A:0 {separator}:0 $B:1 {separator}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (start, separator)],
    )
    fast: PreTrainedTokenizerFast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token=start,
        sep_token=separator,
        mask_token="[MASK]",
    )
    return fast


def _bpe(tokenizers: Any, corpus: Iterable[str], size: int) -> Any:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    _check_size(size, len(alphabet))
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return backend


def _wordpiece(tokenizers: Any, corpus: Iterable[str], size: int) -> Any:
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    splitter = tokenizers.pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in corpus:
        counts.update(normalizer.normalize_str(text))
    common = sorted(
        (character for character in counts if not character.isspace()),
        key=lambda c: (-counts[c], c),
    )
    alphabet = sorted(common[:_ALPHABET_LIMIT])
    _check_size(size, 2 * len(alphabet))
    # The trainer numbers the pieces that continue a word in the order of a hash table, which differs from run to run,
    # and breaks ties by these numbers. Handed over in front of the vocabulary, they have a fixed order.
    continued = [_CONTINUED + character for character in alphabet]
    learner = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer
    learner.pre_tokenizer = splitter
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *continued],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_CONTINUED,
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    # A fresh tokenizer with the same vocabulary, in which only the real special tokens are special.
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            vocab=learner.get_vocab(), unk_token="[UNK]", continuing_subword_prefix=_CONTINUED
        )
    )
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    backend.decoder = tokenizers.decoders.WordPiece(prefix=_CONTINUED)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return backend


def _check_size(size: int, symbols: int) -> None:
    least = symbols + len(SPECIAL_TOKENS)
    if size < least:
        raise ModelError(
            f"A vocabulary of {size} entries is too small: single symbols and special tokens already take {least}."
        )


def flat_texts(texts: Iterable[str | tuple[str, str]]) -> Iterator[str]:
    """Give texts one by one, the parts of a pair after each other."""
    for item in texts:
        if isinstance(item, str):
            yield item
        else:
            yield from item


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash over what a tokenizer does: vocabulary, splitting, special tokens, side of padding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: Any
    if backend is not None:
        content = json.loads(backend.to_str())
        # These two are left over from the last call, not part of the tokenizer.
        content["truncation"] = content["padding"] = None
    else:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    described = [content, getattr(tokenizer, "padding_side", "right"), tokenizer.pad_token_id]
    text = json.dumps(described, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def language_fingerprint(tokenizer: Any, chat_template: bool = False) -> str:
    """Return a hash over what a tokenizer does and which tokens begin and end a text.

    Args:
        tokenizer: the tokenizer.
        chat_template: whether its chat template is used, and so is a part of it.
    """
    described = [
        tokenizer_fingerprint(tokenizer),
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.chat_template if chat_template else None,
    ]
    return hashlib.blake2b(json.dumps(described).encode(), digest_size=16).hexdigest()
