"""Objectives of information theory that compare no two distributions of the same sample."""

from understudy.objectives.information.conditional import (
    class_centroids,
    class_sums,
    conditional_mutual_information,
)
from understudy.objectives.information.mutual_information import mi_alpha

__all__ = ["class_centroids", "class_sums", "conditional_mutual_information", "mi_alpha"]
