"""Mean and standard deviation per channel: measuring, checking and applying them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from understudy.errors import ModelError

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel; for images in [0, 1]."""


def channel_statistics(
    batches: torch.Tensor | Iterable[torch.Tensor],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of each channel.

    Args:
        batches: [N, C, ...] in uint8 (taken as [0, 1] after division by 255) or float, or an iterable of such tensors.

    Returns:
        Mean and standard deviation over all samples and places, of each of the C channels (the divisor is the count). A
        channel that never changes has the standard deviation 1, so that dividing by it is harmless.

    Raises:
        ModelError: there are no samples, or they hold NaN or infinity.
    """
    count = 0
    total: torch.Tensor | float = 0.0
    squares: torch.Tensor | float = 0.0
    origin: torch.Tensor | None = None
    least = most = torch.zeros(())
    for batch in _in_parts(batches):
        values = batch.detach().to("cpu", torch.float64)
        if batch.dtype == torch.uint8:
            values = values / 255.0
        values = values.transpose(0, 1).flatten(1)
        if origin is None:
            # Sums around a value near the mean keep their digits when the mean is large beside the deviation.
            origin = values.mean(1, keepdim=True)
            least = most = values[:, 0]
        least, most = torch.minimum(least, values.amin(1)), torch.maximum(most, values.amax(1))
        values = values - origin
        count += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.square().sum(1)
    if origin is None or count == 0:
        raise ModelError("There are no samples to measure mean and standard deviation on.")
    offset = torch.as_tensor(total) / count
    mean = origin.flatten() + offset
    deviation = (torch.as_tensor(squares) / count - offset.square()).clamp_min(0.0).sqrt()
    if not (torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
        raise ModelError(
            "The samples hold NaN or infinity, so they have no mean and standard deviation."
        )
    deviation = torch.where((least < most) & (deviation > 0), deviation, 1.0)
    return tuple(mean.tolist()), tuple(deviation.tolist())


def _in_parts(
    batches: torch.Tensor | Iterable[torch.Tensor], size: int = 4096
) -> Iterable[torch.Tensor]:
    """Give the samples in parts that are cheap to hold in float64."""
    for batch in [batches] if isinstance(batches, torch.Tensor) else batches:
        if batch.dim() < 2:
            raise ModelError(
                f"Statistics per channel need samples [N, C, ...]; these have shape {tuple(batch.shape)}."
            )
        if batch.numel():
            yield from batch.split(size)


def checked_statistics(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation for each of `channels` (a single one stands for all), or say what is wrong."""
    if len(mean) != len(std):
        raise ModelError(f"There are {len(mean)} means and {len(std)} standard deviations.")
    if len(mean) not in (1, channels):
        raise ModelError(
            f"There are {len(mean)} means for {channels} channels; give one for each, or one for all."
        )
    repeat = channels if len(mean) == 1 else 1
    averages = tuple(float(value) for value in mean) * repeat
    deviations = tuple(float(value) for value in std) * repeat
    if not all(math.isfinite(value) for value in averages + deviations) or min(deviations) <= 0:
        raise ModelError(
            f"Means must be finite and standard deviations above 0; they are {averages} and {deviations}."
        )
    return averages, deviations


class Normaliser:
    """(x / unit - mean) / std along dimension 1, as one fused multiply-add."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], unit: float) -> None:
        """Take one mean and deviation per channel; `unit` is what counts as 1 in the input (255 for bytes)."""
        self._scale = [1.0 / (unit * deviation) for deviation in std]
        self._shift = [-average / deviation for average, deviation in zip(mean, std, strict=True)]
        self._constants: dict[tuple[torch.device, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, values: torch.Tensor, *, in_place: bool) -> torch.Tensor:
        """Apply to float32 [B, C, ...], C being 1 or the number of channels.

        `in_place` overwrites `values` where the result has its shape; only for a tensor that nobody else holds.
        """
        place = (values.device, values.dim())
        if place not in self._constants:
            shape = (1, -1, *([1] * (values.dim() - 2)))
            # Made outside of inference mode, whatever mode the first caller is in: a later one may want gradients.
            with torch.inference_mode(False):
                self._constants[place] = (
                    torch.tensor(self._scale, device=values.device).view(shape),
                    torch.tensor(self._shift, device=values.device).view(shape),
                )
        scale, shift = self._constants[place]
        if in_place and scale.shape[1] in (1, values.shape[1]):
            return torch.addcmul(shift, values, scale, out=values)
        return torch.addcmul(shift, values, scale)
