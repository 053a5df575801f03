"""The second half of factor transfer: the student learns the paraphrase of the teacher's features."""

from __future__ import annotations

from typing import Self

import torch

from understudy import objectives
from understudy.methods.ft_paraphraser import checked_rate, encoder, factor_width
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.models.projectors import to_smaller


class FT(Method, name="ft"):
    """Translate the student's features into factors that match the paraphrased ones of the teacher.

    Paper: Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018.
    Equation: mean over samples and elements of |f_s / |f_s|_2 - f_t / |f_t|_2| with f_t = E(F_t), the encoder that
    `ft_paraphraser` has learnt, and f_s = T(F_s), a translator of three 3x3 convolutions.
    Labels: not used.
    Use: after a stage with `ft_paraphraser` on the same tap and with the same rate.
    Weight: 500 (the authors' code for CIFAR-10), 1000 (torchdistill for ImageNet). RepDistiller's 200 goes with another
    distance, between unit vectors of the factors' mean square over channels.
    Cost: the translator's 9 (C_s^2 + C_s f + f^2) parameters for f channels of a factor, and the teacher's encoder, in
    training only.
    Fails when: the paraphraser was trained too little, or on another tap.

    Args:
        student_tap: module path in the student, or "auto" for its last stage, as published.
        teacher_tap: module path in the teacher, or "auto" for the stage that corresponds; the paraphraser's.
        rate: k, the channels of a factor over those of the teacher; the paraphraser's.
        power: 1 for the mean absolute difference, as in all code; any other p for |.|_p.
        batch_norm: a batch norm before each activation; the paraphraser's.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False
    follows = ("ft_paraphraser",)

    def __init__(
        self,
        student_tap: str = "auto",
        teacher_tap: str = "auto",
        rate: float = 0.5,
        power: float = 1.0,
        batch_norm: bool = False,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not power >= 1:
            raise ValueError(f"power is {power}; it must be at least 1")
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.rate, self.power, self.batch_norm = checked_rate(rate), power, batch_norm

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps, take the teacher's encoder over and size the translator."""
        ((student, teacher),) = wiring.maps(
            "auto" if self.student_tap == "auto" else [self.student_tap],
            "auto" if self.teacher_tap == "auto" else [self.teacher_tap],
            method=self.name,
            last=1,
        )
        self.places = (student.name, teacher.name)
        factors = factor_width(teacher.shape[0], self.rate)
        self.encoder = encoder(teacher.shape[0], factors, batch_norm=self.batch_norm)
        wiring.take_over(self.encoder, method="ft_paraphraser", attribute="encoder")
        self.encoder.eval()
        self.translator = encoder(student.shape[0], factors, batch_norm=self.batch_norm)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the translator; the teacher's encoder keeps its statistics."""
        super().train(mode)
        if hasattr(self, "encoder"):
            self.encoder.eval()
        return self

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the samples."""
        student, teacher = step.features(*self.places)
        with torch.no_grad():
            factors = self.encoder(teacher)
        return objectives.factor_transfer(
            *to_smaller(self.translator(student), factors),
            power=self.power,
            weight=step.batch.weight,
        )
