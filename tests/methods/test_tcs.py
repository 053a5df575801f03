"""TCS: the coordinate system, its selection, and the mimicking of cached features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from understudy.data.batch import Batch
from understudy.data.samples import TensorSamples
from understudy.data.source import Split
from understudy.data.transforms.mixup import Mixup
from understudy.data.views import Views
from understudy.errors import DataError, UnderstudyError
from understudy.methods import TCS, Step
from understudy.methods._tailoring import Tailoring, round_sizes
from understudy.methods.wiring import Side, Wiring
from understudy.models.heads import LinearChain
from understudy.models.model import Model
from understudy.models.preprocess import TensorPreprocess
from understudy.models.taps import Tapped
from understudy.tasks.classification import Classification
from understudy.teachers.study import Study
from understudy.training.averaging import Averaging
from understudy.training.optimizers import Optimizer
from understudy.training.stage import Stage

CLASSES = 3
D_T, D_S = 6, 4


class Network(nn.Module):
    """A linear body, which is the identity where it is to be, and a classifier."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(inputs, width)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


class Fitted:
    """A method that is wired to two networks and fitted to the features of given rows."""

    def __init__(
        self,
        method: TCS,
        rows: torch.Tensor,
        folder: Path,
        *,
        views: Views | None = None,
        width: int = D_S,
        labels: torch.Tensor | None = None,
    ) -> None:
        torch.manual_seed(2)
        self.rows, self.method = rows, method
        inputs = rows.shape[1]
        self.student, self.teacher = Network(inputs, width), Network(inputs, D_T)
        count = len(rows)
        given = torch.arange(count) % CLASSES if labels is None else labels
        ids = torch.arange(count) * 7 + 3
        self.split = Split(TensorSamples(rows, "tensor"), torch.arange(count), given, ids)
        self.wiring = Wiring(
            Side("student", self.student, rows[:8], training=True, input_height=None),
            {"teacher": Side("teacher", self.teacher, rows[:8], training=False, input_height=None)},
            classes=CLASSES,
            train=self.split,
        )
        self.wiring.seed = 5
        method.wire(self.wiring)
        self.study = Study(
            split=self.split,
            teachers={"teacher": Model(self.teacher, TensorPreprocess(), "network")},
            classes=tuple("abc"),
            task=Classification(),
            device=torch.device("cpu"),
            views=views or Views([], seed=0),
            folder=folder,
            mode="real",
            batch_size=7,
            seed=5,
        )
        with torch.no_grad():
            method.fit(self.study)
        self.features = self.teacher.body(rows).detach()

    @property
    def chain(self) -> LinearChain:
        head = self.student.fc
        assert isinstance(head, LinearChain)
        return head

    def step(self, positions: list[int], progress: float = 0.0) -> Step:
        chosen = torch.tensor(positions)
        tapped = Tapped(self.student, self.wiring.student.taps, self.wiring.student.copied)
        task = Classification()
        batch = Batch(
            {"student": self.rows[chosen] + 0.1},  # another view
            labels=self.split.labels[chosen],
            index=self.split.ids[chosen],
            view=torch.zeros_like(chosen),
        )
        return Step(
            batch,
            task=task,
            student=lambda given: task.forward_tapped(tapped, given, "student"),
            teachers={},
            progress=progress,
        )


