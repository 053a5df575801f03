"""What a preference costs, given by how much more than a reference the student has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.shapes import check_choice

_FORMS = ("sigmoid", "ipo", "hinge")


def preference_loss(
    gap: torch.Tensor, form: str, beta: float, label_smoothing: float
) -> torch.Tensor:
    """Return the loss of each gap h, in nats and any shape; see `dpo` for the forms."""
    if form == "ipo":
        return (gap - 1 / (2 * beta)).square()
    if form == "hinge":
        return torch.relu(1 - beta * gap)
    loss = -(1 - label_smoothing) * F.logsigmoid(beta * gap)
    return loss - label_smoothing * F.logsigmoid(-beta * gap) if label_smoothing else loss


def check_form(form: str, beta: float, label_smoothing: float) -> None:
    """Refuse keywords that are out of their range."""
    check_choice(form, _FORMS, "form")
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be greater than 0")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}; it must be at least 0 and below 0.5"
        )
    if label_smoothing and form != "sigmoid":
        raise ValueError(f"label_smoothing is {label_smoothing}; the form '{form}' has none")
