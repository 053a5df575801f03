"""What goes into an activation, and the batch norm that it comes from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models import kd
from understudy.models.batch_norms import batch_norm_before, expected_negative
from understudy.models.description import ModelDescription, describe


def described(module: nn.Module, channels: int = 3, size: int = 32) -> ModelDescription:
    images = torch.randn(2, channels, size, size)
    return describe(module, lambda model: model(images), input_height=size)


class Shared(nn.Module):
    """Pre-activated: one ReLU reads both norms, so that its calls have to be told apart."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1)
        self.norm_one = nn.BatchNorm2d(4)
        self.between = between or nn.Identity()
        self.two = nn.Conv2d(4, 4, 1)
        self.norm_two = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm_one(self.between(self.one(x))))
        x = self.relu(self.norm_two(self.two(x)))
        return self.fc(x.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("name", "stage", "place", "norm"),
    [
        ("resnet20", "relu", "relu@input", "bn1"),
        ("resnet20", "layer2", "layer2.2.relu2@input", "layer2.2.bn2"),
        ("resnet8", "layer2", "layer2.0.relu2@input", "layer2.0.bn2"),
        ("wrn16_2", "block1", "block2.layer.0.relu1@input", "block2.layer.0.bn1"),
        ("wrn16_2", "block3", "relu@input", "bn1"),
        ("vgg8", "relu1", "relu1@input", "block1.1"),
        ("mobilenetv2_half", "blocks.4", "blocks.4", None),
    ],
)
def test_places_before_activations(name: str, stage: str, place: str, norm: str | None) -> None:
    model = kd.build(name, classes=5)
    found = described(model)
    assert found.before_activation(stage) == place
    channels = next(row.output_shape for row in found.modules if row.path == stage)
    assert channels is not None
    path = batch_norm_before(model, found, place, channels[0])
    if norm is not None:
        assert path == norm
    else:
        # The projection of a linear bottleneck: the last batch norm of its last block.
        assert path is not None and path.startswith(f"{stage}.")
        inside = [p for p, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
        assert path == [p for p in inside if p.startswith(f"{stage}.")][-1]


def test_a_shared_activation_is_told_by_its_call() -> None:
    found = described(Shared())
    assert found.before_activation("one") == "relu@input#0"
    assert found.before_activation("two") == "relu@input"
    assert batch_norm_before(Shared(), found, "relu@input#0", 4) == "norm_one"
    assert batch_norm_before(Shared(), found, "relu@input", 4) == "norm_two"
    # Not of the right width, or no batch norm at all.
    assert batch_norm_before(Shared(), found, "relu@input", 5) is None


def test_only_a_normalisation_may_stand_between() -> None:
    found = described(Shared(nn.AvgPool2d(2)))
    assert found.before_activation("one") == "one"
    assert described(Shared(nn.Dropout(0.1))).before_activation("one") == "relu@input#0"
    assert found.before_activation("relu@input") == "relu@input"


def test_a_torchvision_shortcut_after_the_branch_is_not_taken() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(weights=None, num_classes=5)
    # A stage of one block, so that it ends in the block with a shortcut of its own.
    model.layer2 = nn.Sequential(model.layer2[0])
    found = described(model)
    place = found.before_activation("layer2")
    assert place == "layer2.0.relu@input"
    assert batch_norm_before(model, found, place, 128) == "layer2.0.bn2"


def test_a_batch_norm_that_holds_its_activation() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("efficientnet_b0", num_classes=5)
    found = described(model)
    assert found.before_activation("bn2") == "bn2.act@input"
    assert batch_norm_before(model, found, "bn2.act@input", 1280) == "bn2"
    # The one before ends with an activation, so the projection's is its own.
    assert batch_norm_before(model, found, "blocks.6", 320) == "blocks.6.0.bn3"


def norm(scale: list[float], shift: list[float]) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(len(scale))
    with torch.no_grad():
        made.weight.copy_(torch.tensor(scale))
        made.bias.copy_(torch.tensor(shift))
    return made


def test_expected_negative_of_a_normal_variable() -> None:
    def density(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def share(x: float) -> float:
        return 0.5 * (1 + math.erf(x / math.sqrt(2)))

    scale, shift = [1.0, -2.0, 0.5, 1.0, 1e-3], [0.0, 1.0, -0.7, 3.05, 0.0]
    found = expected_negative(norm(scale, shift)).tolist()
    for value, s, b in zip(found, map(abs, scale), shift, strict=True):
        assert value == pytest.approx(b - s * density(b / s) / share(-b / s), rel=1e-4)


def test_expected_negative_at_the_edges() -> None:
    found = expected_negative(norm([1.0, 2.0, 1.0, 0.0, 0.0], [3.2, 1e4, -1e4, -0.4, 0.4]))
    # Hardly ever negative; never; always; constant below and above zero.
    assert found.tolist() == pytest.approx([-3.0, -6.0, -1e4, -0.4, 0.0])
    assert found.dtype == torch.float32
    bare = expected_negative(nn.BatchNorm2d(2, affine=False))
    assert bare.tolist() == pytest.approx([-math.sqrt(2 / math.pi)] * 2)
    with pytest.raises(ModelError, match="A GroupNorm is no batch norm"):
        expected_negative(nn.GroupNorm(1, 2))
