"""Flow of solution procedure: how one layer's features turn into the next one's."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring
from understudy.models.projectors import align_widths


class FSP(Method, name="fsp"):
    """Match the inner products between the channels of successive maps.

    Paper: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning", CVPR 2017, equation 2.
    Equation: sum over successive taps, mean over samples and elements of (G_s - G_t)^2, where
    G_ij = mean over places of F_i F'_j for a map F and the next one F'.
    Labels: not used.
    Use: as a stage of its own before training on labels, as published.
    Official: the paper sums over the elements of G (`form: paper`); RepDistiller takes their mean (`form: mean`), so
    that the size does not depend on the widths.
    Deviation: the paper needs equal widths. Where they differ, 1x1 convolutions bring the student's maps to the
    teacher's.
    Weight: 1 with `form: mean` (RepDistiller).
    Cost: a matrix of channels x channels for each pair of successive taps; a 1x1 convolution where widths differ.
    Fails when: the student is much narrower, or it is added to a loss on labels that pulls its layers elsewhere.

    Args:
        student_taps: module paths in the student, in order of depth, or "auto" for the stem and all stages, as in
            RepDistiller.
        teacher_taps: as many paths in the teacher, or "auto" for the stages that correspond.
        form: "mean" or "paper", see above.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        form: Literal["mean", "paper"] = "mean",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if form not in ("mean", "paper"):
            raise ValueError(f"form is '{form}'; it must be 'mean' or 'paper'")
        self.student_taps, self.teacher_taps, self.form = student_taps, teacher_taps, form

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and align widths that differ."""
        pairs = wiring.maps(self.student_taps, self.teacher_taps, method=self.name, stem=True)
        if len(pairs) < 2:
            raise UnderstudyError(
                f"Method '{self.name}' compares how one map turns into the next, but there is one pair of taps "
                f"('{pairs[0][0].name}', '{pairs[0][1].name}'). Name two or more in student_taps and teacher_taps."
            )
        self.places = [(student.name, teacher.name) for student, teacher in pairs]
        self.align = nn.ModuleList(
            align_widths(student.shape[0], teacher.shape[0], bias=False)
            for student, teacher in pairs
        )

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over successive taps of the mean over the samples."""
        maps = [
            (align(student), teacher)
            for align, (student, teacher) in zip(
                self.align, (step.features(*place) for place in self.places), strict=True
            )
        ]
        terms = []
        for (student, teacher), (student_later, teacher_later) in pairwise(maps):
            term = objectives.fsp(
                student,
                teacher,
                student_later=student_later,
                teacher_later=teacher_later,
                weight=step.batch.weight,
            )
            elements = teacher.shape[1] * teacher_later.shape[1]
            terms.append(term / elements if self.form == "mean" else term)
        return torch.stack(terms).sum()