def rows(count: int = 40, inputs: int = 5, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randn(count, rank or inputs, generator=generator)
    return drawn @ torch.randn(rank, inputs, generator=generator) if rank else drawn


# The head


def head(**changes: Any) -> LinearChain:
    """Return a chain in float64 with values in every part."""
    torch.manual_seed(1)
    chain = LinearChain(
        D_S,
        [
            {"name": "align", "kind": "linear", "size": D_T},
            {"name": "centre", "kind": "shift", "frozen": True},
            {"name": "axes", "kind": "linear", "size": D_T, "bias": False, "frozen": True},
            {"name": "mask", "kind": "scale"},
            {"name": "selected", "kind": "scale", "frozen": True},
            {"name": "classifier", "kind": "linear", "size": CLASSES},
        ],
    ).double()
    chain.assign("centre", bias=torch.randn(D_T).double())
    axes = torch.linalg.qr(torch.randn(D_T, D_T).double())[0]
    chain.assign("axes", weight=changes.get("axes", axes))
    return chain


def test_the_head_folds_exactly(tmp_path: Path) -> None:
    chain = head()
    chain.assign("mask", weight=torch.randn(D_T).double())
    chain.assign("selected", weight=(torch.arange(D_T) % 2).double())
    s = torch.randn(9, D_S).double()
    a = s @ chain.align.weight.T + chain.align.bias + chain.centre.bias
    masked = (a @ chain.axes.weight.T) * chain.mask.weight * chain.selected.weight
    logits = masked @ chain.classifier.weight.T + chain.classifier.bias
    torch.testing.assert_close(chain(s), logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(chain.fold()(s), logits, rtol=0, atol=1e-12)
    fitted = Fitted(TCS(), rows(), tmp_path)
    given = torch.randn(9, D_S)
    torch.testing.assert_close(fitted.chain.fold()(given), fitted.chain(given), rtol=0, atol=1e-5)


def test_all_coordinates_of_any_basis_train_alike_under_sgd() -> None:
    turned, plain = head(), head(axes=torch.eye(D_T).double())
    plain.load_state_dict({**turned.state_dict(), "axes.weight": torch.eye(D_T).double()})
    plain.assign("classifier", weight=turned.classifier.weight @ turned.axes.weight)
    pairs = []
    for chain in (turned, plain):
        chain.mask.weight.requires_grad_(False)
        trained = [p for p in chain.parameters() if p.requires_grad]
        pairs.append((chain, torch.optim.SGD(trained, lr=0.1, momentum=0.9)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        s = torch.randn(16, D_S, generator=generator).double()
        labels = torch.randint(0, CLASSES, (16,), generator=generator)
        given = []
        for chain, optimizer in pairs:
            logits = chain(s)
            given.append(logits.detach())
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels).backward()
            optimizer.step()
        torch.testing.assert_close(*given, rtol=0, atol=1e-12)


def test_a_dropped_coordinate_gets_and_passes_no_gradient() -> None:
    chain = head(axes=torch.eye(D_T).double())
    selected = torch.ones(D_T).double()
    selected[2] = 0
    chain.assign("selected", weight=selected)
    functional.cross_entropy(chain(torch.randn(8, D_S).double()), torch.arange(8) % 3).backward()
    assert chain.classifier.weight.grad[:, 2].abs().max() == 0
    assert chain.align.weight.grad[2].abs().max() == 0 and chain.align.bias.grad[2] == 0
    assert chain.mask.weight.grad[2] == 0
    assert (chain.align.weight.grad.abs().sum(dim=1) > 0).sum() == D_T - 1


# The coordinate system


def test_principal_coordinates_are_those_of_the_cached_features(tmp_path: Path) -> None:
    fitted = Fitted(TCS(coordinates=3, keep=1.0), rows(), tmp_path)
    t = fitted.features.double()
    centred = t - t.mean(dim=0)
    found = torch.linalg.svd(centred, full_matrices=False)
    axes, mean = fitted.chain.axes.weight.double(), -fitted.chain.centre.bias.double()
    torch.testing.assert_close(mean, t.mean(dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        (axes @ found.Vh[:3].T).abs(), torch.eye(3).double(), atol=1e-5, rtol=0
    )
    variances = (centred @ axes.T).square().mean(dim=0)
    torch.testing.assert_close(variances, found.S[:3].square() / len(t), rtol=1e-5, atol=0)


def test_features_of_low_rank_are_reconstructed_and_the_rest_is_left_out(tmp_path: Path) -> None:
    # 5 inputs of rank 2 into 6 dimensions: as many coordinates as samples could span are made, two of them live.
    fitted = Fitted(TCS(keep=1.0), rows(rank=2), tmp_path)
    axes = fitted.chain.axes.weight.double()
    assert axes.shape == (D_T, D_T)
    assert fitted.chain.selected.weight.tolist() == [1, 1, 0, 0, 0, 0]
    centred = fitted.features.double() + fitted.chain.centre.bias.double()
    torch.testing.assert_close(centred @ axes.T @ axes, centred, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="only 2 with any variance"):
        Fitted(TCS(coordinates=3), rows(rank=2), tmp_path)


@pytest.mark.parametrize("basis", ["random", "identity"])
def test_other_bases_are_orthonormal(basis: Any, tmp_path: Path) -> None:
    fitted = Fitted(TCS(coordinates=4, basis=basis, keep=1.0), rows(), tmp_path)
    axes = fitted.chain.axes.weight
    torch.testing.assert_close(axes @ axes.T, torch.eye(4))
    if basis == "identity":
        largest = fitted.features.var(dim=0).topk(4).indices.sort().values
        assert axes.argmax(dim=1).tolist() == largest.tolist() and axes.sum() == 4


@pytest.mark.parametrize("basis", ["pca", "random"])
@pytest.mark.parametrize("scaling", ["eigenvalues", "whitened"])
def test_scaling_by_the_spread_of_each_coordinate(basis: Any, scaling: Any, tmp_path: Path) -> None:
    fitted = Fitted(TCS(coordinates=4, basis=basis, scaling=scaling), rows(), tmp_path)
    coordinates = fitted.features @ fitted.chain.axes.weight.T
    deviation = coordinates.std(dim=0, correction=0)
    expected = deviation / deviation.max() if scaling == "eigenvalues" else 1 / deviation
    torch.testing.assert_close(fitted.chain.scaling.weight, expected, rtol=1e-4, atol=1e-6)


def test_alignments(tmp_path: Path) -> None:
    fixed = Fitted(TCS(alignment="fixed"), rows(), tmp_path)
    weight = fixed.chain.align.weight
    assert "align.weight" not in dict(fixed.chain.named_parameters())
    torch.testing.assert_close(weight.T @ weight, torch.eye(D_S))
    none = Fitted(TCS(alignment="none"), rows(), tmp_path, width=D_T)
    assert not hasattr(none.chain, "align") and none.method.place == "fc@input"
    with pytest.raises(UnderstudyError, match="has 4 dimensions and the teacher's 6"):
        Fitted(TCS(alignment="none"), rows(), tmp_path)


# Few samples


def test_one_image_of_each_class(tmp_path: Path) -> None:
    fitted = Fitted(TCS(), rows(CLASSES), tmp_path)
    assert fitted.chain.axes.weight.shape == (2, D_T)
    assert any("3 samples span 2 of 6" in note for note in fitted.wiring.notes)
    assert any("fewer than 5" in note for note in fitted.wiring.notes)
    assert fitted.method.loss(fitted.step([0, 1, 2]))["mimic"].isfinite()
    with pytest.raises(UnderstudyError, match="3 samples span at most 2. Ask for at most 2"):
        Fitted(TCS(coordinates=3), rows(CLASSES), tmp_path)
    with pytest.raises(UnderstudyError, match="6 dimensions. Ask for at most 6"):
        Fitted(TCS(coordinates=7), rows(), tmp_path)
    with pytest.raises(DataError, match="are equal, so it has no principal direction"):
        Fitted(TCS(), torch.ones(5, 5), tmp_path / "constant")


# Mimicking


def test_mimicking_is_the_plain_formula_on_features_joined_by_id(tmp_path: Path) -> None:
    fitted = Fitted(TCS(hashes=8), rows(), tmp_path)
    method, all_t = fitted.method, fitted.features
    hashed = method.directions / all_t.square().sum(dim=1).mean().sqrt()
    bias = -(all_t @ hashed.T).median(dim=0).values
    # Not the median of any direction, whose code is 0 or 1 by rounding.
    clear = (all_t @ hashed.T + bias).abs().min(dim=1).values > 1e-4
    chosen = clear.nonzero().flatten().tolist()[:4][::-1]
    found = method.loss(fitted.step(chosen))["mimic"]
    found.backward()
    a, t = fitted.chain.align(fitted.student.body(fitted.rows[chosen] + 0.1)), all_t[chosen]
    code = (t @ hashed.T + bias > 0).float()
    crossed = functional.binary_cross_entropy_with_logits(a @ hashed.T + bias, code)
    torch.testing.assert_close(found, (a - t).square().mean() + crossed, rtol=1e-5, atol=1e-6)
    assert fitted.student.body.weight.grad.abs().sum() > 0
    assert fitted.chain.classifier.weight.grad is None
    assert fitted.teacher.body.weight.grad is None


def test_the_median_sample_has_code_0_and_the_standard_deviation_scales_the_scores(
    tmp_path: Path,
) -> None:
    one, three = (
        Fitted(TCS(hashes=9, hash_std=std), rows(), tmp_path).method for std in (0.5, 1.5)
    )
    fitted = Fitted(TCS(hashes=9, hash_std=0.5), rows(), tmp_path)
    scores = fitted.features @ (one.directions * one.hash_scale).T + one.hash_bias
    assert (scores > 1e-5).sum(dim=0).tolist() == [
        len(scores) // 2
    ] * 9  # the lower middle one is none
    assert (scores.abs().min(dim=0).values < 1e-5).all()
    torch.testing.assert_close(three.hash_bias, 3 * one.hash_bias)
    torch.testing.assert_close(three.hash_scale, 3 * one.hash_scale)


def test_a_student_that_has_the_features_is_left_with_the_hash(tmp_path: Path) -> None:
    fitted = Fitted(TCS(alignment="none", hashes=16), rows(), tmp_path, width=D_T)
    fitted.student.body.load_state_dict(fitted.teacher.body.state_dict())
    method, step = fitted.method, fitted.step([0, 1, 2, 3])
    step.batch.inputs["student"].sub_(0.1)  # type: ignore[index]
    u = fitted.features[:4] @ (method.directions * method.hash_scale).T + method.hash_bias
    expected = torch.log1p(torch.exp(-u.abs())).mean()
    torch.testing.assert_close(method.loss(step)["mimic"], expected, rtol=1e-5, atol=1e-6)


def test_mixing_is_refused_with_mimicking_only(tmp_path: Path) -> None:
    views = Views([Mixup()], seed=0)
    with pytest.raises(UnderstudyError, match="'mixup' mixes images"):
        Fitted(TCS(), rows(), tmp_path, views=views)
    fitted = Fitted(TCS(mimic="none"), rows(), tmp_path, views=views)
    assert fitted.method.loss(fitted.step([0])) == {} and fitted.method.needs_labels


# Tailoring


def test_rounds_drop_a_share_and_at_least_one() -> None:
    assert round_sizes(32, 12, 0.25) == [24, 18, 14, 12]
    assert round_sizes(3, 1, 0.1) == [2, 1]
    assert round_sizes(4, 4, 0.5) == [4]
    with pytest.raises(ValueError, match="at least one"):
        round_sizes(3, 0, 0.5)


def test_the_least_important_are_dropped_and_never_come_back() -> None:
    mask, selected = nn.Parameter(torch.ones(4)), torch.ones(4)
    tailoring = Tailoring(mask, [2, 1], until=0.5)
    optimizer = torch.optim.SGD([mask], lr=0.1, momentum=0.9)
    # |m dL/dm| of coordinate 1 is largest in the first step, but its sum is not.
    gradients = [
        [1.0, 3.0, 2.0, -9.0],
        [4.0, 0.0, 2.0, -9.0],
        [9.0, 9.0, 9.0, 1.0],
        [5.0, 5.0, 5.0, 0.0],
    ]
    before, scores = torch.ones(4), torch.zeros(4)
    kept = []
    for number, gradient in enumerate(gradients):
        mask.grad = torch.tensor(gradient) * selected
        scores += (before * mask.grad).abs()
        optimizer.step()
        with torch.no_grad():
            tailoring.follow(mask, selected, (number + 1) / 8)
        tailoring_scores = tailoring.scores.clone()
        if number == 0:
            torch.testing.assert_close(tailoring_scores, scores)
        before = mask.detach().clone()
        kept.append(selected.tolist())
    assert kept[0] == [1, 1, 1, 1]
    assert kept[1] == kept[2] == [1, 0, 0, 1]
    assert kept[3] == [1, 0, 0, 0]
    assert mask[1:].abs().max() == 0
    last = mask.detach().clone()
    mask.grad = torch.ones(4)
    optimizer.step()
    with torch.no_grad():
        tailoring.follow(mask, selected, 0.6)
    assert torch.equal(mask, last) and selected.sum() == 1


def test_parts_of_one_batch_count_once() -> None:
    mask, selected = nn.Parameter(torch.ones(3)), torch.ones(3)
    tailoring = Tailoring(mask, [1], until=0.5)
    mask.grad = torch.ones(3)
    with torch.no_grad():
        for _ in range(2):
            tailoring.follow(mask, selected, 0.1)
    assert tailoring.scores.tolist() == [1, 1, 1]


def test_the_mask_does_not_decay_and_no_average_brings_a_coordinate_back() -> None:
    chain = head()
    optimizer = Optimizer("sgd", lr=0.1, weight_decay=0.5).build(
        chain.parameters(), [chain.mask.weight]
    )
    for parameter in chain.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = chain.classifier.weight.detach().clone()
    optimizer.step()
    assert torch.equal(chain.mask.weight, torch.ones(D_T).double())
    torch.testing.assert_close(chain.classifier.weight, before * 0.95)

    averaging = Averaging(Stage([TCS()], epochs=1, ema=0.9), chain)
    averaging.after_step()
    chain.assign("selected", weight=torch.eye(D_T)[0].double())
    averaging.after_step()
    averaging.finish()
    assert chain.selected.weight.tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"keep": 0.0}, r"keep is 0.0; it must be in \(0, 1\]"),
        ({"drop": 1.0}, r"drop is 1.0; it must be in \(0, 1\)"),
        ({"basis": "ica"}, "basis is 'ica'; it must be one of pca, random, identity"),
        ({"coordinates": 0}, "coordinates is 0; it must be at least 1"),
        ({"hash_std": 0.0}, "hash_std is 0.0"),
    ],
)
def test_settings_are_checked(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TCS(**keywords)
