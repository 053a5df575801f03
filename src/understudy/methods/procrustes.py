"""Procrustes distillation: the teacher's geometry up to a rotation."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.rows import FeatureRows
from understudy.methods.step import Step


class Procrustes(FeatureRows, name="procrustes"):
    """Match the shape of the teacher's cloud of features, whatever its rotation, place and size.

    Paper: Bhattarai et al., "Knowledge distillation through geometry-aware representational alignment", 2025
    (arXiv 2509.25253), section 3.
    Equation: min over orthogonal Q of |A - B Q|_F^2 = 2 - 2 |A^T B|_*, where A (teacher) and B (student) hold the
    batch's features as rows, centred and divided by their Frobenius norm.
    Labels: not used.
    Deviation: the square of the distance, which is smooth where the two agree; the paper does not say which.
    Weight: 1 with `kd` and `supervised`; the paper gives none. The value lies in [0, 2] whatever the widths.
    Cost: no parameters; a singular value decomposition of a matrix of both widths (or of rows by rows) per step.
    Fails when: the batch has hardly more rows than the student's width, which can then match every batch exactly; or
    without a loss on the outputs, since the classifier learns nothing from it.

    Args:
        student_tap: module path in the student, or "auto" for what goes into its classifier.
        teacher_tap: the same for the teacher; the widths may differ.
        rows: what a row is: "pooled" (one per sample), "first" (the first token of each, such as [CLS]) or "elements"
            (every token that is no padding, every place of a map).
        gather: compare the rows of all processes at once; otherwise each process compares its own.
    """

    def loss(self, step: Step) -> torch.Tensor:
        """Return the distance of the batch's two matrices."""
        student, teacher, weight = self.matrices(step)
        return objectives.procrustes(student, teacher, weight=weight)
