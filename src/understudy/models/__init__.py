"""Models: the zoo, taps, projectors, weights, saving and export."""

from understudy.models.build import build, live, names
from understudy.models.model import Model

__all__ = ["Model", "build", "live", "names"]
