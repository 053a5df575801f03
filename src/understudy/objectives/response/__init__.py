"""Objectives on logits."""

from understudy.objectives.response.correlation import dist
from understudy.objectives.response.decoupled import dkd, nkd, ofa, weighted_soft_labels
from understudy.objectives.response.logits import binary_kd, logit_mse, multi_label_kd
from understudy.objectives.response.self_distillation import dino, label_smoothing_teacher, uskd
from understudy.objectives.response.softened import kd, logit_standardised_kd, soft_cross_entropy
from understudy.objectives.response.subclasses import subclass_logits
from understudy.objectives.response.supervised import cross_entropy
from understudy.objectives.response.top_k import (
    kd_top_k,
    top_k_divergence,
)
from understudy.objectives.response.transport import sinkhorn, sinkhorn_per_sample

__all__ = [
    "binary_kd",
    "cross_entropy",
    "dino",
    "dist",
    "dkd",
    "kd",
    "kd_top_k",
    "label_smoothing_teacher",
    "logit_mse",
    "logit_standardised_kd",
    "multi_label_kd",
    "nkd",
    "ofa",
    "sinkhorn",
    "sinkhorn_per_sample",
    "soft_cross_entropy",
    "subclass_logits",
    "top_k_divergence",
    "uskd",
    "weighted_soft_labels",
]
