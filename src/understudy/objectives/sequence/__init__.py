"""Objectives on the next-token distributions of sequences."""

from understudy.objectives.sequence.kullback_leibler import (
    adaptive_kl,
    forward_kl,
    reverse_kl,
    symmetric_kl,
)
from understudy.objectives.sequence.mixtures import (
    jensen_shannon,
    skewed_forward_kl,
    skewed_reverse_kl,
)
from understudy.objectives.sequence.powers import alpha_beta, total_variation

__all__ = [
    "adaptive_kl",
    "alpha_beta",
    "forward_kl",
    "jensen_shannon",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "symmetric_kl",
    "total_variation",
]
