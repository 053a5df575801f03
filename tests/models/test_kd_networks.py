"""The `kd:` networks: shapes, taps, width, input channels, gradients, export."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from understudy.errors import ModelError, UnknownName
from understudy.models import kd
from understudy.models.kd.network import ChannelShuffle, scaled

NAMES = [
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    *("resnet8x4", "resnet32x4", "wrn16_1", "wrn16_2", "wrn40_1", "wrn40_2", "vgg8", "vgg13"),
    *("mobilenetv2_half", "shufflenetv1", "shufflenetv2"),
]

NARROW = [(16, 32), (16, 32), (32, 16), (64, 8)]
WIDE = [(32, 32), (64, 32), (128, 16), (256, 8)]
VGG = [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]
# Channels and side of the map of each stage at 32x32 input, and the width of the pooled feature.
STAGES = {
    **{f"resnet{depth}": (NARROW, 64) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": (WIDE, 256),
    "resnet32x4": (WIDE, 256),
    "wrn16_1": (NARROW, 64),
    "wrn40_1": (NARROW, 64),
    "wrn16_2": ([(16, 32), (32, 32), (64, 16), (128, 8)], 128),
    "wrn40_2": ([(16, 32), (32, 32), (64, 16), (128, 8)], 128),
    "vgg8": (VGG, 512),
    "vgg13": (VGG, 512),
    "mobilenetv2_half": ([(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)], 1280),
    "shufflenetv1": ([(24, 32), (240, 16), (480, 8), (960, 4)], 960),
    "shufflenetv2": ([(24, 32), (116, 16), (232, 8), (464, 4)], 1024),
}


def tapped(
    network: nn.Module, paths: list[str], images: torch.Tensor
) -> tuple[list[tuple[str, torch.Tensor, torch.Tensor]], torch.Tensor]:
    """Run `network`; return (path, output, copy made at once) for each call, and the logits."""
    seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    hooks = [
        network.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, path=path: seen.append((path, output, output.clone()))
        )
        for path in paths
    ]
    with torch.no_grad():
        logits = network(images)
    for hook in hooks:
        hook.remove()
    return seen, logits


def test_names_are_all_there_and_sorted() -> None:
    assert kd.names() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_stages_pooled_feature_and_classifier_are_where_the_model_says(name: str) -> None:
    torch.manual_seed(0)
    network = kd.build(name, classes=7).eval()
    stages = network.tap_stages()
    paths = [*stages, network.pooled_path, network.classifier_path]
    seen, logits = tapped(network, paths, torch.randn(2, 3, 32, 32))
    assert [path for path, _, _ in seen] == paths, "each once and in this order"
    expected, pooled_width = STAGES[name]
    shapes = [tuple(output.shape) for _, output, _ in seen]
    assert shapes[:-2] == [(2, channels, side, side) for channels, side in expected]
    assert shapes[-2] == (2, pooled_width)
    classifier = network.get_submodule(network.classifier_path)
    assert isinstance(classifier, nn.Linear)
    assert (classifier.in_features, classifier.out_features) == (pooled_width, 7)
    assert torch.equal(seen[-1][1], logits)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_no_module_changes_what_another_gave(name: str) -> None:
    torch.manual_seed(0)
    network = kd.build(name, classes=3, in_channels=1, width=0.25)
    paths = [
        path for path, _ in network.named_modules() if path and network_has_forward(network, path)
    ]
    seen, _ = tapped(network, paths, torch.randn(4, 1, 8, 8))
    assert len({path for path, _, _ in seen}) == len(seen), "no module is called twice"
    for path, output, at_once in seen:
        assert torch.equal(output, at_once), path


def network_has_forward(network: nn.Module, path: str) -> bool:
    """Tell whether the module may be called (a bare list of modules may not)."""
    return not isinstance(network.get_submodule(path), nn.ModuleList)


@pytest.mark.parametrize("name", NAMES)
def test_digits_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    network = kd.build(name, classes=10, in_channels=1, width=0.25).eval()
    logits = network(torch.randn(4, 1, 8, 8))
    assert logits.shape == (4, 10)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for path, parameter in network.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.abs().max() > 0, path


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from([name for name in NAMES if name not in ("resnet110", "resnet56")]),
    classes=st.integers(1, 12),
    in_channels=st.integers(1, 5),
    width=st.floats(0.01, 0.6),
    height=st.integers(8, 14),
    breadth=st.integers(8, 14),
)
def test_any_width_channels_and_size_build_and_run(
    name: str, classes: int, in_channels: int, width: float, height: int, breadth: int
) -> None:
    network = kd.build(name, classes=classes, in_channels=in_channels, width=width).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, in_channels, height, breadth))
    assert logits.shape == (2, classes)


def test_width_scales_every_stage() -> None:
    network = kd.build("resnet20", classes=10, width=0.5)
    seen, _ = tapped(network.eval(), network.tap_stages(), torch.randn(1, 3, 16, 16))
    assert [output.shape[1] for _, output, _ in seen] == [8, 8, 16, 32]
    double = kd.build("wrn16_1", classes=10, width=2.0)
    seen, _ = tapped(double.eval(), double.tap_stages(), torch.randn(1, 3, 16, 16))
    assert [output.shape[1] for _, output, _ in seen] == [32, 32, 64, 128]


@given(st.integers(1, 2048), st.sampled_from([1, 2, 12]), st.floats(0.01, 4))
def test_scaled_is_the_nearest_positive_multiple(
    channels: int, multiple: int, width: float
) -> None:
    result = scaled(channels, width, multiple)
    assert result % multiple == 0
    assert result >= multiple
    assert result == multiple or abs(result - channels * width) <= multiple / 2 + 1e-9
    assert scaled(channels * multiple, 1.0, multiple) == channels * multiple


def test_vgg_pools_once_more_from_64_pixels() -> None:
    network = kd.build("vgg8", classes=2, width=0.05).eval()
    for side, last in ((32, 4), (64, 4), (63, 7)):
        seen, _ = tapped(network, ["relu4"], torch.randn(1, 3, side, side))
        assert seen[0][1].shape[-2:] == (last, last)


def test_channel_shuffle_interleaves_the_groups() -> None:
    features = torch.arange(6.0).reshape(1, 6, 1, 1).expand(2, 6, 3, 2)
    shuffled = ChannelShuffle(3)(features)
    assert shuffled.shape == features.shape
    assert shuffled[1, :, 2, 1].tolist() == [0, 2, 4, 1, 3, 5]


def test_initial_weights() -> None:
    torch.manual_seed(0)
    for name in ("resnet8x4", "wrn16_2", "vgg8", "mobilenetv2_half"):
        network = kd.build(name, classes=100)
        for path, module in network.named_modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
                area = module.kernel_size[0] * module.kernel_size[1]
                expected = (2 / (area * module.out_channels)) ** 0.5
                assert module.weight.std().item() == pytest.approx(expected, rel=0.06), path
                assert module.bias is None or not module.bias.any(), path
            if isinstance(module, nn.BatchNorm2d):
                assert bool((module.weight == 1).all()) and not module.bias.any(), path
        linear = network.get_submodule(network.classifier_path)
        assert isinstance(linear, nn.Linear)
        if name != "resnet8x4":
            assert not linear.bias.any()
        if name in ("vgg8", "mobilenetv2_half"):
            assert linear.weight.std().item() == pytest.approx(0.01, rel=0.06)


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(3)
    first = kd.build("shufflenetv2", classes=4, width=0.25).state_dict()
    torch.manual_seed(3)
    second = kd.build("shufflenetv2", classes=4, width=0.25).state_dict()
    assert all(torch.equal(first[path], second[path]) for path in first)


@pytest.mark.parametrize(
    ("name", "alias"), [("wrn16_1", "wrn_16_1"), ("shufflenetv1", "ShuffleV1")]
)
def test_published_names_are_understood(name: str, alias: str) -> None:
    mine = kd.build(name, classes=5, width=0.25).state_dict()
    theirs = kd.build(alias, classes=5, width=0.25).state_dict()
    assert {path: value.shape for path, value in mine.items()} == {
        path: value.shape for path, value in theirs.items()
    }


@pytest.mark.parametrize("name", ["resnet8", "shufflenetv1"])
def test_export_with_any_batch_size(name: str) -> None:
    torch.manual_seed(0)
    network = kd.build(name, classes=10, in_channels=1, width=0.25).eval()
    program = torch.export.export(
        network,
        (torch.randn(2, 1, 8, 8),),
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=512)}},
    )
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), network(images))


def test_unknown_network_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'resnet21'.*resnet20"):
        kd.build("resnet21", classes=10)


def test_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'widht'.*'width'"):
        kd.build("resnet20", classes=10, widht=0.5)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        *(("classes", value) for value in (0, -3, 2.5, True, "10")),
        *(("in_channels", value) for value in (0, 1.0)),
        *(("width", value) for value in (0, -0.5, float("nan"), float("inf"), "wide", True)),
    ],
)
@pytest.mark.parametrize("name", ["resnet8", "wrn16_1", "vgg8", "mobilenetv2_half", "ShuffleV2"])
def test_keywords_out_of_range_are_refused(name: str, keyword: str, value: object) -> None:
    keywords: dict[str, object] = {"classes": 10, keyword: value}
    with pytest.raises(ModelError, match=f"'{keyword}' is"):
        kd.build(name, **keywords)  # type: ignore[arg-type]


def test_impossible_depths_are_refused() -> None:
    with pytest.raises(ModelError, match="6n \\+ 2 layers.*not 18"):
        kd.ResNet(18, (16, 16, 32, 64), classes=10)
    with pytest.raises(ModelError, match="6n \\+ 4 layers.*not 20"):
        kd.WideResNet(20, 1, classes=10)
    with pytest.raises(ModelError, match="'convolutions' is 0"):
        kd.VGG(0, classes=10)
