"""Overhaul of feature distillation: what the teacher's neurons say, as far as it matters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring
from understudy.models.batch_norms import batch_norm_before, expected_negative
from understudy.models.projectors import Connector
from understudy.models.taps import find_module
from understudy.teachers.statistics import ResponseMeans
from understudy.teachers.study import Study


class OFD(Method, name="ofd"):
    """Regress the teacher's features before the activation, but for how far below zero they are.

    Paper: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019.
    Equation: sum over pairs l of n of 2^(l - n), mean over samples of the sum over elements of (s - t')^2 unless
    s <= t' <= 0, with t' = max(t, m); s and t before the activation, s through a connector, m the mean of the channel's
    negative responses.
    Labels: not used.
    Weight: 0.001 on CIFAR-100, 0.0001 on ImageNet (the authors' code; mdistiller has the first).
    Cost: a 1x1 convolution of student width x teacher width and a batch norm for each pair, in training only.
    Fails when: the teacher's features are no inputs of rectifiers, so that their negative side means something.

    Args:
        student_taps: module paths in the student, or "auto" for the last stage at each resolution, as published; what
            goes into the activation there is compared.
        teacher_taps: as many paths in the teacher, or "auto" for the stages that correspond.
        margin: where m comes from. "batch_norm": from the scale and shift of the batch norm before the activation, as
            the authors do, as if that alone went into it and were normal. "measured": from a pass of the teacher over
            the training samples. "auto": the former where there is a batch norm, else the latter.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        margin: Literal["auto", "batch_norm", "measured"] = "auto",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if margin not in ("auto", "batch_norm", "measured"):
            raise ValueError(f"margin is '{margin}'; it must be 'auto', 'batch_norm' or 'measured'")
        self.student_taps, self.teacher_taps, self.margin = student_taps, teacher_taps, margin

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps, size the connectors and find the margins that batch norms tell."""
        pairs = wiring.before_activation(
            wiring.maps(self.student_taps, self.teacher_taps, method=self.name)
        )
        self.places = [(student.name, teacher.name) for student, teacher in pairs]
        self.connectors = nn.ModuleList(
            Connector(student.shape, teacher.shape) for student, teacher in pairs
        )
        self.measured: list[int] = []
        for number, (_, teacher) in enumerate(pairs):
            found = None
            if self.margin != "measured":
                side = wiring.teacher
                found = batch_norm_before(
                    side.module, side.description, teacher.name, teacher.shape[0]
                )
            if found is not None:
                margin = expected_negative(find_module(wiring.teacher.module, found))
                wiring.notes.append(f"margin of teacher '{teacher.name}' from '{found}'")
            elif self.margin == "batch_norm":
                raise UnderstudyError(
                    f"Method '{self.name}' takes its margin from the batch norm before the teacher's tap "
                    f"'{teacher.name}', and there is none. Use `margin: measured`, or name another tap."
                )
            else:
                margin = torch.zeros(teacher.shape[0])
                self.measured.append(number)
                wiring.notes.append(f"margin of teacher '{teacher.name}' measured")
            self.register_buffer(f"margin{number}", margin)

    def fit(self, study: Study) -> None:
        """Measure the margins that no batch norm tells."""
        if not self.measured:
            return
        responses = [ResponseMeans(self.places[number][1]) for number in self.measured]
        study.collect(*responses)
        for number, response in zip(self.measured, responses, strict=True):
            self.get_buffer(f"margin{number}").copy_(response.mean)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the weighted sum over the pairs of the mean over the samples."""
        last = len(self.places) - 1
        return torch.stack(
            [
                2.0 ** (depth - last)
                * objectives.ofd(
                    *connector(*step.features(*place)),
                    margin=self.get_buffer(f"margin{depth}"),
                    weight=step.batch.weight,
                )
                for depth, (connector, place) in enumerate(
                    zip(self.connectors, self.places, strict=True)
                )
            ]
        ).sum()
