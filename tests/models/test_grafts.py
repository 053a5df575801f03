from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import (
    IMAGES,
    TEXTS,
    answer,
    bert,
    network,
    run_here,
    side,
    sized,
    tapped,
    tokens,
    wiring,
)
from spare_parts import Convolved, Forgetful, Holding, Odd, Templates
from torch import nn
from torch.optim.swa_utils import AveragedModel

from understudy import seeding
from understudy.errors import ModelError, UnderstudyError, UnknownName
from understudy.evaluation import cost
from understudy.methods.wiring import Wiring
from understudy.models.build import build, live
from understudy.models.builders.export import ExportedProgram
from understudy.models.description import describe
from understudy.models.export import export
from understudy.models.grafts import Graft, grafts
from understudy.models.heads import LinearChain, MarginalHead
from understudy.models.model import Model, fingerprint
from understudy.models.saved import load, read_description, save
from understudy.models.splice import check_spliced, splice
from understudy.models.surgery import operate, restored, surgery_of
from understudy.models.taps import Tapped, unchanged

PLACES = [
    ("resnet8", "layer3.0", (32, 4, 4)),
    ("resnet8", "layer3", (32, 4, 4)),
    ("resnet8", "layer2.0.bn1", (16, 8, 8)),
    ("resnet8", "relu", (8, 16, 16)),
    ("resnet8", "flatten", (32,)),
    ("wrn_16_1", "block2.layer.0", None),
    ("vgg8", "block3", None),
    ("mobilenetv2_half", "blocks.3", None),
    ("shufflenetv2", "layer2", None),
    ("sequential", "0", (4, 7, 7)),
    ("sequential", "0.1", (4, 7, 7)),
    ("mlp", "3", (6,)),
]


@pytest.mark.parametrize(("kind", "path", "shape"), PLACES)
def test_a_graft_replaces_what_any_module_returned(
    kind: str, path: str, shape: tuple[int, ...] | None
) -> None:
    module = network(kind)
    names, before = set(module.state_dict()), answer(module)
    original = tapped(module, [path])[path]
    wired = wiring(module)
    placed = wired.graft(path, sized)
    assert placed.new and placed.path == f"{path}.graft"
    assert shape is None or tuple(original.shape[1:]) == shape
    graft = placed.module
    found = tapped(module, [path, f"{path}.graft@input", placed.tap("scores").name])
    torch.testing.assert_close(found[f"{path}.graft@input"], original, rtol=0, atol=0)
    expected = graft.eval()(original).detach()
    torch.testing.assert_close(found[path], expected, rtol=0, atol=0)
    assert found[f"{path}.graft.scores"].shape[-1] == 5
    assert not torch.equal(answer(module), before)
    # Names of the student's own weights are those of before.
    added = set(module.state_dict()) - names
    assert names < set(module.state_dict())
    assert added == {f"{path}.graft.{name}" for name in graft.state_dict()}
    assert placed.tap("scores").shape[-1] == 5
    assert wired.notes == [
        f"graft Templates at student '{path}', {cost.parameters(graft):,} parameters"
    ]


def test_a_graft_that_adds_nothing_changes_no_bit() -> None:
    for kind, path in (("resnet8", "layer3.0"), ("resnet8", "layer3"), ("sequential", "0")):
        module = network(kind)
        before = answer(module)
        wiring(module).graft(path, lambda shape: sized(shape, alpha=0.0))
        assert torch.equal(answer(module), before)


def test_gradients_reach_the_graft_and_what_is_before_and_behind_it() -> None:
    module = network("resnet8")
    placed = wiring(module).graft("layer3.0", sized)
    logits, features = Tapped(module, ["layer3.0.graft.scores"])(IMAGES)
    (logits.square().sum() + features["layer3.0.graft.scores"].square().sum()).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert placed.module.scores.weight.grad.abs().sum() > 0


# A layer returns a tensor, its attention a tuple of a tensor and None.
@pytest.mark.parametrize("path", ["bert.encoder.layer.0", "bert.encoder.layer.1.attention"])
def test_a_graft_in_a_transformer(path: str) -> None:
    model = bert()
    inputs = tokens(model)
    before, stages = answer(model.module, inputs), side(model.module, inputs).description.stages
    original = tapped(model.module, [path], inputs)[path]
    wired = wiring(model.module, inputs)
    placed = wired.graft(path, sized)
    assert placed.module.channels == 16 and placed.tap("scores").shape == (original.shape[1], 5)
    found = tapped(model.module, [path, placed.tap("@input").name], inputs)
    assert torch.equal(found[f"{path}.graft@input"], original)
    torch.testing.assert_close(found[path], placed.module.eval()(original).detach())
    assert not torch.equal(answer(model.module, inputs), before)
    assert wired.student.description.stages == stages


