"""Objectives that never hold the logits of all tokens: output head and divergence in one, chunk by chunk."""

from understudy.objectives.vocabulary.fused import vocabulary_cross_entropy, vocabulary_divergence
from understudy.objectives.vocabulary.head import Head, LowRank
from understudy.objectives.vocabulary.target import DenseTarget, TopKTarget

__all__ = [
    "DenseTarget",
    "Head",
    "LowRank",
    "TopKTarget",
    "vocabulary_cross_entropy",
    "vocabulary_divergence",
]
