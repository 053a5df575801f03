"""A teacher whose logits nobody reads stops at its last tap, with the same numbers and without a trace."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.errors import ModelError, TrainingError
from understudy.evaluation import cost
from understudy.models import kd
from understudy.models.outputs import call
from understudy.models.stopping import find_stop
from understudy.models.taps import Stop, Tapped
from understudy.tasks.classification import Classification
from understudy.teachers.live import LiveTeacher

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Winding(nn.Module):
    """Calls its modules in another order than it holds them, one of them several times and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 5)
        self.first = nn.Linear(5, 5)
        self.again = nn.Linear(5, 5)
        self.never = nn.Linear(5, 5)
        self.relu = nn.ReLU(inplace=True)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.again(self.relu(self.first(x))))
        self.calls += 1
        return self.last(self.again(x))


def count_hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def live(module: nn.Module, taps: list[str], **keywords: Any) -> LiveTeacher:
    return LiveTeacher(
        module,
        role="teacher",
        task=Classification(),
        taps=taps,
        copied=keywords.pop("copied", ()),
        precision=nullcontext,
        **keywords,
    )


def batch(inputs: Any) -> Batch:
    return Batch({"teacher": inputs}, labels=None, index=torch.arange(3), view=torch.zeros(3))


def network(name: str) -> tuple[nn.Module, Any, list[str], str]:
    """Return a model, inputs, taps in no order of depth, and the place where it should stop."""
    torch.manual_seed(1)
    if name == "kd":
        module: nn.Module = kd.build("resnet14", classes=4, width=0.5)
        return module, IMAGES, ["layer2", "layer1.0.conv1", "layer2.0@input"], "after 'layer2'"
    if name == "timm":
        import timm

        made = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=4, num_heads=2
        )
        return made, IMAGES, ["blocks.2@input", "blocks.0"], "before 'blocks.2'"
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=20,
    )
    inputs = {"input_ids": torch.arange(12).view(3, 4), "attention_mask": torch.ones(3, 4)}
    bert = BertForSequenceClassification(config)
    return bert, inputs, ["bert.encoder.layer.1", "bert.embeddings"], "after 'bert.encoder.layer.1'"


@pytest.mark.parametrize("name", ["kd", "timm", "hf"])
def test_tapped_tensors_are_those_of_the_whole_pass_to_the_bit(name: str) -> None:
    module, inputs, taps, place = network(name)
    stop, reason = find_stop(module.eval(), taps, lambda tapped: call(tapped, inputs))
    assert str(stop) == place and reason == ""
    assert count_hooks(module) == 0, "none is left by the search"
    whole = live(module, taps)
    expected = whole.targets(batch(inputs)).features
    whole_flops = cost.flops(whole.tapped, inputs)
    whole.close()
    reached: list[str] = []
    for path, part in module.named_modules():
        part.register_forward_hook(lambda *_, path=path: reached.append(path))
    before = count_hooks(module)
    short = live(module, taps, stop=stop)
    found = short.targets(batch(inputs)).features
    assert list(found) == taps
    assert all(torch.equal(found[tap], expected[tap]) for tap in taps)
    assert not {"", "fc", "head", "classifier"} & set(reached), (
        "neither the model nor its head ended"
    )
    assert cost.flops(short.tapped, inputs) < 0.8 * whole_flops
    short.close()
    assert count_hooks(module) == before
    call(module, inputs)
    assert "" in reached, "a closed teacher runs to its end again"


def test_what_was_read_can_be_saved_for_a_gradient() -> None:
    module = kd.build("resnet8", classes=4, width=0.25)
    teacher = live(module, ["layer1"], stop=Stop("layer1"))
    feature = teacher.targets(batch(IMAGES)).features["layer1"]
    scale = torch.ones(feature.shape[1], 1, 1, requires_grad=True)
    (feature * scale).square().mean().backward()
    assert not feature.requires_grad and not feature.is_inference()
    torch.testing.assert_close(scale.grad.flatten(), 2 * feature.square().sum(dim=(0, 2, 3)) / feature.numel())  # type: ignore[union-attr] # fmt: skip


