"""Objectives on the next-token distributions of sequences."""

from understudy.objectives.sequence.across_vocabularies import (
    gold,
    uld,
)
from understudy.objectives.sequence.kullback_leibler import (
    adaptive_kl,
    forward_kl,
    reverse_kl,
    symmetric_kl,
)
from understudy.objectives.sequence.minillm import (
    minillm,
    minillm_advantages,
    returns_to_go,
    teacher_mixed_importance,
    whitened,
)
from understudy.objectives.sequence.mixtures import (
    jensen_shannon,
    skewed_forward_kl,
    skewed_reverse_kl,
)
from understudy.objectives.sequence.policy import (
    annealed_coefficient,
    clipped_policy,
    distilled_advantages,
    group_advantages,
    kdrl,
    reward_guided_mask,
)
from understudy.objectives.sequence.powers import alpha_beta, total_variation
from understudy.objectives.sequence.sampled import (
    log_ratio,
    sampled_kl,
    token_log_probabilities,
)
from understudy.objectives.sequence.spans import (
    aligned_answers,
    common_spans,
    spans,
)
from understudy.objectives.sequence.weights import (
    sequence_weights,
)

__all__ = [
    "adaptive_kl",
    "aligned_answers",
    "alpha_beta",
    "annealed_coefficient",
    "clipped_policy",
    "common_spans",
    "distilled_advantages",
    "forward_kl",
    "gold",
    "group_advantages",
    "jensen_shannon",
    "kdrl",
    "log_ratio",
    "minillm",
    "minillm_advantages",
    "returns_to_go",
    "reverse_kl",
    "reward_guided_mask",
    "sampled_kl",
    "sequence_weights",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "spans",
    "symmetric_kl",
    "teacher_mixed_importance",
    "token_log_probabilities",
    "total_variation",
    "uld",
    "whitened",
]
