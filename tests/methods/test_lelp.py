"""LELP: targets, fit, refusals, and what trains."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from wired_step import CLASSES, Wired, reached, wired

from understudy import objectives
from understudy.data.batch import Batch
from understudy.data.sources.python import from_tensors
from understudy.data.views import Views
from understudy.errors import DataError, UnderstudyError
from understudy.methods import LELP, Study, Supervised
from understudy.models.configured import Configured
from understudy.models.heads import marginal_logits
from understudy.models.model import Model
from understudy.tasks.classification import Classification
from understudy.teachers.directions import null_basis, orthonormal

B, S = 40, 3


class AsTheyAre(Configured):
    """Inputs as they are."""

    def __call__(self, raw: Any, device: torch.device) -> torch.Tensor:
        return raw.to(device)

    def config(self) -> dict[str, Any]:
        return {}


def study(found: Wired, folder: Path, *, labels: list[int] | None = None, seed: int = 11) -> Study:
    """Return a real study over the inputs that the method is wired on."""
    given = torch.tensor(labels) if labels is not None else found.train.labels
    source = from_tensors(
        found.inputs,
        given,
        test_inputs=found.inputs[:1],
        test_labels=torch.zeros(1, dtype=torch.int64),
        classes=["low", "middle", "high"],
        kind="tensor",
    )
    return Study(
        split=source.train,
        teachers={"teacher": Model(found.teacher, AsTheyAre(), "resnet14")},
        classes=("low", "middle", "high"),
        task=Classification(),
        device=torch.device("cpu"),
        views=Views([], seed=0),
        folder=folder,
        mode="real",
        batch_size=16,
        method="lelp",
        seed=seed,
    )


def spread(module: nn.Module, inputs: torch.Tensor) -> None:
    """Let a teacher put every class first for some inputs, and be of different minds about them."""
    with torch.no_grad():
        logits = module.eval()(inputs)
        # Differences between samples are small in a network that has learnt nothing.
        scale = 2 / (logits - logits.mean(dim=0)).std()
        module.fc.weight *= scale
        module.fc.bias.copy_((module.fc.bias - logits.mean(dim=0)) * scale)


def made(folder: Path, *, seed: int = 11, **settings: Any) -> Wired:
    """Return the method, wired and fitted."""
    found = wired(LELP(**{"subclasses": S, **settings}), count=B)
    spread(found.teacher, found.inputs)
    found.method.fit(study(found, folder, seed=seed))
    return found


def embedding(found: Wired) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the teacher's embedding and logits of the inputs."""
    outputs = found.step().teacher
    assert outputs.logits is not None
    return outputs.features["fc@input"], outputs.logits


# The targets


def test_the_targets_are_the_class_times_the_split() -> None:
    torch.manual_seed(0)
    logits, places = torch.randn(5, CLASSES), torch.randn(5, CLASSES, S)
    found = objectives.subclass_logits(logits, places, temperature=2.0, beta=0.3)
    q = torch.softmax(found / 2.0, dim=1).unflatten(1, (CLASSES, S))
    classes, split = torch.softmax(logits / 2, dim=1), torch.softmax(places / 0.3, dim=2)
    torch.testing.assert_close(q, classes.unsqueeze(2) * split)
    torch.testing.assert_close(q.sum(dim=2), classes, atol=1e-6, rtol=0)
    even = objectives.subclass_logits(logits, places, temperature=2.0, beta=1e9)
    torch.testing.assert_close(
        torch.softmax(even / 2, dim=1).unflatten(1, (CLASSES, S)),
        classes.unsqueeze(2).expand(-1, -1, S) / S,
    )


