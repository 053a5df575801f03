"""Objectives on features: one layer of the student against one of the teacher."""

from understudy.objectives.feature.assignments import subclass_scores, visual_words
from understudy.objectives.feature.attention_maps import attention_transfer
from understudy.objectives.feature.boundaries import activation_boundaries, ofd
from understudy.objectives.feature.channels import cwd
from understudy.objectives.feature.factors import factor_transfer, knowledge_translation
from understudy.objectives.feature.flow import fsp
from understudy.objectives.feature.gram import feature_gram
from understudy.objectives.feature.hashing import lsh, lsh_bias
from understudy.objectives.feature.hierarchy import review
from understudy.objectives.feature.kernel_alignment import cka
from understudy.objectives.feature.log_sum import srd
from understudy.objectives.feature.penalty import norm_penalty
from understudy.objectives.feature.procrustes import procrustes
from understudy.objectives.feature.selectivity import nst
from understudy.objectives.feature.squared_error import mgd, mse, normalised_mse
from understudy.objectives.feature.token import cosine, feature_cross_entropy
from understudy.objectives.feature.uncertainty import pad, vid

__all__ = [
    "activation_boundaries",
    "attention_transfer",
    "cka",
    "cosine",
    "cwd",
    "factor_transfer",
    "feature_cross_entropy",
    "feature_gram",
    "fsp",
    "knowledge_translation",
    "lsh",
    "lsh_bias",
    "mgd",
    "mse",
    "norm_penalty",
    "normalised_mse",
    "nst",
    "ofd",
    "pad",
    "procrustes",
    "review",
    "srd",
    "subclass_scores",
    "vid",
    "visual_words",
]
