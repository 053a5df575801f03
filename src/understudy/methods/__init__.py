"""Methods: one file per published method."""

from understudy.methods.ab import AB
from understudy.methods.at import AT
from understudy.methods.cka import CKA
from understudy.methods.cwd import CWD
from understudy.methods.feature_gram import FeatureGram
from understudy.methods.fitnet import FitNet
from understudy.methods.fsp import FSP
from understudy.methods.ft import FT
from understudy.methods.ft_paraphraser import FTParaphraser
from understudy.methods.kd import KD
from understudy.methods.method import Method, Ramp, Step, methods
from understudy.methods.mgd import MGD
from understudy.methods.nst import NST
from understudy.methods.ofd import OFD
from understudy.methods.pkd import PKD
from understudy.methods.procrustes import Procrustes
from understudy.methods.supervised import Supervised
from understudy.methods.wiring import Wiring
from understudy.teachers.study import Study

__all__ = [
    "AB",
    "AT",
    "CKA",
    "CWD",
    "FSP",
    "FT",
    "KD",
    "MGD",
    "NST",
    "OFD",
    "PKD",
    "FTParaphraser",
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
