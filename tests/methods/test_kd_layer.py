"""The KD layer as methods: letKD-1 and letKD-2, their ablations, and what is fitted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "teachers"))

import pytest
import study_kit
import torch
import torch.nn.functional as F
from wired_step import CLASSES, Wired, reached, wired

from understudy.errors import DataError, UnderstudyError
from understudy.methods import Method, SubClassLayer, VisualWordLayer
from understudy.models.grafts.kd_layer import KDLayer
from understudy.teachers.clustering import Clusters, assign, score_table
from understudy.teachers.discriminants import discriminants
from understudy.teachers.features import Features
from understudy.teachers.readings import Reading
from understudy.teachers.statistics import ClassMoments
from understudy.teachers.vocabulary import sub_classes, visual_words


def filled(method: Method) -> None:
    """Put numbers where the fit would."""
    torch.manual_seed(4)
    for name, buffer in method.named_buffers():
        buffer.copy_(torch.randn_like(buffer))
        if name.startswith("table"):
            buffer.copy_(buffer.softmax(dim=1) * (buffer > -1))
            buffer /= buffer.sum(dim=1, keepdim=True)


def layer_of(built: Wired, path: str) -> KDLayer:
    found = built.student.get_submodule(path)
    assert isinstance(found, KDLayer)
    return found


def plain_words(
    scores: torch.Tensor, teacher: torch.Tensor, words: torch.Tensor, sharpness: float
) -> torch.Tensor:
    """KL of every place by the formula, [B, ...]."""
    distances = (teacher.unsqueeze(-2) - words).square().sum(dim=-1)
    wanted = (-sharpness * distances).softmax(dim=-1)
    each = F.kl_div(scores.log_softmax(dim=-1), wanted, reduction="none")
    return each.sum(dim=-1)


def test_visual_words_value_and_gradient_are_the_formulas() -> None:
    built = wired(VisualWordLayer(templates=6, sharpness=0.3, alpha=0.5), train=False)
    filled(built.method)
    assert [point.teacher for point in built.method.points] == ["layer3"]
    assert layer_of(built, "layer3.graft").alpha == 0.5
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 0.5, 1.0, 3.0])
    step = built.step(weight=weight)
    scores, teacher = step.features("layer3.graft.scores", "layer3")
    assert scores.shape == (8, 4, 4, 6) and teacher.shape == (8, 32, 4, 4)
    each = plain_words(scores, teacher.movedim(1, -1), built.method.words_0, 0.3).mean(dim=(1, 2))
    loss = built.method.loss(step)
    torch.testing.assert_close(loss, (weight * each).sum() / weight.sum())
    (expected,) = torch.autograd.grad(
        (weight * each).sum() / weight.sum(), scores, retain_graph=True
    )
    (found,) = torch.autograd.grad(loss, scores, retain_graph=True)
    torch.testing.assert_close(found, expected)
    loss.backward()
    assert {"layer3.graft.scores.weight", "conv1.weight"} <= reached(built.student)
    # The words teach the templates; what is added is taught by the other losses.
    assert not {name for name in reached(built.student) if "graft.values" in name}
    assert not reached(built.teacher) and not list(built.method.parameters())


def test_limits_of_the_soft_assignment() -> None:
    built = wired(VisualWordLayer(templates=5, sharpness=1e6), train=False)
    filled(built.method)
    step = built.step()
    scores, teacher = step.features("layer3.graft.scores", "layer3")
    nearest = torch.cdist(teacher.movedim(1, -1).flatten(0, 2), built.method.words_0).argmin(dim=1)
    expected = F.cross_entropy(scores.flatten(0, 2), nearest)
    torch.testing.assert_close(built.method.loss(step), expected)
    one = wired(VisualWordLayer(templates=1))
    filled(one.method)
    loss = one.method.loss(one.step())
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in one.student.parameters())
    # Words that are all the same are equally likely; so are the scores of equal templates.
    same = wired(VisualWordLayer(templates=4), train=False)
    same.method.words_0.fill_(0.3)
    with torch.no_grad():
        layer_of(same, "layer3.graft").scores.weight.copy_(torch.ones(4, 16))
    assert abs(same.method.loss(same.step()).item()) < 1e-6


def test_sub_classes_value_and_labels() -> None:
    labels = [0, 1, 2, -1, 0, 1, 2, 0]
    built = wired(SubClassLayer(subclasses=2), labels=labels)
    filled(built.method)
    assert [point.scores for point in built.method.points] == ["layer3.0.graft.scores"]
    assert built.method.directions_0.shape == (32, 2)
    assert any("2 linear discriminants instead of 60" in note for note in built.wiring.notes)
    step = built.step()
    scores, teacher = step.features("layer3.0.graft.scores", "layer3.0")
    projected = (teacher.movedim(1, -1) - built.method.mean_0) @ built.method.directions_0
    total = torch.zeros(())
    for number, label in enumerate(labels):
        if label < 0:
            continue
        own = torch.cdist(projected[number].flatten(0, 1), built.method.centres_0[label])
        row = built.method.table_0[2 * label + own.argmin(dim=1)]
        log_q = scores[number].flatten(0, 1).log_softmax(dim=1)
        total = total + F.kl_div(log_q, row, reduction="none").sum(dim=1).mean() / 7
    torch.testing.assert_close(built.method.loss(step), total)
    soft = built.step()
    soft.batch.labels = torch.full((8, CLASSES), 1 / 3)
    with pytest.raises(DataError, match="one class a sample"):
        built.method.loss(soft)


def test_one_sub_class_and_no_mistakes_is_the_cross_entropy_of_places() -> None:
    built = wired(SubClassLayer(subclasses=1))
    filled(built.method)
    built.method.table_0.copy_(torch.eye(CLASSES))
    step = built.step()
    scores = step.student.features["layer3.0.graft.scores"].flatten(1, 2)
    assert step.labels is not None
    expected = F.cross_entropy(scores.transpose(1, 2), step.labels.unsqueeze(1).expand(8, 16))
    torch.testing.assert_close(built.method.loss(step), expected)


def test_both_in_one_stage() -> None:
    inner = SubClassLayer(subclasses=2)
    built = wired(inner)
    outer = VisualWordLayer(templates=5)
    outer.wire(built.wiring)
    filled(inner)
    filled(outer)
    step = built.step()
    assert step.student.logits is not None
    (inner.loss(step) + outer.loss(step) + step.student.logits.square().sum()).backward()
    found = reached(built.student)
    for path in ("layer3.0.graft", "layer3.graft"):
        assert {f"{path}.{name}" for name in ("scores.weight", "values.weight", "norm.weight")} <= (
            found
        )


def test_ablations() -> None:
    alone = wired(VisualWordLayer(templates=5, supervise=False))
    method = alone.method
    assert not method.fits and not method.uses_teacher and method.needs_labels
    assert not list(method.buffers()) and not alone.wiring.teacher.taps
    loss = method.loss(alone.step())
    loss.backward()
    assert loss == 0 and not reached(alone.student)
    assert isinstance(layer_of(alone, "layer3.graft"), KDLayer)
    quest = wired(VisualWordLayer(templates=5, alpha=0.0))
    filled(quest.method)
    step = quest.step()
    assert step.student.logits is not None
    (quest.method.loss(step) + step.student.logits.square().sum()).backward()
    found = reached(quest.student)
    assert "layer3.graft.scores.weight" in found
    assert not {
        name for name in found if ".values." in name or (".norm." in name and "graft" in name)
    }


def test_a_larger_map_of_the_teacher_is_averaged_before_everything(tmp_path: Path) -> None:
    # 8 x 8 of the teacher beside 4 x 4 of the student; an odd ratio is averaged as well.
    built = wired(VisualWordLayer(["layer3"], ["layer2"], templates=4))
    (point,) = built.method.points
    assert point.size == (4, 4) and point.reading == Reading("layer2", size=(4, 4))
    maps = torch.randn(2, 16, 8, 8)
    expected = F.avg_pool2d(maps, 2).movedim(1, -1)
    torch.testing.assert_close(point.places(maps), expected)
    study = study_kit.study(tmp_path)
    reading = Reading("relu", size=(3, 4))
    features = Features(reading)
    study.collect(features)
    assert features.shape == (5, 3, 4)
    whole = Features("relu")
    study.collect(whole)
    torch.testing.assert_close(
        features.rows_for(study.split.ids),
        F.adaptive_avg_pool2d(whole.rows_for(study.split.ids), (3, 4)),
    )
    assert visual_words(study, reading, 4, sharpness=1.0, sequence=False).shape == (4, 5)
    # Without a size the key of what was kept is what it was.
    assert "size" not in Reading("relu").config()


def test_visual_words_are_centres_of_all_places_and_their_confidence_is_noted(
    tmp_path: Path,
) -> None:
    study = study_kit.study(tmp_path)
    words = visual_words(study, Reading("relu"), 6, sharpness=2.0, sequence=False)
    features = Features("relu")
    study.collect(features)
    rows = torch.from_numpy(features.flat().copy())
    assert len(rows) == 50 * 4 * 6
    nearest = assign(rows.numpy(), words)
    means = torch.stack([rows[nearest == number].double().mean(dim=0) for number in range(6)])
    assert (means - words).abs().max() < 0.05
    sure = (-2.0 * torch.cdist(rows.double(), words).square()).softmax(dim=1).amax(dim=1).mean()
    (note,) = [note for note in study.notes if "largest probability" in note.what]
    assert note.what == f"mean largest probability of 6 words: {sure:.3f}"


def test_sub_classes_are_fitted_to_all_labelled_rows(tmp_path: Path) -> None:
    split = study_kit.split(unlabelled=5)
    study = study_kit.study(tmp_path, split=split)
    found = sub_classes(study, Reading("relu"), 3, 2, sequence=False)
    moments, features = ClassMoments("relu", covariance="pooled"), Features("relu")
    study.collect(moments, features)
    space = discriminants(moments, 2)
    torch.testing.assert_close(found.directions, space.directions)
    labels = features.per_row(split.ids, split.labels)
    rows = space(torch.from_numpy(features.flat().copy()))[labels >= 0]
    labels = labels[labels >= 0]
    assert len(rows) == 45 * 24 and found.centres.shape == (3, 3, 2)
    own = torch.cdist(rows, found.centres.view(9, 2))
    own[labels.unsqueeze(1) != torch.arange(9) // 3] = torch.inf
    assigned = own.argmin(dim=1)
    table = score_table(
        rows.numpy(), Clusters(found.centres.view(9, 2), assigned, torch.bincount(assigned))
    )
    torch.testing.assert_close(found.table, table, atol=0.02, rtol=0)
    assert any("nearest to their own sub-class" in note.what for note in study.notes)
    with pytest.raises(DataError, match="class 'low'"):
        sub_classes(study, Reading("relu"), 400, 2, sequence=False)


def test_padding_counts_nothing() -> None:
    built = wired(VisualWordLayer(templates=3), text=True, train=False)
    filled(built.method)
    (point,) = built.method.points
    assert point.sequence and point.scores == "blocks.1.graft.scores"
    step = built.step()
    scores, teacher = step.features(point.scores, point.teacher)
    mask = built.inputs["attention_mask"].float()
    each = plain_words(scores, teacher, built.method.words_0, 1.0)
    expected = ((each * mask).sum(dim=1) / mask.sum(dim=1)).mean()
    torch.testing.assert_close(built.method.loss(step), expected)
    (gradient,) = torch.autograd.grad(built.method.loss(step), scores)
    assert not gradient[mask == 0].any() and gradient[mask == 1].any()


def test_several_points() -> None:
    method = VisualWordLayer(["layer2", "layer3"], ["layer2", "layer3"], templates=4)
    built = wired(method)
    filled(method)
    step = built.step()
    expected = 0.0
    for number, path in enumerate(("layer2", "layer3")):
        scores, teacher = step.features(f"{path}.graft.scores", path)
        words = method.get_buffer(f"words_{number}")
        expected = expected + plain_words(scores, teacher.movedim(1, -1), words, 1.0).mean()
    torch.testing.assert_close(method.loss(step), expected)


def test_templates_are_no_more_than_the_places_can_fill() -> None:
    built = wired(VisualWordLayer())
    assert layer_of(built, "layer3.graft").templates == 8 * 16 // 39 == len(built.method.words_0)
    assert any("3 templates instead of 4096" in note for note in built.wiring.notes)
    free = wired(VisualWordLayer(templates=9), train=False)
    assert layer_of(free, "layer3.graft").templates == 9


def test_bad_settings_are_refused() -> None:
    refused: list[tuple[type[Method], dict[str, Any], str]] = [
        (VisualWordLayer, {"templates": 0}, "templates is 0"),
        (VisualWordLayer, {"sharpness": 0.0}, "sharpness is 0.0"),
        (SubClassLayer, {"subclasses": 0}, "subclasses is 0"),
        (SubClassLayer, {"directions": 0}, "directions is 0"),
    ]
    for kind, keywords, message in refused:
        with pytest.raises(ValueError, match=message):
            kind(**keywords)
    with pytest.raises(UnderstudyError, match="8 x 8 places, teacher 'layer3' 4 x 4 places"):
        wired(VisualWordLayer(["layer2"], ["layer3"], templates=2))
    with pytest.raises(UnderstudyError, match="4 x 4 places, teacher 'flatten' one vector"):
        wired(VisualWordLayer(["layer3"], ["flatten"], templates=2))