REFUSED = {
    "stm": (UnknownName, "Did you mean 'stem'"),
    "": (UnknownName, "no module"),
    "twice": (ModelError, "'twice' is called 2 times in one forward"),
    "functional": (
        ModelError,
        r"does not call 'functional' \(Conv2d\) in its forward: its code reads",
    ),
    "blocks": (ModelError, r"does not call 'blocks' \(ModuleList\).*'blocks.0'"),
    "unused": (ModelError, "does not call 'unused'"),
    "same": (ModelError, "'same' and 'also' are one module"),
    "pair": (ModelError, "'pair' returns a tuple of 2 items"),
    "recurrent": (ModelError, "'recurrent' returns a tuple of 2 items"),
    "walked": (ModelError, "'walked' runs all its children, so the graft would run 2 times"),
    "helper": (ModelError, "'helper' runs in training mode only"),
}


@pytest.mark.parametrize("path", REFUSED)
def test_where_nothing_can_be_grafted(path: str) -> None:
    module = Odd()
    names, before = list(module.state_dict()), answer(module)
    kind, message = REFUSED[path]
    with pytest.raises(kind, match=message):
        wiring(module).graft(path, sized)
    assert list(module.state_dict()) == names and torch.equal(answer(module), before)
    assert not any(part._forward_hooks for part in module.modules())


def test_places_beside_the_refused_ones_work() -> None:
    for path in ("stem", "blocks.1", "walked.only"):
        module = Odd()
        wiring(module).graft(path, sized)
        assert [entry["path"] for entry in surgery_of(module)] == [path]


def test_a_graft_that_does_not_fit_is_taken_out_again() -> None:
    module = network("resnet8")
    before = fingerprint(module)
    with pytest.raises(ModelError, match=r"Convolved cannot be grafted at 'layer2': .* cannot run"):
        wiring(module).graft("layer2", lambda shape: Convolved(shape[0], 3))
    with pytest.raises(ModelError, match=r"not a Conv2d"):
        wiring(module).graft("layer2", lambda shape: nn.Conv2d(shape[0], shape[0], 1))  # type: ignore[arg-type,return-value]
    with pytest.raises(ModelError, match=r"training mode.*more than 1 value per channel"):
        Wiring(side(module, IMAGES[:1]), {}, classes=3).graft("flatten", sized)
    assert fingerprint(module) == before and not surgery_of(module)
    assert not any(part._forward_hooks for part in module.modules())


def test_programs_are_refused() -> None:
    program = torch.export.export(network("sequential").eval(), (IMAGES,))
    with pytest.raises(ModelError, match="exported program: what is inside cannot be cut"):
        wiring(ExportedProgram(program)).graft("inner", sized)
    with pytest.raises(ModelError, match="exported program"):
        wiring(torch.jit.ScriptModule()).graft("0", sized)


def test_what_a_saved_student_could_not_rebuild_is_refused_at_once() -> None:
    class Inner(Graft):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return given

    cases: list[tuple[Graft, str]] = [
        (Inner(), "defined inside of a function"),
        (Forgetful(3), "does not keep its keyword 'channels'"),
        (Holding(torch.zeros(2)), "no JSON value"),
    ]
    for graft, message in cases:
        module = network("resnet8")
        with pytest.raises(ModelError, match=message):
            wiring(module).graft("layer2", graft)
        assert not surgery_of(module)


@pytest.mark.parametrize("kind", ["resnet8", "wrn_16_1", "vgg8", "sequential", "mlp", "blocks"])
def test_stages_and_classifier_are_those_of_the_student(kind: str) -> None:
    module = network(kind)

    def seen() -> Any:
        found = describe(module, lambda part: part(IMAGES), input_height=16)
        return found.stages, found.classifier, found.pooled_width

    before = seen()
    last = before[0][-1].tap
    wiring(module).graft(last, sized)
    wiring(module).graft(before[1], sized)
    if kind == "blocks":
        assert len(before[0]) == 3
        wiring(module).graft("blocks", sized)
    assert seen() == before


