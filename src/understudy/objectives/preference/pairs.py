"""A preferred response against another one: direct preference optimisation and its relatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.divergence import fit
from understudy.objectives.preference.forms import check_form, preference_loss
from understudy.objectives.reduction import in_float, reduce, same_shape
from understudy.objectives.shapes import divisor


def sequence_log_probabilities(
    tokens: torch.Tensor, weight: torch.Tensor | None = None, *, mean: bool = False
) -> torch.Tensor:
    """Return log q(y) of each response [...], the sum over its tokens, in nats.

    Args:
        tokens: log-probabilities of the tokens [..., T], see `token_log_probabilities`.
        weight: mask over tokens [..., T]; whatever stands at 0 counts nothing.
        mean: divide by the number of tokens, as `simpo`, `rrhf` and the "ipo" form want it. 0 for a response without
            any.

    Source: the definition.

    Raises:
        ValueError: the weight does not fit.
    """
    tokens = in_float(tokens)
    real = torch.ones_like(tokens) if weight is None else fit(weight, tokens.shape).to(tokens.dtype)
    total = (tokens.masked_fill(real == 0, 0.0) * real).sum(dim=-1)
    return total / divisor(real.sum(dim=-1)) if mean else total


@card(
    "vectors",
    needs=("student_rejected: real B C", "teacher_rejected: real B C"),
    minimum=None,
)
def dpo(
    student: torch.Tensor,
    teacher: torch.Tensor,
    student_rejected: torch.Tensor,
    teacher_rejected: torch.Tensor,
    *,
    form: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Direct preference optimisation, from h = (log q(y_w) - log p(y_w)) - (log q(y_l) - log p(y_l)) of each pair.

    - "sigmoid": -(1 - label_smoothing) * log sigma(beta * h) - label_smoothing * log sigma(-beta * h);
    - "ipo": (h - 1 / (2 * beta))^2, which stops at a finite h;
    - "hinge": max(0, 1 - beta * h).

    In distillation y_w is a response of the teacher, or one that it prefers, and y_l one of the student.

    Args:
        student: log-probabilities of the preferred responses [B] (any shape), see `sequence_log_probabilities`.
        teacher: of the same responses under the reference: the student before training, or the teacher; detached.
        student_rejected: log-probabilities of the other responses, the same shape.
        teacher_rejected: of these under the reference; detached.
        form: "sigmoid", "ipo" or "hinge".
        beta: how much a nat counts, greater than 0; the larger, the closer the student stays to the reference.
        label_smoothing: probability that a preference is the wrong way round, in [0, 0.5); for "sigmoid" only.
        weight: weights or mask [B]; whatever stands at pairs of weight 0 counts nothing.
        reduction: "mean" over valid pairs, "sum" or "none" ([B]).

    Zeros for both reference tensors leave the reference out; with beta = 1 that is the loss of a reward model,
    -log sigma(r_w - r_l).

    Source: Rafailov et al., "Direct Preference Optimization", NeurIPS 2023, equation 7; label smoothing of Mitchell, "A
    Note on DPO with Noisy Preferences", 2023; "ipo" of Azar et al., "A General Theoretical Paradigm to Understand
    Learning from Human Preferences", 2023, equation 17 (log-probabilities as means over tokens, as the authors of TRL
    were told by them); "hinge" of Zhao et al., "SLiC-HF", 2023, in the parametrisation of DPO.

    Raises:
        ValueError: shapes differ, or a keyword is out of its range.
    """
    check_form(form, beta, label_smoothing)
    for values, what in ((student_rejected, "student"), (teacher_rejected, "teacher")):
        same_shape(student, values, f"and {what}'s rejected log-probabilities")
    gap = _gap(student, teacher, weight) - _gap(student_rejected, teacher_rejected, weight)
    return reduce(preference_loss(gap, form, beta, label_smoothing), weight, reduction)


@card("vectors", needs=("student_rejected: real B C",), teacher=False, minimum=None)
def simpo(
    student: torch.Tensor,
    student_rejected: torch.Tensor,
    *,
    beta: float = 2.0,
    margin: float = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """-log sigma(beta * (s_w - s_l) - margin) of each pair, without any reference.

    Args:
        student: mean log-probability of the tokens of the preferred responses [B] (any shape), see
            `sequence_log_probabilities` with `mean=True`.
        student_rejected: of the other responses, the same shape.
        beta: greater than 0; the paper takes 2 to 10.
        margin: how much better the preferred one has to be, at least 0 (gamma in the paper, 0.5 to 1.6).
        weight: weights or mask [B]; whatever stands at pairs of weight 0 counts nothing.
        reduction: "mean" over valid pairs, "sum" or "none" ([B]).

    Source: Meng, Xia and Chen, "SimPO: Simple Preference Optimization with a Reference-Free Reward", NeurIPS 2024,
    equation 6.

    Raises:
        ValueError: shapes differ, or a number is out of its range.
    """
    check_form("sigmoid", beta, 0.0)
    if not margin >= 0:
        raise ValueError(f"margin is {margin}; it must be at least 0")
    same_shape(student, student_rejected, "log-probabilities and the rejected ones'")
    ours, theirs = _valid(student, weight), _valid(student_rejected, weight)
    return reduce(-F.logsigmoid(beta * (ours - theirs) - margin), weight, reduction)


def _gap(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return log q - log p; 0 where the weight is 0."""
    same_shape(student, teacher, "log-probabilities")
    return _valid(student, weight) - _valid(teacher, weight).detach()


def _valid(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    values = in_float(values)
    return values if weight is None else values.masked_fill(fit(weight, values.shape) == 0, 0.0)
