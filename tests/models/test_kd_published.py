"""The `kd:` networks against what RepDistiller and mdistiller publish.

The figures were obtained by running the original networks with 100 classes: both projects gave the
same names, shapes and logits.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional

from understudy.errors import ModelError
from understudy.models import kd


class Published(NamedTuple):
    """Facts about one original network with 100 classes.

    `names` is the start of the SHA-256 over the sorted lines "name [shape]" of its state dict.
    `logits` are the 1st, 58th and 100th, for the weights and the image of `drawn`.
    """

    parameters: int
    entries: int
    names: str
    logits: tuple[float, float, float]


PUBLISHED = {
    "resnet8": Published(83892, 56, "c7e36ff449432b48", (-0.576764184, 0.283559873, 1.33139443)),
    "resnet14": Published(181108, 92, "dc881d5570e2148d", (0.102127988, 0.168112975, 1.08186278)),
    "resnet20": Published(
        278324, 128, "649926fcf6240e69", (-0.439076251, 1.53589605, -0.149799744)
    ),
    "resnet32": Published(
        472756, 200, "eee1916dfc5fb1e3", (0.168257413, -0.236010296, -0.582318748)
    ),
    "resnet44": Published(667188, 272, "f532b91b42661858", (-19.9859407, -12.1697931, 14.2827991)),
    "resnet56": Published(861620, 344, "2fac08358d132b70", (-40.5078052, -33.1377202, -20.8767461)),
    "resnet110": Published(1736564, 668, "c6e9176cff1a7fee", (-38.4285075, 488.680578, 2985.29592)),
    "resnet8x4": Published(
        1233540, 62, "c7572c24d425e097", (-0.281650736, -0.0165883976, -0.599035315)
    ),
    "resnet32x4": Published(
        7433860, 206, "632a5be2e9d2198d", (4.32973392, -1.73260857, -6.98880676)
    ),
    "wrn16_1": Published(180916, 82, "c86622e01c0182ef", (-0.0129489981, 1.23349, -0.300037572)),
    "wrn16_2": Published(703284, 83, "e6a57f3ddf2bbfc4", (0.26453644, -0.717986833, 0.165019647)),
    "wrn40_1": Published(569780, 226, "d0752782d5324ce6", (-1.85929183, -4.46572738, -0.912859202)),
    "wrn40_2": Published(2255156, 227, "cf299ba03b832625", (1.8485795, -1.48596517, 1.02480696)),
    "vgg8": Published(3965028, 37, "af0a4ac2401e1baa", (0.383422045, 0.44652566, 0.618703881)),
    "vgg13": Published(9462180, 72, "7ff3cbdb2a68220a", (-0.316747237, -0.354651175, -0.10424819)),
    "mobilenetv2_half": Published(
        812836, 320, "da613af71c09a1df", (0.0353991159, 0.340775973, -0.573709078)
    ),
    "shufflenetv1": Published(
        949258, 296, "a6a7e5aaad503399", (-0.685117483, -1.77133646, 0.760855182)
    ),
    "shufflenetv2": Published(
        1355528, 338, "453a84f2a0f166f6", (-0.454194602, 0.184571982, 0.0875723614)
    ),
}


def drawn(shape: tuple[int, ...], salt: int) -> torch.Tensor:
    """Return values in [-1, 1) that are the same on every machine, in float64."""
    position = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    mixed = (position * 1103515245 + salt * 12345 + 1013904223) % (1 << 31)
    mixed = ((mixed ^ (mixed >> 13)) * 69069 + salt) % (1 << 31)
    mixed = ((mixed ^ (mixed >> 11)) * 1664525) % (1 << 31)
    return (mixed.double() / (1 << 30) - 1).reshape(shape)


def checkpoint(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Fill a state dict of `shapes` with `drawn` values of the usual size."""
    weights = {}
    for salt, (name, shape) in enumerate(sorted(shapes.items()), start=1):
        values = drawn(shape, salt)
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            weights[name] = 1 + values / 2
        elif len(shape) > 1:
            weights[name] = values * (3 / values[0].numel()) ** 0.5
        else:
            weights[name] = values / 5
    return weights


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each entry of the state dict."""
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def resnet8_shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """Return RepDistiller's names and shapes for ResNet-8, written down by hand."""
    shapes: dict[str, tuple[int, ...]] = {}

    def batch_norm(name: str, channels: int) -> None:
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{entry}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (16, 3, 3, 3)
    batch_norm("bn1", 16)
    for stage, inputs, outputs in ((1, 16, 16), (2, 16, 32), (3, 32, 64)):
        block = f"layer{stage}.0"
        shapes[f"{block}.conv1.weight"] = (outputs, inputs, 3, 3)
        batch_norm(f"{block}.bn1", outputs)
        shapes[f"{block}.conv2.weight"] = (outputs, outputs, 3, 3)
        batch_norm(f"{block}.bn2", outputs)
        if inputs != outputs:
            shapes[f"{block}.downsample.0.weight"] = (outputs, inputs, 1, 1)
            batch_norm(f"{block}.downsample.1", outputs)
    shapes["fc.weight"] = (classes, 64)
    shapes["fc.bias"] = (classes,)
    return shapes


