"""Methods: one file per published method."""

from understudy.methods.cka import CKA
from understudy.methods.feature_gram import FeatureGram
from understudy.methods.fitnet import FitNet
from understudy.methods.kd import KD
from understudy.methods.method import Method, Ramp, Step, methods
from understudy.methods.pkd import PKD
from understudy.methods.procrustes import Procrustes
from understudy.methods.supervised import Supervised
from understudy.methods.wiring import Wiring
from understudy.teachers.study import Study

__all__ = [
    "CKA",
    "KD",
    "PKD",
    "FeatureGram",
    "FitNet",
    "Method",
    "Procrustes",
    "Ramp",
    "Step",
    "Study",
    "Supervised",
    "Wiring",
    "methods",
]
