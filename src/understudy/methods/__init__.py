"""Methods: one file per published method."""

from understudy.methods.ab import AB
from understudy.methods.at import AT
from understudy.methods.cka import CKA
from understudy.methods.cwd import CWD
from understudy.methods.dist import DIST
from understudy.methods.dkd import DKD
from understudy.methods.feature_gram import FeatureGram
from understudy.methods.fitnet import FitNet
from understudy.methods.fsp import FSP
from understudy.methods.ft import FT
from understudy.methods.ft_paraphraser import FTParaphraser
from understudy.methods.kd import KD
from understudy.methods.logit_standardised_kd import LogitStandardisedKD
from understudy.methods.method import Method, Ramp, Step, methods
from understudy.methods.mgd import MGD
from understudy.methods.nkd import NKD
from understudy.methods.nst import NST
from understudy.methods.ofd import OFD
from understudy.methods.pkd import PKD
from understudy.methods.procrustes import Procrustes
from understudy.methods.skd import SKD
from understudy.methods.sskd import SSKD
from understudy.methods.sskd_head import SSKDHead
from understudy.methods.supervised import Supervised
from understudy.methods.tf_kd import TfKD
from understudy.methods.wiring import Wiring
from understudy.teachers.study import Study

__all__ = [
    "AB",
    "AT",
    "CKA",
    "CWD",
    "DIST",
    "DKD",
    "FSP",
    "FT",
    "KD",
    "MGD",
    "NKD",
    "NST",
    "OFD",
    "PKD",
    "SKD",
    "SSKD",
    "FTParaphraser",
    "FeatureGram",
    "FitNet",
    "LogitStandardisedKD",
    "Method",
    "Procrustes",
    "Ramp",
    "SSKDHead",
    "Step",
    "Study",
    "Supervised",
    "TfKD",
    "Wiring",
    "methods",
]
