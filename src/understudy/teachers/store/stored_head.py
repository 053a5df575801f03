"""A language model's head beside its hidden states, so that logits can be had without the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from understudy.objectives.vocabulary.head import Head, LowRank

HEAD = "head.safetensors"
"""The file of its tensors. Its numbers stand in the manifest, among the facts about the teacher."""


def head_bytes(head: Head) -> bytes:
    """Return the tensors of a head as the contents of a file. Rows behind the vocabulary are left out."""
    tensors = {"weight": head.weight[: head.size]}
    if head.bias is not None:
        tensors["bias"] = head.bias[: head.size]
    if head.low_rank is not None:
        tensors |= {"down": head.low_rank.down, "up": head.low_rank.up[: head.size]}
    # Contiguous copies: what is tied to an embedding shares its memory, which safetensors refuses.
    return save({name: each.detach().cpu().clone() for name, each in tensors.items()})


def head_facts(head: Head) -> dict[str, Any]:
    """Return the numbers of a head as JSON values."""
    return {
        "scale": head.scale,
        "soft_cap": head.soft_cap,
        "low_rank_scale": None if head.low_rank is None else head.low_rank.scale,
    }


def read_head(path: Path, facts: Mapping[str, Any], device: torch.device) -> Head:
    """Return a head from its file and its numbers."""
    tensors = load_file(path, device=str(device))
    low_rank = None
    if facts["low_rank_scale"] is not None:
        low_rank = LowRank(tensors["down"], tensors["up"], facts["low_rank_scale"])
    return Head(tensors["weight"], tensors.get("bias"), facts["scale"], facts["soft_cap"], low_rank)