def test_two_grafts_at_one_place_run_in_order() -> None:
    module = network("resnet8")
    wired = wiring(module)
    original = tapped(module, ["layer2.0"])["layer2.0"]
    first = wired.graft("layer2.0", lambda shape: Convolved(shape[0]))
    second = wired.graft("layer2.0", sized)
    inner = wired.graft("layer2.0.graft2.scores", sized)
    assert (first.path, second.path) == ("layer2.0.graft", "layer2.0.graft2")
    assert inner.path == "layer2.0.graft2.scores.graft"
    expected = second.module.eval()(first.module(original)).detach()
    torch.testing.assert_close(tapped(module, ["layer2.0"])["layer2.0"], expected)
    assert [entry["child"] for entry in surgery_of(module)] == ["graft", "graft2", "graft"]
    again = network("resnet8")
    operate(again, surgery_of(module))
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(answer(again), answer(module), rtol=0, atol=0)


def test_a_later_stage_finds_the_graft_of_an_earlier_one() -> None:
    module = network("resnet8")
    placed = wiring(module).graft("layer3", sized)
    with torch.no_grad():
        placed.module.scores.weight.fill_(0.5)
    later = wiring(module)
    again = later.graft("layer3", sized)
    assert again.module is placed.module and not again.new
    assert again.module.scores.weight.eq(0.5).all() and len(surgery_of(module)) == 1
    assert "there from before" in later.notes[0]
    # A second method of the stage gets one of its own.
    other = later.graft("layer3", sized)
    assert other.new and other.path == "layer3.graft2"
    with pytest.raises(ModelError, match=r"has a graft .*'templates': 5.*asks for one with .*9"):
        wiring(module).graft("layer3", lambda shape: sized(shape, templates=9))
    # Something else at the same place comes behind it.
    assert wiring(module).graft("layer3", lambda shape: Convolved(shape[0])).new


def test_the_random_stream_does_not_depend_on_what_is_there() -> None:
    draws = []
    for _ in range(2):
        module = network("resnet8")
        for _stage in range(2):
            with seeding.isolated(3, "wire"):
                wiring(module).graft("layer3", sized)
                draws.append(float(torch.rand(())))
    assert len(set(draws)) == 1


def test_a_graft_that_changes_an_earlier_tap_is_refused() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)
    )
    module(IMAGES)
    wired = wiring(module)
    wired.student.tap("0")

    with pytest.raises(
        UnderstudyError, match=r"tap '0'.* had the shape \(4, 14, 14\) and has \(4, 7, 7\)"
    ):
        wired.graft("0", lambda shape: Halved())
    # A tap that keeps its shape is read as the model goes on with it.
    module = network("resnet8")
    wired = wiring(module)
    wired.student.tap("layer2")
    wired.graft("layer2", sized)
    assert wired.student.tap("layer2").shape == (16, 8, 8)


class Halved(Graft):
    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given[..., ::2, ::2]


def test_copies_and_averages_carry_the_graft() -> None:
    module = network("resnet8")
    placed = wiring(module).graft("layer3.0", sized)
    for duplicate in (copy.deepcopy, lambda part: AveragedModel(part).module):
        twin = duplicate(module)
        assert surgery_of(twin) == surgery_of(module)
        torch.testing.assert_close(answer(twin), answer(module), rtol=0, atol=0)
        with torch.no_grad():
            placed.module.values.bias.add_(1.0)
        assert not torch.equal(answer(twin), answer(module)), "the copy ran the original's graft"


@pytest.mark.parametrize("path", ["layer3", "layer3.0"])
def test_restored_leaves_the_student_as_it_was(path: str) -> None:
    module = network("resnet8")
    kept = wiring(module).graft("layer2", sized)
    before, names, logits = fingerprint(module), list(module.state_dict()), answer(module)
    hooks = [len(part._forward_hooks) for part in module.modules()]
    made = Templates(32)
    with unchanged(module), restored(module):
        wired = wiring(module)
        wired.graft(path, made)
        wired.graft("layer2", lambda shape: Convolved(shape[0]))
        wired.head(
            lambda width, classes: LinearChain(
                width, [{"name": "c", "kind": "linear", "size": classes}]
            )
        )
        assert len(surgery_of(module)) == 4
    assert fingerprint(module) == before and list(module.state_dict()) == names
    assert hooks == [len(part._forward_hooks) for part in module.modules()]
    assert torch.equal(answer(module), logits) and len(surgery_of(module)) == 1
    assert isinstance(module.fc, nn.Linear) and kept.module.spliced
    # What was taken out can be put in again.
    wiring(module).graft(path, made)


