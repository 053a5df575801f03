"""Objectives that learn from which of several things is better."""

from understudy.objectives.preference.pairs import (
    dpo,
    sequence_log_probabilities,
    simpo,
)
from understudy.objectives.preference.ranks import (
    plackett_luce,
    rrhf,
    top_k_hinge,
    top_k_ranking,
)
from understudy.objectives.preference.token_pairs import (
    dpkd,
)

__all__ = [
    "dpkd",
    "dpo",
    "plackett_luce",
    "rrhf",
    "sequence_log_probabilities",
    "simpo",
    "top_k_hinge",
    "top_k_ranking",
]
