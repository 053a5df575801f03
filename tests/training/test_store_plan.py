"""What a plan says of a store: its size, its time, and when it cannot pay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy import experiment

from understudy.errors import StoreError
from understudy.methods.wiring import TapShape
from understudy.training.label_plan import _refuse_padded
from understudy.training.labelling import label
from understudy.training.plan import make_plan
from understudy.training.store_plan import StorePlan


def planned(epochs: int = 6, **options: Any) -> StorePlan | None:
    arms = options.pop("arms", {"kd": [{"methods": ["kd", ["fitnet", 0.1]], "epochs": epochs}]})
    return make_plan(experiment(arms, preflight="warn", **options)).stores.get("teacher")


def test_sizes_are_those_of_all_views_of_all_samples() -> None:
    store = planned(augment=True, views=2)
    assert store is not None and (store.samples, store.views) == (84, 2)
    feature = 16 * 4 * 4  # layer2 of the toy teacher
    assert store.sizes["float32"] == 84 * 2 * 4 * (3 + feature)
    assert store.sizes["float16"] == 84 * 2 * 2 * (3 + feature)
    assert list(store.sizes)[2:] == ["top 2 in float16", "top 2 in int8"]
    # 2 of 3 logits: the scale, their codes, two tails, the entropy and a byte of ids; 16 channels of 16 numbers, each
    # channel with a scale and an offset.
    assert store.sizes["top 2 in int8"] == 84 * 2 * (2 + 2 + 4 + 2 + 1 + 16 * 8 + feature)


def test_more_passes_than_views_pay() -> None:
    store = planned(augment=True, views=2, seeds=(0, 1))
    assert store is not None and store.live_seconds is not None and store.label_seconds is not None
    # 6 epochs of 5 steps of 16, for two seeds, against 84 samples in 2 views
    assert store.live_seconds / store.label_seconds == pytest.approx(2 * 6 * 80 / 168, rel=1e-6)
    assert "would pay: 11.4 passes over the data look at 2 views" in store.sentence
    assert "understudy label RECIPE" in store.sentence


def test_one_look_at_each_view_does_not_pay() -> None:
    store = planned(augment=True, views=8)
    assert store is not None and "does not pay for this run alone" in store.sentence
    store = planned(epochs=1)  # nothing is random
    assert store is not None and store.views == 1 and "does not pay" in store.sentence


def test_new_views_on_every_pass_cannot_pay() -> None:
    store = planned(augment=True)
    assert store is not None
    assert "cannot pay with `views: null`" in store.sentence
    assert "Nor would a fixed number pay" in store.sentence
    store = planned(augment=True, epochs=20)
    assert store is not None and "data.views=8 a store would hold 8 views" in store.sentence


def test_without_a_teacher_there_is_nothing_to_store() -> None:
    arms = {"alone": [{"methods": ["supervised"], "epochs": 1}]}
    assert planned(arms=arms, teacher=None) is None
    assert planned(arms=arms) is None


def test_a_store_in_use_is_shown(tmp_path: Path) -> None:
    options: dict[str, Any] = {"augment": True, "views": 2, "store": {"path": str(tmp_path / "s")}}
    manifest = label(experiment(preflight="warn", **options))
    arms = {"kd": [{"methods": ["kd"], "epochs": 1}]}
    plan = make_plan(experiment(arms, preflight="warn", teacher=None, **options))
    assert plan.stores["teacher"].used
    assert plan.stores["teacher"].sizes == {"stored": manifest.bytes}
    assert [model.weights for model in plan.models if model.role == "teacher"] == [
        f"not loaded: outputs from the store {tmp_path / 's'}"
    ]


def test_padded_token_sequences_are_not_stored() -> None:
    inputs = {"input_ids": torch.zeros(2, 7), "attention_mask": torch.ones(2, 7)}
    with pytest.raises(StoreError, match="'encoder' gives a sequence of tokens"):
        _refuse_padded(inputs, TapShape("encoder", (7, 16)))
    _refuse_padded(inputs, TapShape("pooler", (16,)))
    _refuse_padded(torch.zeros(2, 1, 8, 8), TapShape("layer1", (7, 16)))