def test_a_tensor_that_is_changed_after_its_tap_is_copied_before_the_stop() -> None:
    module, x = Winding(), torch.randn(4, 5)
    taps = ["first", "relu"]
    stop, _ = find_stop(module, taps, lambda tapped: tapped(x))
    found = live(module, taps, copied={"first"}, stop=stop).targets(batch(x)).features
    assert torch.equal(found["first"], module.first(x)) and bool((found["first"] < 0).any())
    assert torch.equal(found["relu"], module.first(x).relu())


def test_the_order_is_that_of_the_calls() -> None:
    module, x = Winding(), torch.randn(4, 5)

    def stop(*taps: str) -> tuple[Stop | None, str]:
        return find_stop(module, taps, lambda tapped: tapped(x))

    assert stop("first", "relu@input") == (Stop("relu", "input"), "")
    assert stop("again#1", "first") == (Stop("again", "output", 1), "")
    assert stop("again#1", "again@input#0", "last@input")[0] == Stop("last", "input")
    assert str(stop("again#1")[0]) == "after 'again', run 2"
    nothing, reason = stop("again", "first")
    assert nothing is None and "'again' runs 3 times, and tap 'again' reads the last" in reason
    assert stop() == (None, "nothing is tapped")
    with pytest.raises(ModelError, match="Tap 'never': the model did not call"):
        stop("first", "never")
    with pytest.raises(ModelError, match=r"call 3, but the module ran 3 time\(s\)"):
        stop("again#3")


class Longer(nn.Module):
    """Calls one module more while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.later = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.later(x) if self.training else x
        x = self.first(x)
        return x if self.training else self.later(x)


def test_the_order_is_that_of_the_mode_that_is_asked_for() -> None:
    module, x = Longer().eval(), torch.randn(4, 5)
    stops = [
        find_stop(module, ["first", "later"], lambda tapped: tapped(x), training=training)
        for training in (False, True)
    ]
    assert stops == [(Stop("later"), ""), (Stop("first"), "")]
    assert not module.training


def test_a_model_that_never_comes_to_its_stop_runs_whole() -> None:
    module, x = Winding(), torch.randn(4, 5)
    tapped = Tapped(module, ["first"], stop=Stop("again", "output", 7))
    output, features = tapped(x)
    assert output is None and module.calls == 1
    assert torch.equal(features["first"], module.first(x).relu())


def test_logits_that_are_not_there_are_refused_with_the_place() -> None:
    module = kd.build("resnet8", classes=4, width=0.25)
    outputs = live(module, ["layer1"], stop=Stop("layer1")).targets(batch(IMAGES))
    with pytest.raises(TrainingError, match="its pass ended after 'layer1', since no method"):
        _ = outputs.logits


def test_the_compiled_graph_holds_nothing_behind_the_last_tap() -> None:
    module = kd.build("resnet14", classes=4, width=0.25).eval()
    graphs: list[list[str]] = []

    def keep(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    def convolutions(stop: Stop | None) -> int:
        from torch._dynamo.backends.common import aot_autograd

        torch._dynamo.reset()
        graphs.clear()
        tapped = Tapped(module, ["layer1"], stop=stop)
        compiled = torch.compile(tapped, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
        with torch.no_grad():
            _, features = compiled(IMAGES)
            torch.testing.assert_close(features["layer1"], tapped(IMAGES)[1]["layer1"])
        tapped.close()
        assert len(graphs) == 1
        return sum("convolution" in name for name in graphs[0])

    whole = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    inside = 1 + sum(isinstance(part, nn.Conv2d) for part in module.layer1.modules())
    assert convolutions(None) == whole and convolutions(Stop("layer1")) == inside < whole
    torch._dynamo.reset()
