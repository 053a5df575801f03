"""Attention transfer: where feature maps are active."""

from __future__ import annotations

from typing import Literal

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring
from understudy.models.projectors import to_smaller


class AT(Method, name="at"):
    """Match where the teacher's feature maps are active.

    Paper: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, equation 2.
    Equation: sum over pairs of maps, mean over samples and places of (q_s - q_t)^2, where q is the unit vector of the
    mean over channels of |F|^p at each place.
    Labels: not used.
    Official: the paper's distance is |q_s - q_t|_2 (`form: paper`); the authors' code takes the mean of the squares
    (`form: code`), and so do RepDistiller and mdistiller.
    Weight: 1000 with `form: code`, in all three, for maps from 32 x 32 to 8 x 8. The value grows as places become
    fewer: on maps of 8 x 8 to 2 x 2 a weight of 10 does, and 1000 drowns every other loss.
    Cost: none beside the maps that are kept.
    Fails when: the student has another idea of where to look, as a network with a larger receptive field has, or maps
    have so few places that each is always active.

    Args:
        student_taps: module paths in the student, or "auto" for the last stage at each resolution, as published.
        teacher_taps: as many paths in the teacher, or "auto" for the stages that correspond.
        form: "code" or "paper", see above; "code" is what published weights go with.
        power: p, at least 1; 2 in the paper and in all code.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        form: Literal["code", "paper"] = "code",
        power: float = 2.0,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if form not in ("code", "paper"):
            raise ValueError(f"form is '{form}'; it must be 'code' or 'paper'")
        if not power >= 1:
            raise ValueError(f"power is {power}; it must be at least 1")
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        self.form, self.power = form, power

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps."""
        pairs = wiring.maps(self.student_taps, self.teacher_taps, method=self.name, places=2)
        self.places = [(student.name, teacher.name) for student, teacher in pairs]

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over the pairs of the mean over the samples."""
        return torch.stack(
            [
                objectives.attention_transfer(
                    *to_smaller(*step.features(*place)),
                    form=self.form,
                    power=self.power,
                    weight=step.batch.weight,
                )
                for place in self.places
            ]
        ).sum()
