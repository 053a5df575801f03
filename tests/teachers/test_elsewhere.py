"""A teacher on a device of its own: its inputs go there, its outputs come back, and students learn the same.

`cpu:0` is another device than `cpu` to a comparison, and the same processor to PyTorch: so every copy is asked for and
can be recorded where there is one device only.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.errors import PreflightError
from understudy.models import kd
from understudy.models.taps import Stop
from understudy.tasks.classification import Classification
from understudy.teachers import elsewhere
from understudy.teachers.elsewhere import copied_to, find_device, sent
from understudy.teachers.live import LiveTeacher

HOME, THERE = torch.device("cpu"), torch.device("cpu:0")
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TAPS = ["layer2", "layer1.0@input"]


class Copies:
    """Stands for `place`: copies every tensor and remembers where from, where to, and what came of it."""

    def __init__(self) -> None:
        self.made: list[tuple[torch.Tensor, torch.device, torch.Tensor]] = []

    def __call__(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        self.made.append((tensor, device, tensor.clone()))
        return self.made[-1][2]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Copies:
    made = Copies()
    monkeypatch.setattr(elsewhere, "place", made)
    return made


def network() -> nn.Module:
    torch.manual_seed(1)
    return kd.build("resnet8", classes=4, width=0.25)


def live(module: nn.Module, **keywords: Any) -> LiveTeacher:
    return LiveTeacher(
        module,
        role="teacher",
        task=Classification(),
        taps=TAPS,
        copied=(),
        precision=nullcontext,
        **keywords,
    )


def batch(inputs: Any, device: torch.device | str = "cpu") -> Batch:
    ids = torch.arange(3, device=device)
    return Batch({"teacher": inputs, "student": None}, labels=None, index=ids, view=ids)


def test_the_batch_goes_to_the_device_and_all_outputs_come_back(copies: Copies) -> None:
    module = network()
    expected = live(module).targets(batch(IMAGES))
    assert not copies.made
    copy = copied_to(module, THERE)
    seen: list[torch.Tensor] = []
    copy.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    found = live(copy, device=THERE, original=module).targets(batch(IMAGES))
    (source, to, arrived), *back = copies.made
    assert source is IMAGES and to == THERE and seen == [arrived]
    assert len(back) == 3 and all(device == HOME for _, device, _ in back)
    returned = [*found.features.values(), found.logits]
    assert {id(value) for value in returned} == {id(result) for _, _, result in back}
    assert list(found.features) == TAPS and torch.equal(found.logits, expected.logits)
    assert all(torch.equal(found.features[tap], expected.features[tap]) for tap in TAPS)


def test_a_stopped_teacher_brings_its_taps_only(copies: Copies) -> None:
    module = network()
    stopped = live(copied_to(module, THERE), device=THERE, stop=Stop("layer2"), original=module)
    found = stopped.targets(batch(IMAGES))
    assert list(found.features) == TAPS and len(copies.made) == 1 + len(TAPS)


def test_the_model_and_its_copy_are_in_evaluation_mode_until_it_is_closed() -> None:
    module = network().train()
    copy = copied_to(module, THERE)
    assert copy is not module and torch.equal(copy.fc.weight, module.fc.weight)
    assert copy.fc.weight.data_ptr() != module.fc.weight.data_ptr()
    teacher = live(copy, device=THERE, original=module)
    assert not any(part.training for whole in (module, copy) for part in whole.modules())
    teacher.close()
    assert all(part.training for part in module.modules())


def test_mappings_are_sent_key_by_key(copies: Copies) -> None:
    given = {"input_ids": torch.arange(4), "return_dict": True}
    found = sent(given, THERE)
    assert found["return_dict"] is True and torch.equal(found["input_ids"], given["input_ids"])
    assert [(source, to) for source, to, _ in copies.made] == [(given["input_ids"], THERE)]


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert find_device("cpu", "teacher") == HOME
    said = "The teacher 'big' is to run on 'cuda:99', which is not there. This machine has cpu"
    with pytest.raises(PreflightError, match=said):
        find_device("cuda:99", "teacher 'big'")
    with pytest.raises(PreflightError, match="'gpu', which is not there"):
        find_device("gpu", "teacher")


def devices(first: str, second: str) -> Any:
    """Mark a test that needs two devices."""
    needed = max(int(name.partition(":")[2] or 0) + 1 for name in (first, second) if name != "cpu")
    return pytest.param(
        *(first, second),
        marks=pytest.mark.skipif(
            torch.cuda.device_count() < needed, reason=f"needs {needed} CUDA device(s)"
        ),
        id=f"{first}-{second}",
    )


@pytest.mark.parametrize(
    ("home", "there"),
    [devices("cpu", "cuda:0"), devices("cuda:0", "cpu"), devices("cuda:0", "cuda:1")],
)
def test_on_two_devices(home: str, there: str) -> None:
    module = network().to(home)
    inputs = IMAGES.to(home)
    expected = live(module).targets(batch(inputs, home))
    copy = copied_to(module, torch.device(there))
    found = live(copy, device=torch.device(there), original=module).targets(batch(inputs, home))
    for value in (found.logits, *found.features.values()):
        assert value.device == torch.device(home)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-3)
    assert all(parameter.device == torch.device(there) for parameter in copy.parameters())