def test_the_targets_stay_finite_and_refuse_what_does_not_fit() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    places = torch.tensor([[[1e4, -1e4], [0.0, 0.0]]])
    found = objectives.subclass_logits(logits, places, temperature=0.05, beta=0.05)
    student = torch.zeros(1, 4, requires_grad=True)
    objectives.kd(student, found, temperature=0.05).backward()
    assert found.isfinite().all() and not found.requires_grad
    assert student.grad is not None and student.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"\[\.\.\., C, S\].*\(1, 2\)"):
        objectives.subclass_logits(logits, logits)
    with pytest.raises(ValueError, match="beta is 0"):
        objectives.subclass_logits(logits, places, beta=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_one_sub_class_is_plain_distillation(tmp_path: Path, temperature: float) -> None:
    found = made(tmp_path, subclasses=1, temperature=temperature)
    step = found.step()
    loss = found.method.loss(step)
    student, teacher = step.logits()
    plain = objectives.kd(student, teacher, temperature=temperature)
    torch.testing.assert_close(loss, plain)
    parameters = list(found.student.parameters())
    for one, other in zip(
        torch.autograd.grad(loss, parameters, retain_graph=True),
        torch.autograd.grad(plain, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_loss_is_the_cross_entropy_less_the_entropy_of_the_targets(tmp_path: Path) -> None:
    found = made(tmp_path, beta=0.4)
    step = found.step(weight=torch.rand(B))
    loss = found.method.loss(step)
    h, logits = embedding(found)
    own = found.method
    places = torch.stack(
        [
            (h - (own.centres[c] @ own.basis[c].T)) @ own.basis[c] / own.scales[c]
            for c in range(CLASSES)
        ],
        dim=1,
    )
    q = torch.softmax(logits, dim=1).unsqueeze(2) * torch.softmax(places / 0.4, dim=2)
    outputs = torch.log_softmax(step.student.features["fc.subclasses"], dim=1)
    values = -(q.flatten(1) * outputs).sum(dim=1) + (q * q.log()).sum(dim=(1, 2))
    weight = step.batch.weight
    assert weight is not None and (values >= -1e-6).all()
    torch.testing.assert_close(loss, (values * weight).sum() / weight.sum(), atol=1e-5, rtol=1e-4)


def test_the_right_marginals_with_an_even_split_lack_the_entropy_of_the_split() -> None:
    torch.manual_seed(2)
    logits, places = torch.randn(6, CLASSES), torch.randn(6, CLASSES, S)
    student = torch.log_softmax(logits, dim=1).repeat_interleave(S, dim=1)
    split = torch.softmax(places / 0.5, dim=2)
    entropy = -(split * split.log()).sum(dim=2)
    wanted = (torch.softmax(logits, dim=1) * (math.log(S) - entropy)).sum(dim=1).mean()
    targets = objectives.subclass_logits(logits, places, beta=0.5)
    torch.testing.assert_close(objectives.kd(student, targets, temperature=1.0), wanted)


def test_labels_count_through_the_marginal(tmp_path: Path) -> None:
    found = made(tmp_path)
    step = found.step()
    outputs = torch.softmax(step.student.features["fc.subclasses"], dim=1)
    marginal = outputs.unflatten(1, (CLASSES, S)).sum(dim=2)
    labels = step.labels
    assert labels is not None and step.student.logits is not None
    wanted = -marginal[torch.arange(B), labels].log().mean()
    torch.testing.assert_close(Supervised().loss(step), wanted)
    assert torch.equal(step.student.logits.argmax(dim=1), marginal.argmax(dim=1))
    torch.testing.assert_close(
        step.student.logits, marginal_logits(step.student.features["fc.subclasses"], S)
    )


# The fit


def test_directions_are_orthonormal_and_the_classifier_does_not_see_them(tmp_path: Path) -> None:
    found = made(tmp_path)
    for basis in found.method.basis:
        torch.testing.assert_close(basis.T @ basis, torch.eye(S), atol=1e-5, rtol=0)
    weight = found.teacher.fc.weight.detach()
    assert (weight @ found.method.basis).abs().max() < 1e-5 * weight.norm()
    h, _ = embedding(found)
    shifted = h + torch.randn(B, CLASSES) @ weight
    torch.testing.assert_close(
        found.method.coordinates(shifted), found.method.coordinates(h), atol=1e-4, rtol=1e-3
    )
    space = null_basis(weight)
    left = h.double() @ space @ space.T
    assert (left @ weight.T.double()).norm() < 1e-5 * weight.norm() * h.norm()


def test_directions_are_the_principal_ones_of_the_class_turned(tmp_path: Path) -> None:
    found = made(tmp_path, null_space=False, membership="labels")
    h, _ = embedding(found)
    labels = found.train.labels
    for c in range(CLASSES):
        own = (h[labels == c] - h[labels == c].mean(dim=0)).double()
        top = torch.linalg.svd(own, full_matrices=False)[2][:S].T
        basis = found.method.basis[c].double()
        torch.testing.assert_close(basis @ basis.T, top @ top.T, atol=1e-4, rtol=0)
        places = found.method.coordinates(h[labels == c])[:, c]
        torch.testing.assert_close(places.square().mean(), torch.tensor(1.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(places.mean(dim=0), torch.zeros(S), atol=1e-4, rtol=0)


def test_without_rotation_the_first_direction_varies_most_and_raw_keeps_the_size(
    tmp_path: Path,
) -> None:
    plain = made(tmp_path, rotate=False, scale="raw")
    h, logits = embedding(plain)
    own = plain.method.coordinates(h)[logits.argmax(dim=1) == 1, 1]
    variances = own.var(dim=0, unbiased=False)
    assert (variances.diff() < 0).all()
    turned = made(tmp_path)
    assert torch.equal(plain.method.scales, torch.ones(CLASSES))
    torch.testing.assert_close(
        turned.method.scales[1].square(), variances.mean(), rtol=1e-3, atol=0
    )


def test_what_is_drawn_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (made(tmp_path, seed=seed).method for seed in (1, 1, 2))
    assert torch.equal(first.basis, again.basis)
    assert not torch.allclose(first.basis, other.basis)
    random = made(tmp_path, directions="random").method
    assert not torch.allclose(
        random.basis[0] @ random.basis[0].T, first.basis[0] @ first.basis[0].T, atol=1e-2
    )
    generator = torch.Generator().manual_seed(1)
    found = orthonormal(6, 4, generator)
    torch.testing.assert_close(found.T @ found, torch.eye(4, dtype=torch.float64))


def test_drawn_coordinates_belong_to_the_sample(tmp_path: Path) -> None:
    found = made(tmp_path, directions="drawn", beta=1.0)
    whole = found.method._places(torch.zeros(B, 1), torch.arange(B))
    part = found.method._places(torch.zeros(2, 1), torch.tensor([7, 3]))
    assert torch.equal(part, whole[[7, 3]]) and whole.shape == (B, CLASSES, S)
    assert 0.8 < whole.std() < 1.2


def test_stored_targets_are_those_of_the_samples_as_they_are(tmp_path: Path) -> None:
    live, stored = made(tmp_path), made(tmp_path, targets="stored")
    assert live.method.needs_teacher and not stored.method.needs_teacher
    stored.student.load_state_dict(live.student.state_dict())
    first = live.method.loss(live.step([3, 9, 1]))
    changed = stored.step([3, 9, 1])
    torch.testing.assert_close(stored.method.loss(changed), first)

    def refuse(batch: Batch) -> None:
        raise AssertionError("the teacher was run")

    changed.teachers._sources = {"teacher": refuse}  # type: ignore[attr-defined]
    stored.method.loss(changed)


def test_the_mean_entropy_is_noted(tmp_path: Path) -> None:
    found = wired(LELP(subclasses=S, beta=0.4), count=B)
    spread(found.teacher, found.inputs)
    looked = study(found, tmp_path)
    found.method.fit(looked)
    h, logits = embedding(found)
    split = torch.softmax(found.method.coordinates(h) / 0.4, dim=2)
    classes = torch.softmax(logits, dim=1)
    entropy = -(classes * (split * split.log()).sum(dim=2)).sum(dim=1).mean() / math.log(S)
    assert f"mean entropy of the split {entropy:.2f} of log 3" in looked.notes[-1].what
    found.method.beta = 1e-4
    found.method.fit(again := study(found, tmp_path))
    assert "a larger beta is likely to be better" in again.notes[-1].what


# What is refused, and what is said


def test_a_class_that_the_teacher_never_predicts_is_named(tmp_path: Path) -> None:
    found = wired(LELP(subclasses=S), count=B)
    with torch.no_grad():
        found.teacher.fc.bias[1] = -1e3
    with pytest.raises(DataError, match="class 'middle' into 3 subclasses.*first for 0 of 40"):
        found.method.fit(study(found, tmp_path))


def test_a_class_with_too_few_labels_is_named(tmp_path: Path) -> None:
    found = wired(LELP(subclasses=S, membership="labels"), count=B)
    labels = [0] * 18 + [1] * 18 + [2] * 3 + [-1]
    with pytest.raises(DataError, match="class 'high'.*at least 4 samples.*3 of 40.*: teacher"):
        found.method.fit(study(found, tmp_path, labels=labels))


def test_more_subclasses_than_directions_are_refused_when_wired() -> None:
    with pytest.raises(UnderstudyError, match="30 subclasses.*width 32 has 29 that its classifier"):
        wired(LELP(subclasses=30))
    wired(LELP(subclasses=30, null_space=False))


def test_a_place_that_the_classifier_does_not_read_is_noted_and_many_outputs_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("understudy.methods.lelp.MANY", 8)
    found = wired(LELP(subclasses=S, teacher_tap="layer3"))
    assert any("no null space, since 'layer3'" in note for note in found.wiring.notes)
    assert any("3 classes x 3 sub-classes are 9 outputs" in note for note in found.wiring.notes)
    with pytest.raises(ValueError, match="beta is 0"):
        LELP(beta=0)
    with pytest.raises(ValueError, match="scale is 'none'"):
        LELP(scale="none")  # type: ignore[arg-type]


# What trains


def test_gradients_reach_the_student_only(tmp_path: Path) -> None:
    found = made(tmp_path)
    found.method.loss(found.step()).backward()
    names = {name for name, _ in found.student.named_parameters()}
    assert reached(found.student) == names and "fc.subclasses.weight" in names
    assert not list(found.method.parameters()) and not reached(found.teacher)


def test_tokens_without_padding_make_the_embedding() -> None:
    found = wired(LELP(subclasses=2, teacher_tap="blocks.3"), text=True)
    found.method.basis.normal_()
    step = found.step()
    tokens = step.teacher.features["blocks.3"]
    mask = found.inputs["attention_mask"].unsqueeze(2)
    mean = (tokens * mask).sum(dim=1) / mask.sum(dim=1)
    _, teacher = step.logits()
    targets = objectives.subclass_logits(teacher, found.method.coordinates(mean), beta=0.1)
    torch.testing.assert_close(
        found.method.loss(step),
        objectives.kd(step.student.features["classifier.subclasses"], targets, temperature=1.0),
    )
