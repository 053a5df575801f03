"""FitNets: hints from the teacher's middle."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring


class FitNet(Method, name="fitnet"):
    """Regress a middle feature of the teacher from one of the student.

    Paper: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3.
    Equation: mean over samples and elements of (r(F_s) - F_t)^2 with a learned 1x1 convolution (linear map) r.
    Deviation: mean instead of half the sum over elements, so that the size does not depend on the map.
    Labels: not used.
    Use: as a stage of its own before distilling (the paper's two stages) or added to `kd` and `supervised`.
    Cost: a 1x1 convolution (linear map) of student width x teacher width, in training only.
    Fails when: the hint lies so deep that the student is bound to the teacher's exact features.

    Args:
        student_tap: module path in the student, or "auto" for the middle stage.
        teacher_tap: module path in the teacher, or "auto" for the stage that corresponds.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(self, student_tap: str = "auto", teacher_tap: str = "auto") -> None:
        """Keep the configuration."""
        super().__init__()
        self.student_tap = student_tap
        self.teacher_tap = teacher_tap

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and size the regressor."""
        student, teacher = wiring.pair(self.student_tap, self.teacher_tap)
        self.places = (student.name, teacher.name)
        self.projector = wiring.projector(student, teacher)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the samples."""
        student, teacher = self.projector(*step.features(*self.places))
        return objectives.mse(student, teacher, weight=step.weight_of(student))
