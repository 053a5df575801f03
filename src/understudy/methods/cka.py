"""Distillation by centred kernel alignment."""

from __future__ import annotations

from typing import Literal

import torch

from understudy import objectives
from understudy.methods.rows import FeatureRows, Rows
from understudy.methods.step import Step


class CKA(FeatureRows, name="cka"):
    """Raise the centred kernel alignment of the student's features with the teacher's.

    Paper: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section 3; as a loss
    in Saha et al., "Distilling Representational Similarity using Centered Kernel Alignment (CKA)", BMVC 2022.
    Equation: 1 - <K, L> / (|K| |L|) with the centred kernels K, L of the batch's features.
    Labels: not used.
    Weight: 1 with `kd` and `supervised`. The value lies in [0, 1] whatever the widths.
    Cost: no parameters; a few products of matrices per step.
    Fails when: the geometry itself has to be kept: it can be near 0 for features that have lost it (`procrustes` and
    `feature_gram` cannot); or without a loss on the outputs.

    Args:
        student_tap: module path in the student, or "auto" for what goes into its classifier.
        teacher_tap: the same for the teacher; the widths may differ.
        rows: what a row is: "pooled" (one per sample), "first" (the first token of each, such as [CLS]) or "elements"
            (every token that is no padding, every place of a map).
        kernel: "linear", or "rbf" (Gaussian, of width `bandwidth` times the median distance).
        bandwidth: width of the Gaussian kernel.
        debiased: the estimate without the bias of small batches; it needs at least 4 rows.
        gather: compare the rows of all processes at once; otherwise each process compares its own.
    """

    def __init__(
        self,
        student_tap: str = "auto",
        teacher_tap: str = "auto",
        rows: Rows = "pooled",
        kernel: Literal["linear", "rbf"] = "linear",
        bandwidth: float = 1.0,
        debiased: bool = False,
        gather: bool = False,
    ) -> None:
        """Keep the configuration."""
        super().__init__(student_tap, teacher_tap, rows, gather)
        if kernel not in ("linear", "rbf"):
            raise ValueError(f"kernel is '{kernel}'; it must be 'linear' or 'rbf'")
        if not bandwidth > 0:
            raise ValueError(f"bandwidth is {bandwidth}; it must be greater than 0")
        self.kernel, self.bandwidth, self.debiased = kernel, bandwidth, debiased

    def loss(self, step: Step) -> torch.Tensor:
        """Return one minus the alignment of the batch's two matrices."""
        student, teacher, weight = self.matrices(step)
        return objectives.cka(
            student,
            teacher,
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            debiased=self.debiased,
            weight=weight,
        )
