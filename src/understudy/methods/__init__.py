"""Methods: one file per published method."""

from understudy.methods.cckd import CCKD
from understudy.methods.crd import CRD
from understudy.methods.fitnet import FitNet
from understudy.methods.ickd import ICKD
from understudy.methods.kd import KD
from understudy.methods.method import Method, Ramp, Step, methods
from understudy.methods.mi_alpha import MIAlpha
from understudy.methods.pkt import PKT
from understudy.methods.rkd import RKD
from understudy.methods.sp import SP
from understudy.methods.supervised import Supervised
from understudy.methods.vid import VID
from understudy.methods.wiring import Wiring
from understudy.teachers.study import Study

__all__ = [
    "CCKD",
    "CRD",
    "ICKD",
    "KD",
    "PKT",
    "RKD",
    "SP",
    "VID",
    "FitNet",
    "MIAlpha",
    "Method",
    "Ramp",
    "Step",
    "Study",
    "Supervised",
    "Wiring",
    "methods",
]
