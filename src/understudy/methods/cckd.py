"""Correlation congruence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.objectives.shapes import check_choice


class CCKD(Method, name="cckd"):
    """Match the correlations between the samples of a batch, measured by a kernel on embeddings.

    Paper: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, section 3.
    Equation: |C_s - C_t|_F^2 / B^2, C_ij = exp(-2 gamma) sum_{p=0..P} (2 gamma)^p / p! (x_i.x_j)^p for embeddings of
    length 1 (Gaussian kernel by its Taylor series), or C_ij = x_i.x_j (bilinear).
    Labels: not used.
    Weight: 100, beside `kd` and `supervised`, suits the Gaussian kernel on embeddings of length 1, where the value is
    about 0.01; there is no published one for it. 0.003 in torchdistill's sample settings goes with `official`, 0.02 in
    RepDistiller with another loss (differences between neighbours in the batch).
    Deviation: the teacher's embedding is a fixed random rotation (a projection, where it narrows), which keeps inner
    products. Trained beside the student's, as in torchdistill, the two could agree by making all samples alike.
    Official: `official` brings torchdistill's value: the norm is not squared, and the Gaussian series is taken of
    embeddings as they are.
    Cost: a linear map of student width x dimensions, in training only.
    Fails when: the batch is small, or holds one class only. The bilinear kernel depends on the scale of the features.

    Args:
        student_tap: module path in the student, or "auto" for what goes into its classifier. A map is averaged over
            its places, a sequence over its tokens.
        teacher_tap: the same for the teacher.
        dimensions: width of the embeddings; 128 in torchdistill and RepDistiller.
        kernel: "gaussian" (the paper's best) or "bilinear".
        gamma: width of the Gaussian kernel; the paper's 0.4.
        order: P, where its series ends; the paper's 2.
        official: torchdistill's value.
    """

    family = "relation"
    reads_logits = False
    reads_student_logits = False
    rotation: torch.Tensor

    def __init__(
        self,
        student_tap: str = "auto",
        teacher_tap: str = "auto",
        dimensions: int = 128,
        kernel: Literal["gaussian", "bilinear"] = "gaussian",
        gamma: float = 0.4,
        order: int = 2,
        official: bool = False,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if dimensions < 1:
            raise ValueError(f"dimensions is {dimensions}; it must be at least 1")
        check_choice(kernel, ("gaussian", "bilinear"), "kernel")
        if not gamma > 0:
            raise ValueError(f"gamma is {gamma}; it must be greater than 0")
        if order < 1:
            raise ValueError(f"order is {order}; it must be at least 1")
        self.student_tap, self.teacher_tap, self.dimensions = student_tap, teacher_tap, dimensions
        self.kernel, self.gamma, self.order, self.official = kernel, gamma, order, official

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and size the embeddings."""
        student, teacher = wiring.embeddings(self.student_tap, self.teacher_tap)
        self.places, self.role = (student.name, teacher.name), wiring.teacher.role
        self.embedding = nn.Linear(student.width, self.dimensions)
        # Inner products keep their size on average where the map narrows, and exactly where it does not.
        gain = max(1.0, teacher.width / self.dimensions) ** 0.5
        rotation = nn.init.orthogonal_(torch.empty(teacher.width, self.dimensions), gain=gain)
        self.register_buffer("rotation", rotation)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the pairs of the batch."""
        student, teacher = step.features(*self.places)
        return objectives.correlation_congruence(
            self.embedding(step.pooled(student)),
            step.pooled(teacher, self.role).float() @ self.rotation,
            kernel=self.kernel,
            gamma=self.gamma,
            order=self.order,
            official=self.official,
            weight=step.batch.weight,
        )
