"""PAD, SRD, Review and KTAAD: losses that train modules of their own beside the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from understudy import objectives, seeding
from understudy.data.batch import Batch
from understudy.errors import UnderstudyError
from understudy.methods import KTAAD, PAD, SRD, KTAADTranslator, Method, Review, Step
from understudy.methods.review import AttentionFusion
from understudy.methods.wiring import Side, Wiring
from understudy.models import kd
from understudy.models.taps import Tapped
from understudy.tasks.classification import Classification

CLASSES = 4
GOLDEN = Path(__file__).parent.parent / "golden" / "torchdistill"
Build = Callable[[], Method]


def network(name: str = "resnet8", width: float = 0.25) -> nn.Module:
    return kd.build(name, classes=CLASSES, in_channels=1, width=width)


class Rig:
    """A student, a teacher and a batch, and what a method makes of them."""

    def __init__(
        self,
        student: nn.Module | None = None,
        teacher: nn.Module | None = None,
        *,
        inputs: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        earlier: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        self.student = student or network()
        self.teacher = (teacher or network("resnet14", 0.5)).eval()
        inputs = torch.randn(6, 1, 16, 16) if inputs is None else inputs
        self.batch = batch_of(inputs, weight)
        height = inputs.shape[2] if inputs.dim() == 4 else None
        sides = [
            Side(role, model, inputs, training=role == "student", input_height=height)
            for role, model in (("student", self.student), ("teacher", self.teacher))
        ]
        self.wiring = Wiring(sides[0], {"teacher": sides[1]}, classes=CLASSES, earlier=earlier)

    def wire(self, method: Any) -> Any:
        with seeding.isolated(3, "wire"):
            method.wire(self.wiring)
        return method

    def step(self, batch: Batch | None = None) -> Step:
        task = Classification()

        def run(side: Side, role: str) -> Any:
            return lambda batch: task.forward_tapped(
                Tapped(side.module, side.taps, side.copied), batch, role
            )

        teacher = run(self.wiring.teacher, "teacher")
        with torch.no_grad():
            answers = teacher(batch or self.batch)
        return Step(
            batch or self.batch,
            task=task,
            student=run(self.wiring.student, "student"),
            teachers={"teacher": lambda _batch: answers},
            progress=0.5,
        )


def batch_of(inputs: torch.Tensor, weight: torch.Tensor | None = None) -> Batch:
    count = torch.arange(len(inputs))
    return Batch({"student": inputs, "teacher": inputs}, count % CLASSES, count, 0 * count, weight)


def total(given: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
    return given if isinstance(given, torch.Tensor) else torch.stack(list(given.values())).sum()


def untrained(rig: Rig, method: Method, loss: torch.Tensor) -> set[str]:
    """Return the parameters of student and method that the loss leaves alone; the teacher's must be among none."""
    loss.backward()
    assert all(p.grad is None for p in rig.teacher.parameters())
    named = [*rig.student.named_parameters(), *method.named_parameters()]
    return {name for name, p in named if p.grad is None or not p.grad.any()}


def translated() -> dict[str, dict[str, torch.Tensor]]:
    translator = Rig().wire(KTAADTranslator())
    return {"ktaad_translator": translator.state_dict()}


CASES: dict[str, Build] = {
    "pad": PAD,
    "plain": lambda: PAD(adaptive=False),
    "srd": SRD,
    "review": Review,
    "ktaad": KTAAD,
}


def earlier_of(name: str) -> dict[str, dict[str, torch.Tensor]]:
    return translated() if name == "ktaad" else {}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_trains_the_backbone_and_the_modules_and_nothing_else(name: str) -> None:
    rig = Rig(earlier=earlier_of(name))
    method = rig.wire(CASES[name]())
    missed = untrained(rig, method, total(method.loss(rig.step())))
    encoder = {key for key in dict(method.named_parameters()) if key.startswith("encoder.")}
    # A bias before batch norm has no effect.
    before_norm = {"log_variance.0.bias", "projector.bias", "feature_adapter.0.bias"} & missed
    assert missed == {"fc.weight", "fc.bias"} | encoder | before_norm
    assert {key for key in dict(rig.student.named_modules())} == {
        key for key in dict(network().named_modules())
    }


@pytest.mark.parametrize("name", CASES)
def test_weights_of_samples_count(name: str) -> None:
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 2.0, 1.0])
    rig = Rig(weight=weight, earlier=earlier_of(name))
    method = rig.wire(CASES[name]())
    step = rig.step()
    features = step.teacher.features
    before = total(method.loss(step))
    for key, feature in features.items():
        features[key] = feature.clone()
        features[key][2] = 0.0
    after = total(method.loss(step))
    if name == "srd":
        # The embedding of every sample is in the batch norm's statistics, but not in the sum.
        ours, theirs = (
            part[method.places[i]] for i, part in enumerate((step.student.features, features))
        )
        expected = objectives.srd(
            F.batch_norm(method.projector(ours), None, None, training=True, eps=1e-4),
            F.batch_norm(theirs, None, None, training=True, eps=1e-4),
            weight=weight,
        )
        torch.testing.assert_close(after, expected)
    else:
        torch.testing.assert_close(after, before)
    step.batch.weight = torch.ones(6)
    assert not torch.isclose(total(method.loss(step)), after, rtol=1e-4)


