"""The first half of factor transfer: an autoencoder of the teacher's features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.objectives.shapes import average


class FTParaphraser(Method, name="ft_paraphraser"):
    """Learn to paraphrase the teacher's features, so that `ft` can transfer the paraphrase.

    Paper: Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018.
    Equation: mean over samples and elements of (P(F_t) - F_t)^2. P is three 3x3 convolutions to k times the channels
    and three transposed ones back, each followed by a leaky ReLU of slope 0.1.
    Labels: not used.
    Use: in a stage of its own, which leaves the student as it is; a later stage has `ft`.
    Official: the authors' code takes the absolute error (`error: absolute`); RepDistiller the squared one, as the
    paper.
    Weight: 1.
    Cost: about 18 (1 + k + k^2) C^2 parameters, in training only.
    Fails when: it is trained for so short a time that the factors say little of the teacher.

    Args:
        teacher_tap: module path in the teacher, or "auto" for its last stage, as published.
        rate: k, the channels of a factor over those of the teacher; 0.5 is the authors' default.
        batch_norm: a batch norm before each activation; off in the authors' code and in RepDistiller.
        error: "squared" or "absolute", see above.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False
    trains_student = False

    def __init__(
        self,
        teacher_tap: str = "auto",
        rate: float = 0.5,
        batch_norm: bool = False,
        error: Literal["squared", "absolute"] = "squared",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if error not in ("squared", "absolute"):
            raise ValueError(f"error is '{error}'; it must be 'squared' or 'absolute'")
        self.teacher_tap, self.rate, self.batch_norm = teacher_tap, checked_rate(rate), batch_norm
        self.error = error

    def wire(self, wiring: Wiring) -> None:
        """Resolve the tap and size the paraphraser."""
        teacher = wiring.teacher_map(self.teacher_tap, method=self.name)
        self.place, width = teacher.name, teacher.shape[0]
        factors = factor_width(width, self.rate)
        self.encoder = encoder(width, factors, batch_norm=self.batch_norm)
        self.decoder = _layers(
            nn.ConvTranspose2d, (factors, factors, width, width), batch_norm=self.batch_norm
        )
        wiring.notes.append(f"factors of teacher '{self.place}': {factors} of {width} channels")

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the samples."""
        features = step.teacher.features[self.place]
        paraphrased = self.decoder(self.encoder(features))
        if self.error == "absolute":
            distance = (paraphrased.float() - features.float()).abs()
            return average(distance, step.batch.weight, "mean")
        return objectives.mse(paraphrased, features, weight=step.batch.weight)

    def after_step(self, step: Step) -> None:
        """Give all processes the same running statistics: `ft` reads its factors with them."""
        for buffer in self.buffers():
            if buffer.is_floating_point():
                buffer.copy_(step.gather(buffer.unsqueeze(0)).mean(dim=0))


def encoder(inputs: int, factors: int, *, batch_norm: bool) -> nn.Sequential:
    """Return the paraphraser's first half, which is also the translator's shape.

    Args:
        inputs: channels of the features.
        factors: channels of the factors.
        batch_norm: a batch norm before each activation.
    """
    return _layers(nn.Conv2d, (inputs, inputs, factors, factors), batch_norm=batch_norm)


def factor_width(channels: int, rate: float) -> int:
    """Return the channels of the factors of features with `channels`."""
    return max(1, round(channels * rate))


def checked_rate(rate: float) -> float:
    """Return the rate; refuse one that is not above 0."""
    if not rate > 0:
        raise ValueError(f"rate is {rate}; it must be greater than 0")
    return rate


def _layers(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: Sequence[int], *, batch_norm: bool
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers.append(kind(inputs, outputs, kernel_size=3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)