def resnet8_logits(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Compute ResNet-8 from a state dict by formula."""

    def normed(features: torch.Tensor, name: str) -> torch.Tensor:
        entries = [
            weights[f"{name}.{entry}"][:, None, None]
            for entry in ("running_mean", "running_var", "weight", "bias")
        ]
        mean, variance, scale, shift = entries
        return (features - mean) / (variance + 1e-5).sqrt() * scale + shift

    features = functional.conv2d(images, weights["conv1.weight"], padding=1)
    features = normed(features, "bn1").relu()
    for stage in (1, 2, 3):
        block, stride = f"layer{stage}.0", min(stage, 2)
        inner = functional.conv2d(
            features, weights[f"{block}.conv1.weight"], stride=stride, padding=1
        )
        inner = normed(inner, f"{block}.bn1").relu()
        inner = functional.conv2d(inner, weights[f"{block}.conv2.weight"], padding=1)
        inner = normed(inner, f"{block}.bn2")
        if stage > 1:
            features = functional.conv2d(
                features, weights[f"{block}.downsample.0.weight"], stride=stride
            )
            features = normed(features, f"{block}.downsample.1")
        features = (inner + features).relu()
    return features.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_counts_names_and_logits_are_the_published_ones(name: str) -> None:
    published = PUBLISHED[name]
    network = kd.build(name, classes=100).double().eval()
    shapes = shapes_of(network)
    lines = "\n".join(f"{entry} {list(shape)}" for entry, shape in sorted(shapes.items()))
    assert sum(parameter.numel() for parameter in network.parameters()) == published.parameters
    assert len(shapes) == published.entries
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == published.names
    kd.load_published(network, {"epoch": 240, "model": checkpoint(shapes)})
    with torch.no_grad():
        logits = network(drawn((1, 3, 32, 32), 0))
    found = (logits[0, 0].item(), logits[0, 57].item(), logits[0, 99].item())
    assert found == pytest.approx(published.logits, rel=1e-6)


def test_the_table_covers_the_family() -> None:
    assert sorted(PUBLISHED) == kd.names()


@pytest.mark.parametrize("classes", [100, 10])
@pytest.mark.parametrize(
    "wrapped", ["plain", "model", "state_dict", "parallel", "parallel in model"]
)
def test_every_wrapping_loads_and_computes_the_formula(wrapped: str, classes: int) -> None:
    weights = checkpoint(resnet8_shapes(classes))
    parallel = {f"module.{name}": value for name, value in weights.items()}
    network = kd.build("resnet8", classes=classes).double().eval()
    kd.load_published(
        network,
        {
            "plain": weights,
            "model": {"epoch": 240, "model": weights, "optimizer": {"state": {}}, "best_acc": 0.7},
            "state_dict": {"state_dict": weights},
            "parallel": parallel,
            "parallel in model": {"model": parallel},
        }[wrapped],
    )
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    images = drawn((2, 3, 32, 32), 99)
    with torch.no_grad():
        torch.testing.assert_close(network(images), resnet8_logits(weights, images))


@pytest.mark.parametrize("name", ["wrn16_2", "vgg13", "mobilenetv2_half", "shufflenetv2"])
def test_a_state_dict_comes_back_as_it_went(name: str) -> None:
    torch.manual_seed(0)
    teacher = kd.build(name, classes=6, in_channels=1, width=0.25)
    copy = kd.build(name, classes=6, in_channels=1, width=0.25)
    buffer = io.BytesIO()
    torch.save({"model": teacher.state_dict(), "epoch": 3}, buffer)
    buffer.seek(0)
    kd.load_published(copy, torch.load(buffer, weights_only=True))
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(copy.eval()(images), teacher.eval()(images))


def test_missing_step_counters_are_no_error() -> None:
    weights = checkpoint(resnet8_shapes(10))
    old = {name: value for name, value in weights.items() if "num_batches" not in name}
    network = kd.build("resnet8", classes=10).double()
    kd.load_published(network, old)
    assert torch.equal(network.state_dict()["fc.weight"], weights["fc.weight"])


def refused(weights: object, *fragments: str) -> None:
    """Assert that `weights` are refused with all `fragments` and leave the model as it was."""
    network = kd.build("resnet8", classes=10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        kd.load_published(network, weights)  # type: ignore[arg-type]
    for fragment in fragments:
        assert fragment in str(caught.value)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_missing_and_unexpected_entries_are_named() -> None:
    weights = checkpoint(resnet8_shapes(10))
    weights["linear.weight"] = weights.pop("fc.weight")
    refused(weights, "ResNet", "1 missing (fc.weight)", "1 unexpected (linear.weight)")


def test_other_classes_are_named_with_both_shapes() -> None:
    refused(
        {"model": checkpoint(resnet8_shapes(100))},
        "2 of another shape",
        "fc.weight: [100, 64] instead of [10, 64]",
        "fc.bias: [100] instead of [10]",
    )


def test_a_long_list_is_cut() -> None:
    refused(kd.build("resnet110", classes=10).state_dict(), "612 unexpected (", " and 604 more")


def test_entries_that_are_no_tensors_are_named() -> None:
    weights: dict[str, object] = dict(checkpoint(resnet8_shapes(10)))
    weights["fc.bias"] = [0.0] * 10
    refused(weights, "fc.bias: a list, not a tensor")
    refused({}, "missing (conv1.weight")
    refused([("fc.bias", 0)], "not a list")


def test_the_shared_resnet56_classifies_cifar100() -> None:
    """A ResNet-56 with torchvision-style names, trained to 67 per cent, if it is at hand."""
    shared = os.environ.get("UNDERSTUDY_SHARED_DATA")
    if shared is None:
        pytest.skip("UNDERSTUDY_SHARED_DATA is not set")
    weights = Path(shared) / "weights" / "resnet56_cifar100.safetensors"
    images = Path(shared) / "cifar100" / "test-00000-of-00001.parquet"
    if not weights.exists() or not images.exists():
        pytest.skip("the shared weights or images are absent")
    from PIL import Image
    from pyarrow import parquet
    from safetensors.torch import load_file
    from torchvision.transforms.functional import pil_to_tensor

    network = kd.build("resnet56", classes=100).eval()
    kd.load_published(network, load_file(weights))
    table = parquet.read_table(images).slice(0, 500)
    pictures = [Image.open(io.BytesIO(cell["bytes"])) for cell in table["image"].to_pylist()]
    raw = torch.stack([pil_to_tensor(picture.convert("RGB")) for picture in pictures]) / 255
    mean = torch.tensor([0.5071, 0.4865, 0.4409]).reshape(3, 1, 1)
    deviation = torch.tensor([0.2673, 0.2564, 0.2762]).reshape(3, 1, 1)
    with torch.no_grad():
        predicted = network((raw - mean) / deviation).argmax(dim=1)
    accuracy = (predicted == torch.tensor(table["label"].to_pylist())).float().mean().item()
    assert 0.62 < accuracy < 0.70
