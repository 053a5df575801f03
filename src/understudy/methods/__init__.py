"""Methods: one file per published method."""

from understudy.methods.fitnet import FitNet
from understudy.methods.kd import KD
from understudy.methods.ktaad import KTAAD, KTAADTranslator
from understudy.methods.method import Method, Ramp, Step, methods
from understudy.methods.minilm import MiniLM
from understudy.methods.ofa import OFA
from understudy.methods.pad import PAD
from understudy.methods.review import Review
from understudy.methods.sinkd import SinKD
from understudy.methods.srd import SRD
from understudy.methods.supervised import Supervised
from understudy.methods.uskd import USKD
from understudy.methods.wiring import Wiring

__all__ = [
    "KD",
    "KTAAD",
    "OFA",
    "PAD",
    "SRD",
    "USKD",
    "FitNet",
    "KTAADTranslator",
    "Method",
    "MiniLM",
    "Ramp",
    "Review",
    "SinKD",
    "Step",
    "Supervised",
    "Wiring",
    "methods",
]
