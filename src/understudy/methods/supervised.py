"""Learning from labels."""

from __future__ import annotations

import torch

from understudy.methods.method import Method
from understudy.methods.step import Step


class Supervised(Method, name="supervised"):
    """Cross-entropy with the labels; samples without a label do not count.

    Equation: mean over labelled samples of -sum_c y_c log softmax(s)_c, in nats. Hard or soft (mixed) labels.
    Cost: none.
    Fails when: there are very few labels and the student overfits them; add `kd`.

    Args:
        label_smoothing: share of the probability mass spread evenly over the classes.
    """

    family = "labels"
    needs_labels = True
    needs_teacher = False

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """Keep the configuration."""
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")
        self.label_smoothing = label_smoothing

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the labelled samples."""
        return step.task.supervised_loss(
            step.student, step.batch, label_smoothing=self.label_smoothing
        )
