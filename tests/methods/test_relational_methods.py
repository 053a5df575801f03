"""PKT, RKD, SP, CCKD, ICKD, VID and MI-alpha: value and gradient against the plain formula, taps, refusals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from wired_step import Wired, features, reached, wired

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods import CCKD, ICKD, PKT, RKD, SP, VID, Method, MIAlpha, Step

ALL: list[type[Method]] = [CCKD, ICKD, MIAlpha, PKT, RKD, SP, VID]
every = pytest.mark.parametrize("kind", ALL)


def total(given: torch.Tensor | dict[str, torch.Tensor]) -> torch.Tensor:
    return given if isinstance(given, torch.Tensor) else torch.stack([*given.values()]).sum()


def agree(at: Wired, step: Step, expected: torch.Tensor, rtol: float = 1e-4) -> None:
    """Demand the value, and the gradient for the student and for what the method trains beside it."""
    value = total(at.method.loss(step))
    torch.testing.assert_close(value, expected.float(), rtol=rtol, atol=1e-7)
    trained = [*at.student.parameters(), *at.method.parameters()]
    found, wanted = (
        torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        for loss in (value, expected)
    )
    largest = max(float(other.abs().max()) for other in wanted if other is not None)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=rtol, atol=5e-5 * largest)


# The plain formulas, as the papers write them


def plain_pkt(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    q, p = ((1 + F.cosine_similarity(x[:, None], x[None], dim=2)) / 2 for x in (student, teacher))
    q, p = q / q.sum(dim=1, keepdim=True), p / p.sum(dim=1, keepdim=True)
    return (p * (p / q).log()).mean()


def plain_rkd(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    distances, cosines = [], []
    for x in (student.double(), teacher.double()):
        between = x.unsqueeze(0) - x.unsqueeze(1)
        away = ~torch.eye(len(x), dtype=torch.bool)
        d = (between.square().sum(dim=2) + (~away)).sqrt() * away
        distances.append(d / d[away].mean())
        directions = between / (d + ~away).unsqueeze(2)
        cosines.append(directions @ directions.mT)
    return F.smooth_l1_loss(*distances), F.smooth_l1_loss(*cosines)


def plain_sp(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    rows = [x.flatten(1) @ x.flatten(1).T for x in (student, teacher)]
    ours, theirs = (F.normalize(x, dim=1) for x in rows)
    return (ours - theirs).square().sum() / len(ours) ** 2


def test_pkt() -> None:
    at = wired(PKT())
    step = at.step()
    agree(at, step, plain_pkt(*features(at, step)))


def test_rkd_has_both_terms_with_their_factors() -> None:
    at = wired(RKD())
    step = at.step()
    distance, angle = plain_rkd(*features(at, step))
    terms = at.method.loss(step)
    assert list(terms) == ["distance", "angle"]
    torch.testing.assert_close(terms["distance"], 25 * distance.float())
    torch.testing.assert_close(terms["angle"], 50 * angle.float())
    agree(at, step, 25 * distance + 50 * angle)
    alone = wired(RKD(distance=2.0, angle=0.0))
    terms = alone.method.loss(step)
    assert list(terms) == ["distance"]
    torch.testing.assert_close(terms["distance"], 2 * distance.float())


def test_sp_compares_the_last_maps_place_by_place() -> None:
    at = wired(SP())
    assert at.method.places == [("layer3", "layer3")]
    step = at.step()
    agree(at, step, plain_sp(*features(at, step, 0)))
    at = wired(SP(student_taps=["layer1", "layer2"], teacher_taps=["layer1", "layer2"]))
    step = at.step()
    agree(at, step, sum(plain_sp(*features(at, step, pair)) for pair in (0, 1)))


def test_sp_official_has_rows_of_l1_length() -> None:
    at = wired(SP(official=True))
    step = at.step()
    flat = [x.flatten(1) for x in features(at, step, 0)]
    ours, theirs = (F.normalize(x @ x.T, p=1.0, dim=1) for x in flat)
    agree(at, step, (ours - theirs).square().sum() / len(ours) ** 2)


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
def test_cckd_compares_kernels_of_embeddings(kernel: Any) -> None:
    at = wired(CCKD(kernel=kernel, dimensions=5))
    step = at.step()
    student, teacher = features(at, step)
    ours, theirs = at.method.embedding(student), teacher @ at.method.rotation
    assert ours.shape == theirs.shape == (8, 5)
    if kernel == "gaussian":
        ours, theirs = F.normalize(ours, dim=1), F.normalize(theirs, dim=1)
        x, y = (0.8 * rows @ rows.T for rows in (ours, theirs))
        first, second = (torch.exp(torch.tensor(-0.8)) * (1 + z + z**2 / 2) for z in (x, y))
    else:
        first, second = ours @ ours.T, theirs @ theirs.T
    agree(at, step, (first - second).square().mean())


def test_cckd_keeps_the_teachers_inner_products() -> None:
    at = wired(CCKD(dimensions=128))
    teacher = features(at, at.step())[1]
    turned = teacher @ at.method.rotation
    torch.testing.assert_close(turned @ turned.T, teacher @ teacher.T)
    narrow = wired(CCKD(dimensions=8)).method.rotation
    torch.testing.assert_close(narrow.T @ narrow, 4 * torch.eye(8), rtol=1e-4, atol=1e-5)
    assert "rotation" in at.method.state_dict()
    assert {name for name, _ in at.method.named_parameters()} == {
        "embedding.weight",
        "embedding.bias",
    }


def test_ickd_aligns_the_channels_of_the_last_maps() -> None:
    at = wired(ICKD())
    assert at.method.places == [("layer3", "layer3")]
    convolution, norm = at.method.align[0]
    assert convolution.weight.shape == (32, 16, 1, 1) and convolution.bias is None
    assert not any(True for _ in at.method.buffers()), "no statistics are kept"
    step = at.step()
    student, teacher = features(at, step, 0)
    aligned = F.batch_norm(
        F.conv2d(student, convolution.weight), None, None, norm.weight, norm.bias, training=True
    )
    grams = [x.flatten(2) @ x.flatten(2).mT for x in (aligned, teacher)]
    ours, theirs = (F.normalize(gram, dim=2) for gram in grams)
    # As in the authors' code for CIFAR-100: divided by the batch and the channels once.
    agree(at, step, (ours - theirs).square().sum() / (8 * 32))
    plain = at.method.loss(step)
    at.method.official = True
    torch.testing.assert_close(at.method.loss(step), plain / 8)
    wide = wired(ICKD(kernel=3)).method.align[0][0]
    assert wide.weight.shape == (32, 16, 3, 3) and wide.padding == (1, 1)


def test_vid_is_the_density_under_a_variance_per_channel() -> None:
    at = wired(VID())
    assert at.method.places == [(f"layer{n}", f"layer{n}") for n in (1, 2, 3)]
    step = at.step()
    expected = torch.zeros(())
    for pair, (regressor, spread) in enumerate(
        zip(at.method.regressors, at.method.spreads, strict=True)
    ):
        student, teacher = features(at, step, pair)
        weights = [layer.weight for layer in regressor.map if isinstance(layer, nn.Conv2d)]
        channels = teacher.shape[1]
        assert [tuple(weight.shape[:2]) for weight in weights] == [
            (channels, student.shape[1]),
            (channels, channels),
            (channels, channels),
        ]
        variance = torch.log1p(spread.exp()) + 1e-5
        torch.testing.assert_close(variance, torch.full((channels,), 5.0))
        mean = F.conv2d(
            F.conv2d(F.conv2d(student, weights[0]).relu(), weights[1]).relu(), weights[2]
        )
        density = torch.distributions.Normal(mean, variance.sqrt().view(1, -1, 1, 1))
        constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
        expected = expected - (density.log_prob(teacher) + constant).mean()
    agree(at, step, expected)


def test_vid_pools_maps_of_other_sizes_and_regresses_tokens() -> None:
    at = wired(VID(student_taps=["layer2"], teacher_taps=["layer3"]))
    assert at.method.loss(at.step()).isfinite()
    at = wired(VID(), text=True)
    step = at.step()
    mask = at.inputs["attention_mask"].float()
    expected = torch.zeros(())
    for pair, (regressor, spread) in enumerate(
        zip(at.method.regressors, at.method.spreads, strict=True)
    ):
        student, teacher = features(at, step, pair)
        variance = torch.log1p(spread.exp()) + 1e-5
        terms = ((teacher - regressor.map(student)).square() / variance + variance.log()) / 2
        tokens = terms.mean(dim=2)
        expected = expected + ((tokens * mask).sum(dim=1) / mask.sum(dim=1)).mean()
    agree(at, step, expected)


@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_mi_alpha_sums_the_bounds_of_its_critics(alpha: float) -> None:
    at = wired(MIAlpha(alpha=alpha, hidden=10, dimensions=4))
    assert at.method.places == [(f"layer{n}", f"layer{n}") for n in (1, 2, 3)]
    assert len(at.method.baselines) == (3 if alpha < 1 else 0)
    with torch.no_grad():  # scores of a size that matters
        for module in (*at.method.student_critics, *at.method.baselines):
            module[-1].weight *= 30
    step = at.step()
    expected = torch.zeros(())
    for pair in range(3):
        student, teacher = (x.mean(dim=(2, 3)) for x in features(at, step, pair))
        scores = (
            at.method.student_critics[pair](student) @ at.method.teacher_critics[pair](teacher).T
        )
        own = scores.diagonal()
        bound = torch.ones(())
        for i in range(8):
            for j in range(8):
                if i == j:
                    continue
                u = []
                for left in (j, i):  # what the row's mean leaves out
                    kept = torch.arange(8) != left
                    mean = scores[i][kept].exp().mean()
                    if alpha < 1:
                        baseline = at.method.baselines[pair](teacher)[i, 0].exp()
                        mean = alpha * mean + (1 - alpha) * baseline
                    u.append(mean.log())
                bound = bound + (own[i] - u[0]) / 56 - (scores[i, j] - u[1]).exp() / 56
        expected = expected - bound
    agree(at, step, expected)


# What holds for all of them


@every
def test_gradients_reach_student_and_modules_and_nothing_else(kind: type[Method]) -> None:
    at = wired(kind())
    total(at.method.loss(at.step())).backward()
    assert reached(at.method) == {
        name for name, parameter in at.method.named_parameters() if parameter.requires_grad
    }
    assert any(name.startswith("layer3") for name in reached(at.student))
    assert not any(name.startswith("fc") for name in reached(at.student))
    assert not reached(at.teacher)


@every
def test_the_default_pairs_networks_of_different_families(kind: type[Method]) -> None:
    at = wired(kind(), student="vgg8", teacher="resnet14")
    assert total(at.method.loss(at.step())).isfinite()


@every
def test_a_sample_of_weight_0_counts_nothing(kind: type[Method]) -> None:
    at = wired(kind())
    if kind is ICKD:
        at.method.align[0][1] = nn.Identity()  # batch statistics are of all samples
    at.student.eval()
    kept = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1])
    few = [number for number in range(8) if kept[number]]
    whole = total(at.method.loss(at.step(weight=kept)))
    torch.testing.assert_close(whole, total(at.method.loss(at.step(few))), rtol=1e-4, atol=1e-6)
    assert not torch.equal(whole, total(at.method.loss(at.step())))


@pytest.mark.parametrize("kind", [CCKD, MIAlpha, PKT, RKD, SP, VID])
def test_padding_of_texts_counts_nothing(kind: type[Method]) -> None:
    at = wired(kind(), text=True)
    before = total(at.method.loss(at.step()))
    padded = {key: value.clone() for key, value in at.inputs.items()}
    padded["input_ids"][padded["attention_mask"] == 0] = 7
    assert not torch.equal(padded["input_ids"], at.inputs["input_ids"])
    torch.testing.assert_close(total(at.method.loss(at.step(inputs=padded))), before)


@every
def test_autocast_changes_little(kind: type[Method]) -> None:
    at = wired(kind())
    at.student.eval()
    value = float(total(at.method.loss(at.step())).detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total(at.method.loss(at.step()))
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(value, rel=0.1, abs=1e-4)


@pytest.mark.parametrize("kind", [RKD, MIAlpha])
def test_a_batch_of_one_is_refused_where_nothing_can_be_compared(kind: type[Method]) -> None:
    at = wired(kind())
    with pytest.raises(ValueError, match="at least 2"):
        at.method.loss(at.step([0]))


def test_ickd_refuses_what_is_no_map() -> None:
    with pytest.raises(UnderstudyError, match="'ickd' compares feature maps"):
        wired(ICKD(), text=True)


@pytest.mark.parametrize(
    ("kind", "keywords", "message"),
    [
        (PKT, {"eps": 0.0}, "eps is 0.0; it must be greater than 0"),
        (RKD, {"distance": -1.0}, "distance is -1.0 and angle 50.0; both must be at least 0"),
        (RKD, {"distance": 0.0, "angle": 0.0}, "one greater than 0"),
        (CCKD, {"dimensions": 0}, "dimensions is 0; it must be at least 1"),
        (CCKD, {"kernel": "rbf"}, "kernel is 'rbf'; it must be one of 'gaussian', 'bilinear'"),
        (CCKD, {"gamma": 0.0}, "gamma is 0.0; it must be greater than 0"),
        (CCKD, {"order": 0}, "order is 0; it must be at least 1"),
        (ICKD, {"kernel": 2}, "kernel is 2; it must be 1 or 3"),
        (VID, {"eps": 0.0}, "must obey 0 < eps < initial_variance"),
        (VID, {"initial_variance": 1e-6}, "must obey 0 < eps < initial_variance"),
        (MIAlpha, {"alpha": 1.5}, r"alpha is 1.5; it must be in \[0, 1\]"),
        (MIAlpha, {"hidden": 0}, "hidden is 0; it must be at least 1"),
        (MIAlpha, {"dimensions": 0}, "dimensions is 0; it must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(
    kind: type[Method], keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**keywords)


def test_cckd_official_is_torchdistills_value() -> None:
    at = wired(CCKD(official=True, kernel="bilinear", dimensions=64))
    step = at.step()
    student, teacher = features(at, step)
    expected = objectives.correlation_congruence(
        at.method.embedding(student), teacher, kernel="bilinear", official=True
    )
    torch.testing.assert_close(at.method.loss(step), expected)
