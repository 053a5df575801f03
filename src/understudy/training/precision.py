"""Precision and memory format: chosen by a short probe on the real models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

REQUIRED_GAIN = 0.9
"""A faster mode is taken when it needs at most this share of the float32 time: less is within the noise of a probe."""


_NOTHING = nullcontext()


@dataclass(frozen=True)
class Precision:
    """How models run.

    Attributes:
        dtype: "float32" or "bf16" (autocast; parameters, normalisation statistics and losses stay float32).
        channels_last: memory format of images and convolutions.
        device: type of the device, for autocast.
    """

    dtype: str = "float32"
    channels_last: bool = False
    device: str = "cpu"

    def context(self) -> AbstractContextManager[object]:
        """Return the context that forward passes run in."""
        if self.dtype == "float32":
            return _NOTHING
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def __str__(self) -> str:
        """Return what a log calls it."""
        return self.dtype + (", channels last" if self.channels_last else "")


def unsound_channels_last(modules: Mapping[str, nn.Module], device: str) -> str | None:
    """Return why models must not run in channels-last format on this device, None when they may.

    On processors without AVX-512, oneDNN's gradient of a strided 1x1 convolution with fewer than 8 input channels
    writes outside of its memory in that format (seen with torch 2.15): a crash, or wrong numbers.

    Args:
        modules: role -> model.
        device: type of the device.
    """
    if device != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability():
        return None
    for role, module in modules.items():
        for path, part in module.named_modules():
            if (
                isinstance(part, nn.Conv2d)
                and part.kernel_size == (1, 1)
                and part.stride != (1, 1)
                and part.in_channels < 8
            ):
                return (
                    f"PyTorch's gradient of the strided 1x1 convolution '{path}' of the {role} "
                    f"({part.in_channels} input channels) writes outside of its memory on this processor when images "
                    "lie in channels-last format."
                )
    return None


def choose(
    candidates: list[Precision],
    prepare: Callable[[Precision], Callable[[], None]],
    *,
    repeats: int = 3,
    patience: float = 1.0,
) -> tuple[Precision, dict[str, float]]:
    """Time one training step under each candidate and return the fastest, with the seconds of each.

    Args:
        candidates: what to try; the first is the reference that the others have to beat by a tenth.
        prepare: brings the models into a candidate's form and returns a function that runs one step (forward,
            backward) and leaves no trace.
        repeats: timed steps per candidate after a warm-up; the fastest counts.
        patience: a candidate whose step takes longer than this many seconds is timed once only.
    """
    seconds: dict[Precision, float] = {}
    for candidate in candidates:
        step = prepare(candidate)
        warm = _time(step, candidate.device)
        rounds = repeats if warm < patience else 1
        seconds[candidate] = min(_time(step, candidate.device) for _ in range(rounds))
    reference = candidates[0]
    best = min(candidates, key=lambda candidate: seconds[candidate])
    if seconds[best] > REQUIRED_GAIN * seconds[reference]:
        best = reference
    return best, {str(candidate): seconds[candidate] for candidate in candidates}


def _time(step: Callable[[], None], device: str) -> float:
    _synchronize(device)
    begin = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
