"""Weights with which a mean over tokens becomes another mean."""

from __future__ import annotations

import torch

from understudy.objectives.reduction import in_float
from understudy.objectives.shapes import divisor


def sequence_weights(mask: torch.Tensor) -> torch.Tensor:
    """Return weights of tokens with which every sequence counts the same, however long it is.

    As the `weight` of an objective they turn the mean over all tokens into the mean over sequences of each sequence's
    own mean. Many published codes average so; a batch in parts then needs the number of sequences instead of tokens.

    Args:
        mask: mask or weights over tokens [..., T].

    Returns:
        [..., T] in float32 or better, each sequence's sum being 1. A sequence without any token has zeros and is left
        out of the mean, where plain division makes it NaN.

    Source: the losses of MiniPLM (`base_trainer.py`), of ULD, and of Ramesh et al., "On the Generalization vs Fidelity
    Paradox in Knowledge Distillation", Findings of ACL 2025.

    Raises:
        ValueError: the mask has no dimension.
    """
    if mask.dim() == 0:
        raise ValueError("mask has shape (); it must be [..., T]")
    weight = in_float(mask)
    return weight / divisor(weight.sum(dim=-1, keepdim=True))
