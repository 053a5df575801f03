"""Texts, or pairs of texts, to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from understudy.errors import ModelError, unknown_name
from understudy.models.configured import Configured
from understudy.models.tokenizer import tokenizer_fingerprint

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What a text model may take, in the order of an export's inputs."""


class TextPreprocess(Configured):
    """Encodes texts, or pairs of texts, by a tokenizer.

    Args:
        tokenizer: a `transformers` tokenizer with a padding token.
        max_length: longest encoding in tokens; a longer text is cut. None: whatever the tokenizer gives.
        inputs: which of "input_ids", "attention_mask" and "token_type_ids" the model takes.
        dynamic: pad to the longest text of the batch; otherwise always to `max_length`.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None = None,
        inputs: Sequence[str] = ("input_ids", "attention_mask"),
        dynamic: bool = True,
    ) -> None:
        for name in inputs:
            if name not in TEXT_INPUTS:
                raise unknown_name("text input", name, TEXT_INPUTS)
        if "input_ids" not in inputs:
            raise ModelError("A text model takes at least 'input_ids'.")
        if tokenizer.pad_token_id is None:
            raise ModelError(
                "The tokenizer has no padding token, so texts of different lengths cannot share a batch. "
                "Set its `pad_token`."
            )
        if max_length is not None and max_length < 1:
            raise ModelError(f"'max_length' is {max_length}; it must be at least 1.")
        if not dynamic and max_length is None:
            raise ModelError("Padding to a fixed length (dynamic: false) needs 'max_length'.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.inputs = tuple(name for name in TEXT_INPUTS if name in inputs)
        self.dynamic = dynamic
        self._fingerprint = tokenizer_fingerprint(tokenizer)

    def __call__(self, raw: Any, device: torch.device) -> dict[str, torch.Tensor]:
        """Return int64 [B, L] tensors by input name, on `device`, from strings or pairs of strings."""
        first, second = texts_of(raw)
        encoded = self.tokenizer(
            first,
            second,
            padding="longest" if self.dynamic else "max_length",
            truncation=self.max_length is not None,
            max_length=self.max_length,
            return_attention_mask=True,
            return_token_type_ids="token_type_ids" in self.inputs,
            return_tensors="pt",
        )
        return {name: encoded[name].to(device, non_blocking=True) for name in self.inputs}

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values; for the tokenizer stands a hash of its content."""
        return {
            "type": "text",
            "tokenizer": self._fingerprint,
            "max_length": self.max_length,
            "inputs": list(self.inputs),
            "dynamic": self.dynamic,
        }


def texts_of(raw: Any) -> tuple[list[str], list[str] | None]:
    """Split a batch into first texts and second texts (None: no pairs)."""
    if not isinstance(raw, list | tuple) or not raw:
        raise ModelError(
            f"Texts come as a list of strings or of pairs of strings, not as {type(raw).__name__}."
        )
    if all(isinstance(item, str) for item in raw):
        return list(raw), None
    for item in raw:
        pair = isinstance(item, list | tuple) and len(item) == 2
        if not pair or not all(isinstance(part, str) for part in item):
            raise ModelError(
                "A batch of texts holds strings only, or pairs of strings only; "
                f"this one holds {repr(item)[:80]}."
            )
    return [item[0] for item in raw], [item[1] for item in raw]
