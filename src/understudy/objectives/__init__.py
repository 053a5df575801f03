"""Objectives: pure functions from student and teacher tensors to a loss."""

from understudy.objectives.feature import mse
from understudy.objectives.response import cross_entropy, kd

__all__ = ["cross_entropy", "kd", "mse"]
