"""PHI-S: an isotropic standardisation of a teacher's features, the same variance in every dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from understudy.errors import DataError, UnderstudyError
from understudy.models.outputs import Outputs
from understudy.teachers.statistics import Moments
from understudy.teachers.study import Study

BALANCE = 1e-7
"""How far, relative to the mean, a diagonal entry of the rotated covariance may be from the mean."""


class PhiS(nn.Module):
    """Brings features to mean 0 and variance 1 in every dimension by a rotation and one scale for all dimensions.

    Paper: Ranzinger et al., "PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation", 2024. Equation:
    y = H U^T (x - mean) / alpha with the covariance U diag(lambda) U^T and alpha^2 the mean of lambda. H is orthogonal,
    and each of its rows mixes all directions, so that the variances of y are all equal.

    Unlike whitening it changes the size of nothing relative to anything else: errors in y are errors in x over alpha,
    in whatever direction. It is inverted exactly.

    Deviation: H is a Hadamard matrix over the root of the width where the width is a power of two. At other widths the
    paper puts Hadamard matrices together from known ones; here H comes from plane rotations that equalise the variances
    themselves (`balancing`), which exists for every width and is orthogonal as well.

    Args:
        width: D, the features of a vector or token, or the channels of a map.
    """

    mean: torch.Tensor
    matrix: torch.Tensor
    alpha: torch.Tensor

    def __init__(self, width: int) -> None:
        """Start with no change."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))
        self.register_buffer("alpha", torch.ones(()))

    def take(self, moments: Moments) -> None:
        """Set mean, matrix and scale from moments of the features.

        Raises:
            DataError: the features do not vary.
        """
        covariance = moments.covariance
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0.0)
        alpha = values.mean().sqrt()
        if not alpha > 0:
            if moments.provisional:
                return
            raise DataError(
                f"All {moments.count} rows of the tap '{moments.reading.tap}' are equal: nothing to standardise."
            )
        self.mean.copy_(moments.mean)
        self.matrix.copy_(balancing(values) @ vectors.T)
        self.alpha.copy_(alpha)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features [B, D], [B, T, D] or [B, D, H, W], standardised, in float32 or better."""
        with torch.autocast(features.device.type, enabled=False):
            moved = self._last(features)
            return self._back(
                ((moved - self.mean) @ self.matrix.to(moved.dtype).T) / self.alpha, features
            )

    def inverse(self, standardised: torch.Tensor) -> torch.Tensor:
        """Return the features that `forward` gives `standardised` for."""
        with torch.autocast(standardised.device.type, enabled=False):
            moved = self._last(standardised)
            return self._back(
                (moved * self.alpha) @ self.matrix.to(moved.dtype) + self.mean, standardised
            )

    def _last(self, features: torch.Tensor) -> torch.Tensor:
        place = 1 if features.dim() == 4 else -1
        if features.dim() not in (2, 3, 4) or features.shape[place] != len(self.mean):
            raise UnderstudyError(
                f"Features of shape {tuple(features.shape)} cannot be standardised; [B, D], [B, T, D] or [B, D, H, W] "
                f"with D = {len(self.mean)} can."
            )
        values = features if features.dtype == torch.float64 else features.float()
        return values.movedim(1, -1) if values.dim() == 4 else values

    @staticmethod
    def _back(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return values.movedim(-1, 1) if like.dim() == 4 else values


def balancing(values: torch.Tensor) -> torch.Tensor:
    """Return an orthogonal matrix H [D, D] for which all diagonal entries of H diag(values) H^T are equal.

    At powers of two it is Sylvester's Hadamard matrix over the root of D. Otherwise it is a product of at most D - 1
    plane rotations: each takes an entry above and one below the mean, and turns the first into the mean (the
    construction behind the theorem of Schur and Horn, 1954).

    Args:
        values: float64 [D], at least 0.
    """
    width = len(values)
    if width & (width - 1) == 0:
        return _sylvester(width, values)
    mean = float(values.mean())
    found, rotated = torch.diag(values), torch.eye(width, dtype=values.dtype)
    for _ in range(width - 1):
        diagonal = found.diagonal()
        high, low = int(diagonal.argmax()), int(diagonal.argmin())
        if float(diagonal[high] - diagonal[low]) <= BALANCE * mean:
            break
        turn = _turn(found, high, low, mean)
        pair = [high, low]
        found[pair] = turn @ found[pair]
        found[:, pair] = found[:, pair] @ turn.T
        rotated[pair] = turn @ rotated[pair]
        found[high, high] = mean
    return rotated


def _turn(found: torch.Tensor, high: int, low: int, mean: float) -> torch.Tensor:
    """Return the rotation [2, 2] after which the entry `high` of the diagonal is the mean.

    With tangent t the new entry is (a + 2 b t + c t^2) / (1 + t^2); it is the mean at a root of
    (c - m) t^2 + 2 b t + (a - m), which has one, since a >= m >= c.
    """
    a, b, c = (float(found[place]) for place in ((high, high), (high, low), (low, low)))
    half = max(0.0, b * b - (c - mean) * (a - mean)) ** 0.5
    # The root of smaller size, in the form that loses no digits.
    bottom = b + half if b >= 0 else b - half
    tangent = -(a - mean) / bottom if bottom else 0.0
    cosine = 1.0 / (1.0 + tangent * tangent) ** 0.5
    sine = tangent * cosine
    return found.new_tensor([[cosine, sine], [-sine, cosine]])


def _sylvester(width: int, like: torch.Tensor) -> torch.Tensor:
    matrix = torch.ones(1, 1, dtype=like.dtype)
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(width)


class StandardisedOutputs(Outputs):
    """What a teacher gives, with some features standardised."""

    def __init__(self, inner: Outputs, features: dict[str, torch.Tensor]) -> None:
        """Keep both."""
        self._inner = inner
        self.features, self.top_k = features, inner.top_k

    @property
    def logits(self) -> torch.Tensor | None:  # type: ignore[override]
        """The teacher's logits as they are."""
        return self._inner.logits


class Standardised(nn.Module):
    """What stands between the taps of one teacher and a method: a `PhiS` for each.

    Args:
        taps: the taps, with their widths.
    """

    def __init__(self, taps: Sequence[tuple[str, int]]) -> None:
        """Change nothing until it is fitted."""
        super().__init__()
        self.taps = [tap for tap, _ in taps]
        self.each = nn.ModuleList(PhiS(width) for _, width in taps)

    def fit(self, study: Study) -> None:
        """Fit all to the moments of one pass of the teacher over the training samples, as they are."""
        moments = [Moments(tap) for tap in self.taps]
        study.collect(*moments)
        for found, one in zip(moments, self.each, strict=True):
            assert isinstance(one, PhiS)
            one.take(found)

    def forward(self, outputs: Outputs) -> Outputs:
        """Return outputs in which the features of these taps are standardised."""
        features = dict(outputs.features)
        for tap, one in zip(self.taps, self.each, strict=True):
            features[tap] = one(features[tap])
        return StandardisedOutputs(outputs, features)
