"""Methods: one file per published method."""

from understudy.methods.fitnet import FitNet
from understudy.methods.kd import KD
from understudy.methods.method import Method, Ramp, Step, methods
from understudy.methods.supervised import Supervised
from understudy.methods.wiring import Wiring
from understudy.teachers.study import Study

__all__ = ["KD", "FitNet", "Method", "Ramp", "Step", "Study", "Supervised", "Wiring", "methods"]
