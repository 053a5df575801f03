"""Variational information distillation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, TapShape, Wiring


class VID(Method, name="vid"):
    """Predict the teacher's features from the student's, with a learnt variance for each channel.

    Paper: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, section
    2. But for a constant, minus the loss is a lower bound on what the student's features know of the teacher's.
    Equation: mean over samples and elements of ((t - mu(s))^2 / v + log v) / 2, v = softplus(a) + eps for each channel,
    mu three 1x1 convolutions (linear maps) with ReLU between them; summed over pairs of taps.
    Labels: not used.
    Weight: 1, beside `supervised` at 1 (RepDistiller and mdistiller on CIFAR-100).
    Deviation: a mean over elements instead of a sum, as in RepDistiller, so that the size does not depend on the map.
    Cost: for each pair C_s C_t + 2 C_t^2 weights at every place of the map, in training only.
    Fails when: the loss goes below 0, which is right: it is a negative log-density, and variances may fall below 1.
    Where the teacher's channels are nearly constant it follows them down to log eps / 2.

    Args:
        student_taps: module paths in the student, or "auto" for the deepest stage at each resolution (every block of a
            model without maps).
        teacher_taps: as many in the teacher, or "auto" for the stages that correspond.
        initial_variance: v at the start; 5 in RepDistiller.
        eps: least variance; 1e-5 in RepDistiller.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        initial_variance: float = 5.0,
        eps: float = 1e-5,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not 0 < eps < initial_variance:
            raise ValueError(
                f"eps is {eps} and initial_variance {initial_variance}; they must obey 0 < eps < initial_variance"
            )
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        self.initial_variance, self.eps = initial_variance, eps

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and size the regressors."""
        pairs = wiring.pairs(self.student_taps, self.teacher_taps)
        self.places = [(student.name, teacher.name) for student, teacher in pairs]
        self.regressors = nn.ModuleList()
        self.spreads = nn.ParameterList()
        # The inverse of v = softplus(a) + eps, in a form that cannot overflow.
        above = self.initial_variance - self.eps
        start = above + math.log(-math.expm1(-above))
        for student, teacher in pairs:
            projector = wiring.projector(student, teacher)
            projector.map = _regressor(student, teacher, on_map=projector.form == "map")
            self.regressors.append(projector)
            self.spreads.append(nn.Parameter(torch.full((teacher.width,), start)))

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over the taps of the mean over the samples."""
        terms = []
        for place, regressor, spread in zip(
            self.places, self.regressors, self.spreads, strict=True
        ):
            features, teacher = step.features(*place)
            mean, teacher = regressor(features, teacher)
            variance = F.softplus(spread) + self.eps
            # Of a token sequence the last dimension is the channels'.
            variance = variance.view(1, 1, -1) if mean.dim() == 3 else variance
            terms.append(
                objectives.vid(mean, teacher, variance=variance, weight=step.weight_of(mean))
            )
        return torch.stack(terms).sum()


def _regressor(student: TapShape, teacher: TapShape, *, on_map: bool) -> nn.Sequential:
    """Return three layers without bias that act at every place (token), as wide as the teacher."""

    def layer(inputs: int) -> nn.Module:
        if on_map:
            return nn.Conv2d(inputs, teacher.width, kernel_size=1, bias=False)
        return nn.Linear(inputs, teacher.width, bias=False)

    return nn.Sequential(
        layer(student.width), nn.ReLU(), layer(teacher.width), nn.ReLU(), layer(teacher.width)
    )