@pytest.mark.parametrize("name", ["pad", "srd"])
def test_one_sample_has_no_batch_to_be_normalised_over(name: str) -> None:
    rig = Rig()
    method = rig.wire(CASES[name]())
    with pytest.raises(UnderstudyError, match="has one sample"):
        method.loss(rig.step(batch_of(torch.randn(1, 1, 16, 16))))


def test_pad_is_the_likelihood_under_a_variance_from_the_embedding() -> None:
    rig = Rig()
    method = rig.wire(PAD(eps=0.01))
    step = rig.step()
    ours, theirs = step.student.features["fc@input"], step.teacher.features["fc@input"]
    linear, norm = method.log_variance
    v = F.batch_norm(ours @ linear.weight.T + linear.bias, None, None, norm.weight, norm.bias, True)
    expected = (theirs - method.projector(ours)).square() / (0.01 + v.exp()) + v
    torch.testing.assert_close(method.loss(step), expected.mean())


def test_pad_of_equal_widths_has_no_projector_and_pools_maps() -> None:
    rig = Rig(network(), network("resnet14", 0.25))
    method = rig.wire(PAD(adaptive=False, student_tap="layer3", teacher_tap="layer3"))
    assert not list(method.parameters())
    step = rig.step()
    ours, theirs = step.features("layer3", "layer3")
    expected = F.mse_loss(ours.mean(dim=(2, 3)), theirs.mean(dim=(2, 3)))
    torch.testing.assert_close(method.loss(step), expected)


def test_the_second_stage_of_pad_goes_on_with_the_projector_and_trains_it() -> None:
    first = Rig().wire(PAD(adaptive=False))
    second = Rig(earlier={"pad": first.state_dict()})
    torch.manual_seed(1)
    method = second.wire(PAD())
    assert torch.equal(method.projector.weight, first.projector.weight)
    method.loss(second.step()).backward()
    assert method.projector.weight.grad.abs().sum() > 0


def test_srd_is_the_logarithm_of_the_summed_powers_of_normalised_differences() -> None:
    rig = Rig()
    method = rig.wire(SRD(exponent=3.0))
    step = rig.step()
    ours, theirs = step.student.features["fc@input"], step.teacher.features["fc@input"]
    projected = ours @ method.projector.weight.T + method.projector.bias

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + 1e-4).sqrt()

    expected = 2 * (norm(projected) - norm(theirs)).abs().pow(3).sum().log()
    torch.testing.assert_close(method.loss(step), expected)


