"""Collecting predictions from batches."""

from __future__ import annotations

import pytest
import torch

from understudy.data.batch import Batch
from understudy.errors import DataError, ModelError
from understudy.evaluation import Predictions, predict


def batch(first: int, size: int, labels: torch.Tensor | None) -> Batch:
    ids = torch.arange(first, first + size)
    return Batch({"student": ids[:, None].float()}, labels, ids, torch.zeros_like(ids))


def forward(given: Batch) -> torch.Tensor:
    values = given.inputs["student"]
    return torch.cat([values, -values, values * 0.5], dim=1)


def test_everything_arrives_in_order_and_in_float32() -> None:
    batches = [batch(0, 3, torch.tensor([0, 1, -1])), batch(3, 2, None)]
    found = predict(lambda given: forward(given).to(torch.bfloat16), batches)
    assert found.ids.tolist() == [0, 1, 2, 3, 4]
    assert found.labels.tolist() == [0, 1, -1, -1, -1]
    assert found.logits.dtype == torch.float32
    assert found.logits[3].tolist() == [3.0, -3.0, 1.5]
    assert len(found) == 5 and found.classes == 3
    assert found.labelled().ids.tolist() == [0, 1]


def test_no_gradient_is_recorded() -> None:
    weight = torch.ones(1, requires_grad=True)
    found = predict(lambda given: forward(given) * weight, [batch(0, 2, None)])
    assert not found.logits.requires_grad


def test_the_host_does_not_wait_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values leave the device only after the last batch."""
    moved: list[int] = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda value: (moved.append(len(seen)), cpu(value))[1])
    seen: list[int] = []

    def counting(given: Batch) -> torch.Tensor:
        seen.append(len(given))
        return forward(given)

    predict(counting, [batch(start, 2, torch.tensor([0, 1])) for start in (0, 2, 4)])
    assert set(moved) == {3}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_model_is_named(value: float) -> None:
    def broken(given: Batch) -> torch.Tensor:
        logits = forward(given)
        logits[given.index == 4, 1] = value
        return logits

    with pytest.raises(ModelError, match=r"1 of 5 samples \(the first is sample 4\)"):
        predict(broken, [batch(0, 5, None)])


def test_ruling_a_class_out_is_legal() -> None:
    def padded(given: Batch) -> torch.Tensor:
        return torch.cat([forward(given), torch.full((len(given), 1), -torch.inf)], dim=1)

    assert predict(padded, [batch(0, 2, None)]).classes == 4


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(DataError, match="no batches"):
        predict(forward, [])
    with pytest.raises(DataError, match="soft labels"):
        predict(forward, [batch(0, 2, torch.full((2, 3), 1 / 3))])
    with pytest.raises(ModelError, match=r"\[2, classes\]"):
        predict(lambda given: forward(given)[:1], [batch(0, 2, None)])
    with pytest.raises(ModelError, match=r"\[2\]"):
        predict(lambda given: forward(given)[:, 0], [batch(0, 2, None)])
    with pytest.raises(DataError, match="Sample 11 has label 3, but the model gives 3 classes"):
        predict(forward, [batch(10, 2, torch.tensor([0, 3]))])
    with pytest.raises(DataError, match="2 logits, 1 labels and 2 ids"):
        Predictions(torch.zeros(2, 3), torch.zeros(1).long(), torch.zeros(2).long())
    with pytest.raises(DataError, match="None of the 2 samples has a label"):
        predict(forward, [batch(0, 2, None)]).labelled()
