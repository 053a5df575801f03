"""Methods: one file per published method."""

from understudy.methods.ab import AB
from understudy.methods.at import AT
from understudy.methods.cckd import CCKD
from understudy.methods.cka import CKA
from understudy.methods.crd import CRD
from understudy.methods.cwd import CWD
from understudy.methods.dino import DINO
from understudy.methods.dist import DIST
from understudy.methods.dkd import DKD
from understudy.methods.dpo import DPO
from understudy.methods.feature_gram import FeatureGram
from understudy.methods.fitnet import FitNet
from understudy.methods.fsp import FSP
from understudy.methods.ft import FT
from understudy.methods.ft_paraphraser import FTParaphraser
from understudy.methods.gkd import GKD
from understudy.methods.gold import GOLD
from understudy.methods.ickd import ICKD
from understudy.methods.kd import KD
from understudy.methods.kd_layer import VisualWordLayer
from understudy.methods.kd_layer_subclass import SubClassLayer
from understudy.methods.kdrl import KDRL
from understudy.methods.ktaad import KTAAD
from understudy.methods.ktaad_translator import KTAADTranslator
from understudy.methods.lelp import LELP
from understudy.methods.logit_standardised_kd import LogitStandardisedKD
from understudy.methods.method import Method, Ramp, methods
from understudy.methods.mgd import MGD
from understudy.methods.mi_alpha import MIAlpha
from understudy.methods.minillm import MiniLLM
from understudy.methods.minilm import MiniLM
from understudy.methods.nkd import NKD
from understudy.methods.nst import NST
from understudy.methods.ofa import OFA
from understudy.methods.ofd import OFD
from understudy.methods.pad import PAD
from understudy.methods.pkd import PKD
from understudy.methods.pkt import PKT
from understudy.methods.procrustes import Procrustes
from understudy.methods.review import Review
from understudy.methods.rkd import RKD
from understudy.methods.simclr import SimCLR
from understudy.methods.sinkd import SinKD
from understudy.methods.skd import SKD
from understudy.methods.sp import SP
from understudy.methods.srd import SRD
from understudy.methods.sskd import SSKD
from understudy.methods.sskd_head import SSKDHead
from understudy.methods.step import Step
from understudy.methods.supervised import Supervised
from understudy.methods.tcs import TCS
from understudy.methods.tf_kd import TfKD
from understudy.methods.token_kd import TokenKD
from understudy.methods.uld import ULD
from understudy.methods.uskd import USKD
from understudy.methods.vid import VID
from understudy.methods.wiring import Wiring
from understudy.teachers.listening import Route
from understudy.teachers.study import Study

__all__ = [
    "AB",
    "AT",
    "CCKD",
    "CKA",
    "CRD",
    "CWD",
    "DINO",
    "DIST",
    "DKD",
    "DPO",
    "FSP",
    "FT",
    "GKD",
    "GOLD",
    "ICKD",
    "KD",
    "KDRL",
    "KTAAD",
    "LELP",
    "MGD",
    "NKD",
    "NST",
    "OFA",
    "OFD",
    "PAD",
    "PKD",
    "PKT",
    "RKD",
    "SKD",
    "SP",
    "SRD",
    "SSKD",
    "TCS",
    "ULD",
    "USKD",
    "VID",
    "FTParaphraser",
    "FeatureGram",
    "FitNet",
    "KTAADTranslator",
    "LogitStandardisedKD",
    "MIAlpha",
    "Method",
    "MiniLLM",
    "MiniLM",
    "Procrustes",
    "Ramp",
    "Review",
    "Route",
    "SSKDHead",
    "SimCLR",
    "SinKD",
    "Step",
    "Study",
    "SubClassLayer",
    "Supervised",
    "TfKD",
    "TokenKD",
    "VisualWordLayer",
    "Wiring",
    "methods",
]
