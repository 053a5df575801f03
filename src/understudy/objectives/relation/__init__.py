"""Objectives on relations: between samples of a batch, channels or positions of a map, tokens of a sequence."""

from understudy.objectives.relation.affinity import affinity
from understudy.objectives.relation.angles import rkd_angle
from understudy.objectives.relation.channels import ickd
from understudy.objectives.relation.contrast import info_nce, nt_xent
from understudy.objectives.relation.correlations import channel_correlation, spatial_correlation
from understudy.objectives.relation.distances import rkd_distance
from understudy.objectives.relation.memory import crd, crd_log_normaliser
from understudy.objectives.relation.self_attention import attention_relation, value_relation
from understudy.objectives.relation.self_supervision import (
    sskd_auxiliary,
    sskd_similarity,
    sskd_transformed,
)
from understudy.objectives.relation.similarities import (
    correlation_congruence,
    pkt,
    similarity_preserving,
)
from understudy.objectives.relation.streamlined import skd_direction, skd_instance

__all__ = [
    "affinity",
    "attention_relation",
    "channel_correlation",
    "correlation_congruence",
    "crd",
    "crd_log_normaliser",
    "ickd",
    "info_nce",
    "nt_xent",
    "pkt",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "skd_direction",
    "skd_instance",
    "spatial_correlation",
    "sskd_auxiliary",
    "sskd_similarity",
    "sskd_transformed",
    "value_relation",
]
