"""Neuron selectivity transfer: which places channels respond to."""

from __future__ import annotations

from typing import Literal

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring
from understudy.models.projectors import to_smaller


class NST(Method, name="nst"):
    """Match the distribution of the teacher's channels, each seen as a pattern over the places of a map.

    Paper: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017.
    Equation: sum over pairs of maps, mean over samples of mean k(t_i, t_j) + mean k(s_i, s_j) - 2 mean k(s_i, t_j) over
    pairs of channels, each a unit vector over places: a squared maximum mean discrepancy.
    Labels: not used.
    Weight: 50 with the polynomial kernel (RepDistiller, mdistiller).
    Cost: the Gram matrix of each map over its channels or its places, whichever are fewer. The Gaussian kernel needs
    all pairs of channels.
    Fails when: maps have few places, so that patterns hardly differ, or many channels are dead.

    Args:
        student_taps: module paths in the student, or "auto" for the last stage at each resolution, as published.
        teacher_taps: as many paths in the teacher, or "auto" for the stages that correspond.
        kernel: "polynomial" ((x.y)^2), "linear" or "gaussian"; the first is the paper's best and what the published
            weight goes with.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        kernel: Literal["polynomial", "linear", "gaussian"] = "polynomial",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if kernel not in ("polynomial", "linear", "gaussian"):
            raise ValueError(
                f"kernel is '{kernel}'; it must be 'polynomial', 'linear' or 'gaussian'"
            )
        self.student_taps, self.teacher_taps, self.kernel = student_taps, teacher_taps, kernel

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps."""
        pairs = wiring.maps(self.student_taps, self.teacher_taps, method=self.name, places=2)
        self.places = [(student.name, teacher.name) for student, teacher in pairs]

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over the pairs of the mean over the samples."""
        return torch.stack(
            [
                objectives.nst(
                    *to_smaller(*step.features(*place)),
                    kernel=self.kernel,
                    weight=step.batch.weight,
                )
                for place in self.places
            ]
        ).sum()
