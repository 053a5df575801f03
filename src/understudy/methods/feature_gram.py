"""Feature-Gram distillation: the inner products of the teacher's features."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.rows import FeatureRows
from understudy.methods.step import Step


class FeatureGram(FeatureRows, name="feature_gram"):
    """Match the inner products of the batch's features with each other.

    Paper: Bhattarai et al., "Knowledge distillation through geometry-aware representational alignment", 2025
    (arXiv 2509.25253), section 3.
    Equation: |A A^T - B B^T|_F^2, where A (teacher) and B (student) hold the batch's features as rows, centred and
    divided by their Frobenius norm.
    Labels: not used.
    Deviation: the square of the distance, which is smooth where the two agree; the paper does not say which.
    Weight: 1 with `kd` and `supervised`; the paper gives none. The value lies in [0, 2] whatever the widths.
    Cost: no parameters; a few products of matrices per step, cheaper than `procrustes` for wide features.
    Fails when: the batch has hardly more rows than the student's width, or without a loss on the outputs.

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
        return objectives.feature_gram(student, teacher, weight=weight)