def test_a_fusion_gives_the_numbers_of_the_published_code() -> None:
    g = load_file(GOLDEN / "module_abf_attention.safetensors")
    names = {"conv1": "reduce", "conv2": "expand", "attention_conv": "gate"}
    fusion = AttentionFusion(4, 3, 5, gated=True).double()
    state = {}
    for key, value in g.items():
        if key.startswith("param.") and "running" not in key:
            name = key.removeprefix("param.")
            state[name.replace(name.partition(".")[0], names[name.partition(".")[0]])] = value
    fusion.load_state_dict(state)
    x, y = g["in.x"].requires_grad_(), g["in.y"].requires_grad_()
    outputs = fusion(x, y, (6, 6))
    for number, output in enumerate(outputs):
        torch.testing.assert_close(output, g[f"out{number}"], rtol=1e-8, atol=1e-10)
    ramp = [torch.arange(o.numel(), dtype=o.dtype).view_as(o) / o.numel() for o in outputs]
    torch.stack([(o * r).sum() for o, r in zip(outputs, ramp, strict=True)]).sum().backward()
    torch.testing.assert_close(x.grad, g["grad.x"], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(y.grad, g["grad.y"], rtol=1e-8, atol=1e-10)


def test_review_pairs_the_published_stages_and_sums_their_context_losses() -> None:
    rig = Rig()
    method = rig.wire(Review())
    assert method.embedding == ("fc@input", "fc@input")
    assert method.places == [
        ("layer3", "layer3.1.relu2@input"),
        ("layer2", "layer2.1.relu2@input"),
        ("layer1", "layer1.1.relu2@input"),
    ]
    assert [fusion.reduce[0].out_channels for fusion in method.fusions] == [16] * 4
    assert [fusion.gate is None for fusion in method.fusions] == [True, False, False, False]
    step = rig.step()
    deeper, expected = None, 0.0
    for fusion, places in zip(method.fusions, [method.embedding, *method.places], strict=True):
        ours, theirs = step.features(*places)
        if theirs.dim() == 2:
            ours, theirs = ours[:, :, None, None], theirs[:, :, None, None]
        output, deeper = fusion(ours, deeper, theirs.shape[2:])
        height = theirs.shape[2]
        value, share, shares = F.mse_loss(output, theirs), 1.0, 1.0
        for level in [level for level in (4, 2, 1) if level < height]:
            share /= 2
            shares += share
            pooled = [F.adaptive_avg_pool2d(side, level) for side in (output, theirs)]
            value = value + share * F.mse_loss(*pooled)
        expected = expected + value / shares
    torch.testing.assert_close(method.loss(step), expected)


def test_review_stretches_maps_to_the_size_of_a_teacher_of_another_build() -> None:
    rig = Rig(
        network("shufflenetv1", 0.25), network("resnet8", 0.5), inputs=torch.randn(3, 1, 32, 32)
    )
    stages = rig.wiring.student.description.main_stages
    method = rig.wire(
        Review([stage.tap for stage in stages[-3:]], ["layer1", "layer2", "layer3"], False, 32)
    )
    assert method.fusions[0].reduce[0].out_channels == 32
    assert method.places[0][1] == "layer3"
    assert untrained(rig, method, method.loss(rig.step())) >= {"linear.weight"}


def test_maps_are_needed_for_review_and_adaptation() -> None:
    flat = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    rig = Rig(flat, flat, inputs=torch.randn(6, 16))
    with pytest.raises(UnderstudyError, match="'review' compares feature maps"):
        rig.wire(Review())
    with pytest.raises(UnderstudyError, match="'ktaad_translator' compares feature maps"):
        rig.wire(KTAADTranslator())
    with pytest.raises(UnderstudyError, match="no earlier stage has that method"):
        Rig().wire(KTAAD())


def test_the_translator_reconstructs_the_last_map_and_leaves_the_student_alone() -> None:
    rig = Rig()
    method = rig.wire(KTAADTranslator(penalty=0.5))
    assert not method.trains_student and not rig.wiring.student.taps
    step = rig.step()
    terms = method.loss(step)
    target = step.teacher.features["layer3"]
    code = method.encoder(target)
    assert code.shape[1] == target.shape[1] // 2 and code.shape[2:] == target.shape[2:]
    torch.testing.assert_close(terms["error"], F.mse_loss(method.decoder(code), target))
    torch.testing.assert_close(terms["penalty"], 0.5 * code.abs().flatten(1).sum(dim=1).mean())
    before = [value.clone() for value in method.buffers()]
    method.after_step(step)
    assert all(map(torch.equal, before, method.buffers()))


def test_adaptation_compares_codes_and_affinities_with_the_encoder_as_it_was_trained() -> None:
    translator = Rig().wire(KTAADTranslator())
    for norm in translator.encoder:
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)
    rig = Rig(earlier={"ktaad_translator": translator.state_dict()})
    method = rig.wire(KTAAD(adaptation=2.0, affinity=3.0)).train()
    step = rig.step()
    terms = method.loss(step)
    ours, theirs = step.features("layer3", "layer3")
    code = translator.encoder.eval()(theirs)
    adapted, related = method.feature_adapter(ours), method.affinity_adapter(ours)

    def unit(x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x.flatten(1), dim=1)

    torch.testing.assert_close(terms["adaptation"], 2 * (unit(adapted) - unit(code)).abs().mean())
    cosines = [(u := F.normalize(side.flatten(2), dim=1)).mT @ u for side in (related, code)]
    distance = (cosines[0] - cosines[1]).flatten(1).norm(dim=1) / cosines[0].shape[1]
    torch.testing.assert_close(terms["affinity"], 3 * distance.mean())
    assert all(
        torch.equal(value, translator.encoder.state_dict()[key])
        for key, value in method.encoder.state_dict().items()
    )


def test_maps_of_different_sizes_are_averaged_to_the_smaller_one() -> None:
    rig = Rig(earlier=translated())
    method = rig.wire(KTAAD("layer2", "layer3"))
    assert torch.isfinite(total(method.loss(rig.step())))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PAD(eps=0.0), "eps is 0.0"),
        (lambda: SRD(exponent=0.5), "0.5; it must be a number of at least 1"),
        (lambda: Review(max_width=0), "max_width is 0"),
        (lambda: KTAADTranslator(rate=0.0), "rate is 0.0"),
        (lambda: KTAADTranslator(penalty=-1.0), "penalty is -1.0"),
        (lambda: KTAAD(affinity=-1.0), "affinity is -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
