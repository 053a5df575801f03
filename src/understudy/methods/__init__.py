"""Methods: one file per published method."""

from understudy.methods.cka import CKA
from understudy.methods.feature_gram import FeatureGram
from understudy.methods.fitnet import FitNet
from understudy.methods.kd import KD
from understudy.methods.ktaad import KTAAD, KTAADTranslator
from understudy.methods.method import Method, Ramp, Step, methods
from understudy.methods.minilm import MiniLM
from understudy.methods.ofa import OFA
from understudy.methods.pad import PAD
from understudy.methods.pkd import PKD
from understudy.methods.procrustes import Procrustes
from understudy.methods.review import Review
from understudy.methods.sinkd import SinKD
from understudy.methods.srd import SRD
from understudy.methods.supervised import Supervised
from understudy.methods.uskd import USKD
from understudy.methods.wiring import Wiring
from understudy.teachers.study import Study

__all__ = [
    "CKA",
    "KD",
    "KTAAD",
    "OFA",
    "PAD",
    "PKD",
    "SRD",
    "USKD",
    "FeatureGram",
    "FitNet",
    "KTAADTranslator",
    "Method",
    "MiniLM",
    "Procrustes",
    "Ramp",
    "Review",
    "SinKD",
    "Step",
    "Study",
    "Supervised",
    "Wiring",
    "methods",
]
