"""What a trained model is worth and what it costs."""

from understudy.evaluation.classification import (
    PerClass,
    Reliability,
    accuracy,
    classification_metrics,
    expected_calibration_error,
    macro_f1,
    nll,
    per_class,
    reliability,
)
from understudy.evaluation.cost import flops, latency, parameters, size_on_disk
from understudy.evaluation.fidelity import agreement, fidelity_metrics, kl_to_teacher
from understudy.evaluation.geometry import cosine_gap, geometry_metrics
from understudy.evaluation.memory import PeakMemory
from understudy.evaluation.predictions import Predictions, predict

__all__ = [
    "PeakMemory",
    "PerClass",
    "Predictions",
    "Reliability",
    "accuracy",
    "agreement",
    "classification_metrics",
    "cosine_gap",
    "expected_calibration_error",
    "fidelity_metrics",
    "flops",
    "geometry_metrics",
    "kl_to_teacher",
    "latency",
    "macro_f1",
    "nll",
    "parameters",
    "per_class",
    "predict",
    "reliability",
    "size_on_disk",
]