def test_a_new_graft_follows_the_student() -> None:
    module = network("resnet8").to(memory_format=torch.channels_last).double()
    images = IMAGES.double()
    placed = wiring(module, images).graft("layer3.0", lambda shape: Convolved(shape[0], kernel=3))
    weight = placed.module.map.weight
    assert weight.dtype == torch.float64
    assert weight.is_contiguous(memory_format=torch.channels_last)
    half = network("resnet8")
    wiring(half).graft("layer3.0", sized)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = half.train()(IMAGES).float().square().sum()
    loss.backward()
    assert half.layer3[0].graft.scores.weight.grad.dtype == torch.float32


def test_compiled_without_a_graph_break() -> None:
    module = network("resnet8")
    for path in ("layer3", "layer3.0"):
        wiring(module).graft(path, sized)
    reader = Tapped(module.eval(), ["layer3", "layer3.graft.scores", "layer3.0.graft.scores"])
    torch._dynamo.reset()
    compiled = torch.compile(reader, backend="aot_eager", fullgraph=True)
    logits, features = compiled(IMAGES)
    expected, plain = reader(IMAGES)
    torch.testing.assert_close(logits, expected)
    for name, value in plain.items():
        torch.testing.assert_close(features[name], value)
    torch._dynamo.reset()


def test_what_it_costs_is_counted() -> None:
    module = network("resnet8")
    parameters, flops = cost.parameters(module), cost.flops(module, IMAGES)
    wiring(module).graft("layer3.0", lambda shape: Convolved(shape[0]))
    assert cost.parameters(module) == parameters + 32 * 32
    assert cost.flops(module, IMAGES) == flops + 2 * 32 * 32 * 4 * 4


def grafted_model(path: str = "layer3.0") -> Model:
    with seeding.isolated(7, "test"):
        model = build(
            "kd:resnet8",
            classes=3,
            kind="image",
            input_shape=(1, 16, 16),
            class_names=("no", "yes", "both"),
            statistics=((0.3,), (0.4,)),
            width=0.5,
        )
        placed = wiring(model.module).graft(path, sized)
        with torch.no_grad():
            for value in placed.module.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.rand_like(value))
    return model


def keep(model: Model, folder: Path) -> Path:
    return save(model, folder, classes=("no", "yes", "both"), input_shape=(1, 16, 16), kind="image")


