"""The battery of the objectives, for the fused vocabulary losses.

With the identity as the weight of both heads, hidden states are logits, and a fused loss is an objective on "tokens".
So each divergence gets a card here, on a function of that form, and has to pass what the objectives pass. What the form
hides, such as heads and their shapes, is in tests/objectives/test_vocabulary.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import test_objectives as battery
import torch

from understudy.objectives import DenseTarget, Head, vocabulary_divergence
from understudy.objectives.card import Card, cards
from understudy.objectives.vocabulary.closed_form import Name

TESTS = [
    battery.test_gradient_is_that_of_the_value,
    battery.test_half_precision_in_is_single_precision_inside,
    battery.test_single_precision_agrees_with_double,
    battery.test_autocast_changes_nothing,
    battery.test_inputs_are_left_as_they_are_and_nothing_is_random,
    battery.test_teacher_gets_no_gradient_and_student_does,
    battery.test_minimum_is_at_the_teacher,
    battery.test_invariances_hold,
    battery.test_temperature_scales_as_declared,
    battery.test_order_of_the_batch_does_not_matter,
    battery.test_a_weight_of_1_changes_nothing_and_only_ratios_count,
    battery.test_masked_samples_count_nothing_whatever_they_hold,
    battery.test_all_masked_has_no_value_and_no_gradient,
    battery.test_splitting_and_accumulating_equals_the_whole,
    battery.test_value_and_gradient_are_finite_at_extremes,
    battery.test_value_and_gradient_are_finite_where_nothing_differs,
    battery.test_smallest_batch,
    battery.test_smallest_number_of_classes,
    battery.test_weights_that_do_not_fit_are_refused_by_name,
    battery.test_unknown_reductions_are_refused,
    battery.test_temperatures_that_are_not_positive_are_refused,
]


def on_logits(divergence: Name) -> Callable[..., torch.Tensor]:
    """Return a fused loss as a function of logits."""

    def objective(
        student: torch.Tensor,
        teacher: torch.Tensor,
        *,
        temperature: float | torch.Tensor = 1.0,
        weight: torch.Tensor | None = None,
        reduction: str = "mean",
    ) -> torch.Tensor:
        heads = [
            Head(torch.eye(logits.shape[-1], dtype=logits.dtype)) for logits in (student, teacher)
        ]
        return vocabulary_divergence(
            student,
            heads[0],
            DenseTarget(teacher, heads[1]),
            divergence=divergence,
            temperature=temperature,
            weight=weight,
            reduction=reduction,
            chunk=3,
        )

    return objective


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.__name__.removeprefix("test_"))
@pytest.mark.parametrize("divergence", get_args(Name))
def test_battery(
    divergence: Name, test: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card("tokens", invariances=("shift",), temperature_power=2)
    name = f"vocabulary.{divergence}"
    monkeypatch.setitem(cards, name, (on_logits(divergence), card))
    test(name)


def test_nothing_waits_for_a_value_without_a_weight() -> None:
    keywords: dict[str, Any] = {"dtype": torch.bfloat16, "device": "meta"}
    hidden = torch.empty(2, 3, 4, requires_grad=True, **keywords)
    head = Head(torch.empty(9, 4, requires_grad=True, **keywords))
    loss = vocabulary_divergence(hidden, head, DenseTarget(hidden, head), temperature=2.0)
    loss.backward()
    assert loss.shape == () and hidden.grad is not None and head.weight.grad is not None
