"""The knowledge distillation layer: a learnt combination of vectors is added where templates match."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from understudy.errors import ModelError
from understudy.models.grafts.graft import Graft

EPS = 1e-12
"""Least length that a vector is divided by."""


class CosineLayer(nn.Module):
    """s times the cosine of the last dimension with each of `outputs` directions: [..., D] -> [..., K].

    A vector shorter than `EPS` has no direction: its cosines are 0 and give it no gradient, which would be of the order
    1 / `EPS`.

    Args:
        inputs: D.
        outputs: K.
        scale: s at the start; one learnt number.
    """

    def __init__(self, inputs: int, outputs: int, *, scale: float) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * math.sqrt(2 / inputs))
        self.scale = nn.Parameter(torch.full((1,), scale))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Return the scaled cosines."""
        directions = _times(self.weight, self.scale * _inverse_length(self.weight))
        lengths = _inverse_length(given)
        # The length is divided out on the narrower side.
        if self.inputs <= self.outputs:
            return F.linear(_times(given, lengths), directions)
        return _times(F.linear(given, directions), lengths)


class KDLayer(Graft, name="kd_layer"):
    """x + alpha * V(ReLU(BN(T(x)))) at every place, with cosine layers T (templates) and V (semantic vectors).

    For maps [B, D, H, W], tokens [B, T, D] and vectors [B, D]. `scores` gives what is compared with a teacher, before
    the normalisation: [B, H, W, K], [B, T, K] or [B, K].

    Source: Gorgun, Gurbuz and Alatan, "Knowledge Distillation Layer that Lets the Student Decide", BMVC 2023.

    Args:
        channels: D.
        templates: K.
        alpha: factor of what is added. At 0 nothing is, and evaluation leaves out the way there.

    Raises:
        ModelError: in training the batch has one place only, of which there is no variance.
    """

    def __init__(self, channels: int, templates: int, alpha: float = 1.0) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("templates", templates)):
            if value < 1:
                raise ModelError(f"{name} is {value}; it must be at least 1.")
        self.channels, self.templates, self.alpha = channels, templates, alpha
        self.scores = CosineLayer(channels, templates, scale=3.0)
        self.norm = nn.BatchNorm1d(templates)
        self.values = CosineLayer(templates, channels, scale=1.0)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        is_map = given.dim() == 4
        scores = self.scores(given.permute(0, 2, 3, 1) if is_map else given)
        if self.alpha == 0 and not self.training:
            return given
        rows = scores.reshape(-1, self.templates)
        if self.training and rows.shape[0] == 1:
            raise ModelError(
                f"A KD layer was given {tuple(given.shape)} in training: one place, whose scores have no variance to "
                "normalise by. Use batches of two samples at least, or maps of several places."
            )
        # In place: with thousands of templates another copy costs as much as the products.
        matched: torch.Tensor = self.norm(rows).relu_().view(scores.shape)
        added: torch.Tensor = self.values(matched)
        return given + (self.alpha * (added.permute(0, 3, 1, 2) if is_map else added)).to(
            given.dtype
        )


def _inverse_length(vectors: torch.Tensor) -> torch.Tensor:
    """Return 1 / |v| of [..., D] as [..., 1] in float32 or better; 0 for a length of at most `EPS`."""
    dtype = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=dtype)
    return torch.where(length > EPS, length.clamp_min(EPS).reciprocal(), 0.0)


def _times(vectors: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply in the factor's precision; 1 / |v| may be beyond the range of the vectors' own."""
    return (vectors * factor).to(vectors.dtype)
