"""Divergences of two distributions with their gradients in closed form, for use without autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Name = Literal[
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
]


@dataclass(frozen=True, slots=True)
class Divergence:
    """A divergence D of the teacher p and the student q, by the name and keywords of its objective on logits.

    Raises:
        ValueError: there is none of this name, or a number is out of its range.
    """

    name: Name
    beta: float = 0.5
    normalised: bool = False
    skew: float = 0.1

    def __post_init__(self) -> None:
        """Refuse unknown names and numbers out of range."""
        if self.name not in get_args(Name):
            known = ", ".join(f"'{name}'" for name in get_args(Name))
            raise ValueError(f"divergence is '{self.name}'; it must be one of {known}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; it must lie between 0 and 1")
        if not 0 <= self.skew < 1:
            raise ValueError(f"skew is {self.skew}; it must be at least 0 and below 1")

    @property
    def kind(self) -> Name:
        """The name, where the ends of a range are other divergences: that one's."""
        if self.name == "skewed_forward_kl" and self.skew == 0:
            return "forward_kl"
        if self.name == "skewed_reverse_kl" and self.skew == 0:
            return "reverse_kl"
        if self.name == "jensen_shannon" and self.beta in (0, 1):
            return "forward_kl" if self.beta == 0 else "reverse_kl"
        return self.name


def value_and_gradient(
    divergence: Divergence, log_p: torch.Tensor, log_q: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return D [N], its gradient [N, C] with respect to logits z with log q = log softmax(z), and q [N, C].

    With g = dD/dq up to a constant for each row, the gradient is q * (g - sum q g); for the forward divergence
    g = -p / q, and the gradient is q - p.

    Args:
        divergence: which one.
        log_p: [N, C], the teacher's logarithms, finite. They are overwritten.
        log_q: [N, C], the student's logarithms, finite. They are overwritten.
    """
    if divergence.kind == "forward_kl":
        p = log_p.exp()
        value = row_dot(p, log_p.sub_(log_q))
        q = log_q.exp_()
        return value, torch.sub(q, p, out=p), q
    if divergence.kind == "reverse_kl":
        slope = torch.sub(log_q, log_p, out=log_p)
        q = log_q.exp_()
        value = row_dot(q, slope)
        return value, slope.sub_(value.unsqueeze(-1)).mul_(q), q
    if divergence.kind == "total_variation":
        p, q = log_p.exp_(), log_q.exp_()
        gap = torch.sub(q, p, out=p)
        value = 0.5 * gap.abs().sum(dim=-1)
        return value, _through_softmax(gap.sign_().mul_(0.5), q), q
    if divergence.kind == "jensen_shannon":
        return _jensen_shannon(divergence, log_p, log_q)
    if divergence.kind == "skewed_forward_kl":
        log_m = _log_mixture(log_p, log_q, divergence.skew)
        p, gap = log_p.exp(), log_p.sub_(log_m)
        value = row_dot(p, gap)
        # p / m is at most 1 / skew.
        slope = gap.exp_().mul_(divergence.skew - 1)
        q = log_q.exp_()
        return value, _through_softmax(slope, q), q
    log_m = _log_mixture(log_q, log_p, divergence.skew)
    q, gap = log_q.exp(), log_q.sub_(log_m)
    value = row_dot(q, gap)
    # q / m is at most 1 / skew.
    slope = gap.sub_(gap.exp().mul_(divergence.skew))
    return value, _through_softmax(slope, q), q


def _jensen_shannon(
    divergence: Divergence, log_p: torch.Tensor, log_q: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Jensen-Shannon: the parts of dD/dq that come through the mixture add up to a constant."""
    beta = divergence.beta
    of_p, of_q = beta, 1 - beta
    if divergence.normalised:
        of_p, of_q = 1 / (1 - beta), 1 / beta
    log_m = _log_mixture(log_p, log_q, beta)
    p, q = log_p.exp(), log_q.exp()
    value_p = row_dot(p, log_p.sub_(log_m))
    slope = log_q.sub_(log_m)
    value_q = row_dot(q, slope)
    gradient = slope.sub_(value_q.unsqueeze(-1)).mul_(q).mul_(of_q)
    return of_p * value_p + of_q * value_q, gradient, q


def _through_softmax(slope: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return q * (slope - sum q slope), in the memory of the slope."""
    return slope.sub_(row_dot(q, slope).unsqueeze(-1)).mul_(q)


def _log_mixture(log_p: torch.Tensor, log_q: torch.Tensor, share: float) -> torch.Tensor:
    """Return log(share * p + (1 - share) * q) for a share within (0, 1)."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def row_dot(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Return the inner products [N] of rows [N, C]."""
    found: torch.Tensor = torch.linalg.vecdot(one, two)
    return found