@pytest.mark.parametrize("path", ["layer3", "layer3.0"])
def test_a_saved_student_is_the_same_after_loading(path: str, tmp_path: Path) -> None:
    model = grafted_model(path)
    folder = keep(model, tmp_path / "student")
    described = read_description(folder)
    assert described["surgery"] == [
        {
            "kind": "graft",
            "path": path,
            "child": "graft",
            "name": "py:spare_parts:Templates",
            "keywords": {"channels": 32, "templates": 5, "alpha": 1.0},
        }
    ]
    assert described["parameters"] == cost.parameters(model.module)
    before = torch.random.get_rng_state()
    loaded = load(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert fingerprint(loaded.module) == fingerprint(model.module) == described["fingerprint"]
    torch.testing.assert_close(answer(loaded.module), answer(model.module), rtol=0, atol=0)
    again = build(f"saved:{folder}", classes=3, kind="image", input_shape=(1, 16, 16))
    assert fingerprint(again.module) == fingerprint(model.module)
    assert not wiring(again.module).graft(path, sized).new
    twice = load(keep(again, tmp_path / "again"))
    torch.testing.assert_close(answer(twice.module), answer(model.module), rtol=0, atol=0)


def test_a_live_object_is_loaded_with_its_grafts(tmp_path: Path) -> None:
    module = network("sequential")
    model = live(module, kind="image", input_shape=(1, 16, 16))
    wiring(module).graft("0", sized)
    folder = save(model, tmp_path / "live", classes=3, input_shape=(1, 16, 16), kind="image")
    fresh = network("sequential")
    loaded = load(folder, module=fresh)
    assert loaded.module is fresh
    torch.testing.assert_close(answer(fresh), answer(module), rtol=0, atol=0)
    load(folder, module=fresh)  # what is there already stays
    assert len(surgery_of(fresh)) == 1


def test_a_program_holds_graft_and_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.models.export.run_fresh", run_here)
    model = grafted_model()
    wiring(model.module).head(lambda width, classes: MarginalHead(width, classes, 4))
    raw = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    path = export(
        model,
        "torch-export",
        tmp_path / "program",
        example_raw=raw,
        kind="image",
        input_shape=(1, 16, 16),
    )
    inputs = model.preprocess(raw, torch.device("cpu"))
    given = torch.export.load(path).module()(inputs)
    torch.testing.assert_close(given, answer(model.module, inputs), rtol=1e-4, atol=1e-5)
    assert len(surgery_of(model.module)) == 2, "the model itself was changed"


def test_a_transformer_with_a_graft_has_no_hf_export(tmp_path: Path) -> None:
    model = bert()
    wiring(model.module, tokens(model)).graft("bert.encoder.layer.0", sized)
    with pytest.raises(ModelError, match=r"a graft at 'bert.encoder.layer.0', which transformers"):
        export(model, "hf", tmp_path / "hf", example_raw=TEXTS[:3], kind="text")
    assert not (tmp_path / "hf").exists()
    folder = save(model, tmp_path / "saved", classes=3, input_shape=None, kind="text")
    inputs = tokens(model)
    torch.testing.assert_close(answer(load(folder).module, inputs), answer(model.module, inputs))


def entry(**changes: Any) -> dict[str, Any]:
    plain = {
        "kind": "graft",
        "path": "layer3",
        "child": "graft",
        "name": "py:spare_parts:Templates",
        "keywords": {"channels": 32},
    }
    return plain | changes


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (entry(name="py:os:system"), ModelError, "'py:os:system' is no graft"),
        (entry(name="py:spare_parts:Odd"), ModelError, "is no graft"),
        (entry(name="templats"), UnknownName, "no graft called 'templats'"),
        (entry(path="layer9"), UnknownName, "layer9"),
        (entry(keywords={"channel": 32}), UnknownName, "setting of the graft"),
        (entry(kind="limb"), ModelError, "neither a graft nor a head"),
        (entry(extra=1), ModelError, "neither a graft nor a head"),
        (entry(child="forward"), ModelError, "has an attribute 'forward' already"),
        ("graft", ModelError, "neither a graft nor a head"),
    ],
)
def test_descriptions_that_are_none_are_refused(
    wrong: Any, kind: type[Exception], message: str
) -> None:
    module = network("resnet8")
    with pytest.raises(kind, match=message):
        operate(module, [wrong])
    assert not surgery_of(module)


def test_something_else_in_the_place_is_refused() -> None:
    module = network("resnet8")
    operate(module, [entry()])
    operate(module, surgery_of(module))
    with pytest.raises(ModelError, match=r"At 'layer3' sits .*'templates': 5.*'templates': 7"):
        operate(module, [entry(keywords={"channels": 32, "templates": 7, "alpha": 1.0})])
    graft = module.layer3.graft
    with pytest.raises(ModelError, match="sits in a model already"):
        splice(network("resnet8"), "layer3", graft)


def test_the_name_is_one_that_another_process_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grafts, "_members", dict(grafts._members))

    class Named(Templates, name="named"):
        """Its registration is known to this process only."""

    assert grafts.get("named") is Named
    Named.__module__, Named.__qualname__ = "spare_parts", "Named"
    assert Named(4).identity == {"name": "py:spare_parts:Named", "keywords": Named(4).keywords}
    Named.__module__ = "understudy.models.grafts.named"
    assert Named.registered_name() == "named"
    assert LinearChain.registered_name() == "linear_chain"

    class Below(Named):
        """A subclass does not inherit the name."""

    Below.__module__, Below.__qualname__ = "understudy.models.grafts.named", "Below"
    assert Below.registered_name() == "py:understudy.models.grafts.named:Below"
    Below.__module__ = "__main__"
    with pytest.raises(ModelError, match="the program that runs"):
        Below.registered_name()


def run_on_images(module: nn.Module) -> Any:
    return module(IMAGES)


def test_check_spliced_reports_what_torch_says() -> None:
    module = network("resnet8")
    name = splice(module, "layer3", Convolved(7))
    check: Callable[[nn.Module], Any] = run_on_images
    with pytest.raises(ModelError, match=r"evaluation mode: .*7"):
        check_spliced(module, "layer3", name, check)
