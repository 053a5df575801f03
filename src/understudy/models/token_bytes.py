"""Which bytes of a text each token of a tokenizer stands for."""

from __future__ import annotations

import json
import re
from typing import Any

from understudy.errors import ModelError
from understudy.models.language_tokenizer import bytes_in_order

SPACE = "\u2581"
"""What stands for a space in tokenizers of the SentencePiece kind."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """Return for each token id the bytes of text that it stands for; none for special tokens and unused ids.

    Known are tokenizers on bytes (GPT-2, Llama 3, Qwen, and those made here) and of the SentencePiece kind (Llama 2,
    Gemma, T5), of which a text's first token begins with a space that the text does not have.

    Raises:
        ModelError: the tokenizer does not give texts back as they were, such as WordPiece.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    said = None if backend is None else json.loads(backend.to_str()).get("decoder")
    decoder = json.dumps(said, ensure_ascii=False)
    special = {*tokenizer.all_special_ids}
    vocabulary = tokenizer.get_vocab()
    found = [b""] * (max(vocabulary.values()) + 1)
    added = set(tokenizer.get_added_vocab())
    numbers = {character: byte for byte, character in enumerate(bytes_in_order())}
    on_bytes, pieces = "ByteLevel" in decoder, SPACE in decoder
    if not on_bytes and not pieces:
        raise ModelError(
            "What text each token stands for is known of tokenizers on bytes and of the SentencePiece kind, and this "
            f"{type(tokenizer).__name__} is neither."
        )
    for token, number in vocabulary.items():
        if number in special:
            continue
        if on_bytes and token not in added:
            found[number] = bytes(numbers[character] for character in token)
        elif (byte := _BYTE.fullmatch(token)) and not on_bytes:
            found[number] = bytes([int(byte[1], 16)])
        else:
            found[number] = (token if on_bytes else token.replace(SPACE, " ")).encode()
    return found


def begins_with_space(tokenizer: Any) -> bool:
    """Tell whether a tokenizer puts a space before a text that the text does not have."""
    known = token_bytes(tokenizer)
    ids = tokenizer("x", add_special_tokens=False)["input_ids"]
    return b"".join(known[number] for number in ids).startswith(b" ")
