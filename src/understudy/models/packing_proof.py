"""Whether a language model keeps sequences apart that share a row: shown on an example, never assumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from understudy.models.language_head import forward_keywords, hidden_path, vocabulary_of
from understudy.models.language_rows import Packing, causal_tokens
from understudy.models.outputs import call, logits_of
from understudy.models.taps import Stop, Tapped, unchanged
from understudy.models.tokens import Layout, Rows, Tokens, TokenSequence, packed, padded

_LENGTHS = (5, 7, 3, 6)


Lay = Callable[[list[TokenSequence], Rows, Packing], Tokens]
"""Puts sequences into rows, to be kept apart in some way."""


def prove_packing(
    module: nn.Module, layout: Layout, max_length: int, *, lay: Lay | None = None
) -> tuple[Packing, str]:
    """Find a way of packing that gives the hidden states of separate rows.

    Args:
        module: a language model; left as it was.
        layout: what the rows belong to.
        max_length: most tokens of a row.
        lay: what lays the rows of a model that reads in both directions; None for a causal one.

    Returns:
        The way, "padded" where there is none, and a sentence that says which it is and why.
    """
    if "position_ids" not in forward_keywords(module):
        return "padded", (
            f"Rows are padded: {type(module).__name__} takes no `position_ids`, so sequences in one row would run "
            "into each other."
        )
    lengths = [length for length in _LENGTHS if length <= max_length]
    size = vocabulary_of(module)
    sequences = [
        TokenSequence((torch.arange(length) * 5 + 11 * number + 1) % size, number)
        for number, length in enumerate(lengths)
    ]
    capacity = min(max_length, sum(lengths) + 3)
    apart = padded(lengths, max_length)
    together = packed(lengths, capacity)
    causal = lay is None
    lay = lay or _causal(module, layout)
    alone = _states(module, lay, sequences, apart, "padded")
    tolerance = 1e-5 if alone.dtype == torch.float32 else 2e-2
    bound = tolerance * max(1.0, float(alone.float().abs().max()))
    # An example that would pass without any separation proves nothing: a fresh model whose blocks give zeros does.
    mixed = _distance(_states(module, lay, sequences, together, "padded"), alone)
    if mixed < bound / 10:
        return "padded", (
            f"Rows are padded: in {type(module).__name__} as it is now, tokens hardly depend on others, so it cannot "
            "be shown that sequences in one row would be kept apart."
        )
    for way in _ways(module, max_length, causal):
        try:
            distance = _distance(_states(module, lay, sequences, together, way), alone)
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue  # the model does not take such keywords
        if distance <= min(bound, mixed / 10):
            return way, f"Rows are packed: {_REASONS[way]} and give what separate rows give."
    return "padded", (
        f"Rows are padded: {type(module).__name__} gives something else for sequences that share a row."
    )


_REASONS = {
    "bias": "sequences in one row are kept apart by a mask that is added to the scores",
    "mask": "sequences in one row are kept apart by a mask",
    "positions": "sequences in one row are kept apart by their positions",
}


def _ways(module: Any, max_length: int, causal: bool) -> tuple[Packing, ...]:
    """Return what is tried, the best first.

    A mask costs no look at the data, but takes the place of all of a model's own masks. So it is for models that look
    at all (earlier) tokens in every layer. Positions are told apart in causal models only.
    """
    config = getattr(module, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    whole = kinds <= {"full_attention"} and (window is None or window >= max_length or bool(kinds))
    if not whole or getattr(config, "attention_chunk_size", None):
        found: tuple[Packing, ...] = ("positions",)
    else:
        found = _BY_ATTENTION.get(attention, ("positions",))
    return found if causal else tuple(way for way in found if way != "positions")


_BY_ATTENTION: dict[str | None, tuple[Packing, ...]] = {
    "sdpa": ("mask", "positions"),
    "eager": ("bias", "positions"),
    None: ("mask", "bias", "positions"),
}


def _distance(states: torch.Tensor, others: torch.Tensor) -> float:
    return float((states - others).float().abs().max())


def _causal(module: nn.Module, layout: Layout) -> Lay:
    device = next(parameter.device for parameter in module.parameters())
    masked = "attention_mask" in forward_keywords(module)

    def lay(sequences: list[TokenSequence], rows: Rows, way: Packing) -> Tokens:
        return causal_tokens(
            sequences,
            rows,
            len(sequences),
            device,
            packing=way,
            padding=0,
            attention_mask=masked and len(rows.row) == rows.shape[0],
            layout=layout,
        )

    return lay


def _states(
    module: nn.Module, lay: Lay, sequences: list[TokenSequence], rows: Rows, way: Packing
) -> torch.Tensor:
    """Return the hidden states (or logits) of all tokens, sequence by sequence."""
    tokens = lay(sequences, rows, way)
    path = hidden_path(module)
    stop = None if path is None else Stop(path, "input")
    tapped = Tapped(module, [] if path is None else [f"{path}@input"], stop=stop)
    try:
        with unchanged(module), torch.no_grad():
            module.eval()
            output, taps = call(tapped, tokens)
    finally:
        tapped.close()
    states = logits_of(output) if path is None else taps[f"{path}@input"]
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=tokens.device)
    valid = torch.arange(tokens.elements.shape[1], device=tokens.device) < lengths.unsqueeze(1)
    return tokens.by_document(states)[valid]
