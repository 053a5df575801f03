"""Text that a model writes: from a module here, or from a server; and data sets made of it."""

from understudy.sampling.filters import Filter, Finished, Length, RightAnswer, Unlike, Unseen
from understudy.sampling.model import ModelSampler
from understudy.sampling.records import Prompt, Written
from understudy.sampling.server import ServerSampler
from understudy.sampling.settings import Sample, Sampler, Sampling
from understudy.sampling.written import write

__all__ = [
    "Filter",
    "Finished",
    "Length",
    "ModelSampler",
    "Prompt",
    "RightAnswer",
    "Sample",
    "Sampler",
    "Sampling",
    "ServerSampler",
    "Unlike",
    "Unseen",
    "Written",
    "write",
]
