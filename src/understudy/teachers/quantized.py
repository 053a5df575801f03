"""A teacher whose linear layers compute in 8-bit integers."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from understudy.errors import PreflightError


def quantized(module: nn.Module) -> nn.Module:
    """Return a copy of a model whose linear layers compute in int8; the model itself is left alone.

    PyTorch's dynamic quantisation: weights in int8, with one scale for each layer; activations in 8 bits with a scale
    for each call. Everything else (convolutions, embeddings, attention products, norms) stays float32.

    Args:
        module: the model, on the CPU. Paths stay as they are, so that taps fit.

    Raises:
        PreflightError: it is not on the CPU, or has no linear layer but its last.
    """
    if any(parameter.device.type != "cpu" for parameter in module.parameters()):
        raise PreflightError(
            "teacher.precision is int8, which PyTorch computes on a CPU only. Use bf16 on this device."
        )
    if sum(type(part) is nn.Linear for part in module.modules()) < 2:
        raise PreflightError(
            "teacher.precision is int8, but the teacher has no linear layers that could be computed so, "
            "apart from its classifier. Use bf16, or leave it out."
        )
    with warnings.catch_warnings():
        # The function is to move to torchao; what is there was slower on a CPU than the float32 model.
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(  # type: ignore[no-any-return]
            copy.deepcopy(module).eval(), {nn.Linear}, dtype=torch.qint8
        )
