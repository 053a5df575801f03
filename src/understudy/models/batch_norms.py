"""What the batch norm before an activation says about the features that go into it."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from understudy.errors import ModelError
from understudy.models.description import ACTIVATIONS, ModelDescription
from understudy.models.taps import Tap, unwrap

RARE = 0.001
"""Share of negative values up to which -3 standard deviations stand for their mean, as in the overhaul's code."""


def expected_negative(norm: nn.Module) -> torch.Tensor:
    """Return E[x | x < 0] per channel, float32 [C] on the CPU, for what a batch norm gives, taken as normal.

    The mean is the batch norm's shift b, the standard deviation its scale s; then the value is b - s phi(b / s) /
    Phi(-b / s), and -3 s where less than `RARE` of the mass is negative. A channel of scale 0 is constant: its value is
    b, at most 0.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, equation 3, and their code.

    Raises:
        ModelError: the module is no batch norm.
    """
    if not isinstance(norm, _BatchNorm):
        raise ModelError(
            f"A {type(norm).__name__} is no batch norm; its scale and shift are asked for."
        )
    ones, zeros = torch.ones(norm.num_features), torch.zeros(norm.num_features)
    scale = ones if norm.weight is None else norm.weight.detach().abs()
    shift = zeros if norm.bias is None else norm.bias.detach()
    spread, mean = scale.cpu().double(), shift.cpu().double()
    still = spread == 0
    ratio = mean / torch.where(still, 1.0, spread)
    # phi / Phi through logarithms, which do not underflow far from zero.
    log_density = -0.5 * ratio.square() - 0.5 * math.log(2 * math.pi)
    log_share = torch.special.log_ndtr(-ratio)
    expected = mean - spread * torch.exp(log_density - log_share)
    expected = torch.where(log_share > math.log(RARE), expected, -3 * spread)
    return torch.where(still, mean.clamp_max(0), expected).float()


def batch_norm_before(
    module: nn.Module, description: ModelDescription, tap: str, channels: int
) -> str | None:
    """Return the path of the batch norm whose output reaches a place before an activation; None without one.

    Of the batch norms that ran since the last activation it is the first. In a residual block that is the one of the
    main branch, which the overhaul's code takes: a shortcut runs before the branch or after it.

    Args:
        module: the model.
        description: the model's description.
        tap: the place.
        channels: its channels.
    """
    modules: dict[str, nn.Module] = dict(unwrap(module).named_modules())
    place, order = Tap.parse(tap), description.order
    calls = [number for number, path in enumerate(order) if path == place.path]
    end = calls[-1 if place.call is None else place.call]
    if place.side == "input":
        for path, part in modules.items():
            # Some batch norms hold the activation that follows them, such as timm's.
            if isinstance(part, _BatchNorm) and place.path.startswith(f"{path}."):
                return path
    ran = order[: end + (place.side == "output")]
    found: list[str] = []
    for path in reversed(ran):
        part = modules[path]
        if type(part).__name__ in ACTIVATIONS:
            own = [norm for norm in found if not path.startswith(f"{norm}.")]
            return own[-1] if own else None
        if isinstance(part, _BatchNorm) and part.num_features == channels:
            found.append(path)
    return found[0] if found else None
