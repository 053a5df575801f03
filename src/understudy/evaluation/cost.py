"""What a model costs: parameters, FLOPs, latency and size on disk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models.outputs import call

_MINIMAL_RUNS = 5
_WARM_SHARE = 0.2


def parameters(module: nn.Module) -> int:
    """Return the number of parameters; one that is used in several places counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def flops(module: nn.Module, inputs: Any) -> int:
    """Return the floating-point operations of one forward pass, per sample.

    Counted by torch's `FlopCounterMode` on `inputs`, in evaluation mode, and divided by the batch
    size. Matrix products, convolutions and attention are counted, with 2 FLOPs for a multiply-add
    (papers that report "MACs" have half as many); element-wise work such as activations and
    normalisation is not.

    Args:
        module: the plain network (not compiled, not wrapped for distribution).
        inputs: what its forward takes, a tensor [B, ...] or a mapping of keywords, on the module's
            device.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    # Attention on the CPU, which the counter knows by itself from torch 2.15 on.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(
        display=False,
        custom_mapping={attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)},
    )
    with evaluating(module), torch.no_grad(), _countable_kernels(), counter:
        call(module, inputs)
    return int(counter.get_total_flops()) // batch_size(inputs)


def latency(
    module: nn.Module,
    make_inputs: Callable[[int], Any],
    batch_sizes: Sequence[int] = (1, 64),
    budget_seconds: float = 2.0,
) -> dict[str, float]:
    """Return the median time of one warm forward pass in milliseconds, for each batch size.

    Each batch size gets an equal part of the budget, a fifth of it for warming up; at least five
    passes are timed even if they take longer. Accelerators are waited for before the clock is read.

    Args:
        module: the network, on the device that is to be measured.
        make_inputs: batch size -> what the network's forward takes, on that device.
        batch_sizes: how many samples to pass at once.
        budget_seconds: for all batch sizes together.

    Returns:
        batch size as text -> milliseconds per batch, the form that `metrics.jsonl` has.
    """
    if budget_seconds <= 0:
        raise ValueError(f"budget_seconds must be positive, not {budget_seconds}.")
    wait = _waiter(module)
    medians: dict[str, float] = {}
    with evaluating(module), torch.inference_mode():
        for size in batch_sizes:
            inputs = make_inputs(size)
            share = budget_seconds / len(batch_sizes)
            _timed_runs(module, inputs, wait, share * _WARM_SHARE, minimum=2)
            times = _timed_runs(
                module, inputs, wait, share * (1 - _WARM_SHARE), minimum=_MINIMAL_RUNS
            )
            medians[str(size)] = statistics.median(times) * 1000
    return medians


def size_on_disk(folder: str | Path) -> int:
    """Return the bytes of all files in `folder` and below (or of the one file that it is)."""
    path = Path(folder)
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        raise ModelError(f"There is no folder '{path}' whose size could be measured.")
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` into evaluation mode for the block and give every submodule its own flag back.

    Submodules are remembered one by one, because parts of a model (frozen BatchNorm) may be in
    another mode than the whole.
    """
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def batch_size(inputs: Any) -> int:
    """Return the first dimension of `inputs` (a tensor, or the first tensor of a mapping)."""
    candidates = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    for candidate in candidates:
        if isinstance(candidate, torch.Tensor) and candidate.ndim > 0:
            return len(candidate)
    raise ModelError(
        f"No tensor with a batch dimension in the inputs of type {type(inputs).__name__}."
    )


@contextmanager
def _countable_kernels() -> Iterator[None]:
    """Keep fused kernels away that the counter does not see into and would count as nothing.

    These are the fast path of transformer layers in evaluation mode, and the recurrent kernels of
    oneDNN and cuDNN.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    one_dnn, cudnn = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.backends.mkldnn.enabled = one_dnn
        torch.backends.cudnn.enabled = cudnn


def _timed_runs(
    module: nn.Module, inputs: Any, wait: Callable[[], None], seconds: float, minimum: int
) -> list[float]:
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < minimum or time.perf_counter() - begin < seconds:
        wait()
        before = time.perf_counter()
        call(module, inputs)
        wait()
        times.append(time.perf_counter() - before)
    return times


def _waiter(module: nn.Module) -> Callable[[], None]:
    device = next((value.device for value in chain(module.parameters(), module.buffers())), None)
    if device is None or device.type == "cpu" or not torch.accelerator.is_available():
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)
