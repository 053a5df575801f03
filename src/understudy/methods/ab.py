"""Activation boundaries: which neurons of the teacher fire."""

from __future__ import annotations

import torch
from torch import nn

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring
from understudy.models.projectors import Connector


class AB(Method, name="ab"):
    """Make the student's neurons fire where the teacher's do, by a margin.

    Paper: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    AAAI 2019.
    Equation: sum over pairs l of n of 2^(l - n), mean over samples of the sum over elements of max(0, m - s)^2 where
    t > 0 and max(0, m + s)^2 where t <= 0; s and t before the activation, s through a connector.
    Labels: not used.
    Use: as a stage of its own before training on labels or with `kd`, as published.
    Weight: 0.003 (the authors' code for CIFAR-10, RepDistiller).
    Cost: a 1x1 convolution of student width x teacher width and a batch norm for each pair whose widths differ, in
    training only.
    Fails when: it is kept on while labels are learnt, or trained so long that the student only repeats which neurons
    fire.

    Args:
        student_taps: module paths in the student, or "auto" for the last stage at each resolution, as published; what
            goes into the activation there is compared.
        teacher_taps: as many paths in the teacher, or "auto" for the stages that correspond.
        margin: m, greater than 0; 1 in the paper and in all code.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        margin: float = 1.0,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not margin > 0:
            raise ValueError(f"margin is {margin}; it must be greater than 0")
        self.student_taps, self.teacher_taps, self.margin = student_taps, teacher_taps, margin

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and size the connectors."""
        pairs = wiring.before_activation(
            wiring.maps(self.student_taps, self.teacher_taps, method=self.name)
        )
        self.places = [(student.name, teacher.name) for student, teacher in pairs]
        self.connectors = nn.ModuleList(
            Connector(student.shape, teacher.shape, always=False) for student, teacher in pairs
        )

    def loss(self, step: Step) -> torch.Tensor:
        """Return the weighted sum over the pairs of the mean over the samples."""
        last = len(self.places) - 1
        return torch.stack(
            [
                2.0 ** (depth - last)
                * objectives.activation_boundaries(
                    *connector(*step.features(*place)),
                    margin=self.margin,
                    weight=step.batch.weight,
                )
                for depth, (connector, place) in enumerate(
                    zip(self.connectors, self.places, strict=True)
                )
            ]
        ).sum()
