"""Self-supervised distillation: rotated batches, the teacher's head, the student's terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import understudy as us
from understudy import objectives
from understudy.data.batch import Batch
from understudy.data.sources.python import from_tensors
from understudy.errors import UnderstudyError
from understudy.methods import KD, SSKD, Method, SSKDHead, Supervised, Wiring
from understudy.methods._rotations import by_image, rotated
from understudy.methods.wiring import Side
from understudy.models import kd
from understudy.models.outputs import call
from understudy.models.taps import Tapped
from understudy.recipe.result import Result
from understudy.tasks.classification import Classification
from understudy.teachers.live import LiveTeacher
from understudy.training.precision import Precision
from understudy.training.step import TrainingStep

IMAGES, CLASSES = 5, 3
TASK = Classification()


def batch(**changes: Any) -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(IMAGES, 1, 8, 8, generator=generator)
    fields: dict[str, Any] = {
        "inputs": {"student": images, "teacher": images},
        "labels": torch.tensor([0, 2, -1, 1, 2]),
        "index": torch.arange(IMAGES) + 40,
        "view": torch.arange(IMAGES) % 2,
    }
    return Batch(**(fields | changes))


class Bench:
    """Two small networks and methods that are wired on them."""

    def __init__(self, *methods: Method, earlier: SSKDHead | None = None, **wiring: Any) -> None:
        torch.manual_seed(1)
        self.student = kd.build("resnet8", classes=CLASSES, in_channels=1, width=0.25)
        self.teacher = kd.build("resnet8", classes=CLASSES, in_channels=1, width=0.5)
        images = wiring.pop("images", batch().inputs["student"])
        sides = [
            Side(role, module, images, training=role == "student", input_height=8)
            for role, module in (("student", self.student), ("teacher", self.teacher))
        ]
        known = {} if earlier is None else {"sskd_head": dict(earlier.state_dict())}
        self.wiring = Wiring(
            sides[0], {"teacher": sides[1]}, classes=CLASSES, earlier=known, **wiring
        )
        for method in methods:
            method.wire(self.wiring)
        self.live = LiveTeacher(
            self.teacher,
            role="teacher",
            task=TASK,
            taps=sides[1].taps,
            copied=sides[1].copied,
            precision=Precision().context,
        )
        tapped = Tapped(self.student, sides[0].taps, sides[0].copied)
        self.step = TrainingStep(tapped, methods, {"teacher": self.live.targets}, TASK)


def trained_head() -> SSKDHead:
    """Return a head as an earlier stage leaves it."""
    torch.manual_seed(7)
    return Bench(SSKDHead()).step.active[0]  # type: ignore[return-value]


def embedded(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and what goes into the classifier."""
    logits, taps = call(Tapped(network, ["fc@input"]), images)
    return logits, taps["fc@input"]


def turned() -> torch.Tensor:
    """Return the batch's images as the authors' loader stacks them: [4 B, ...], every fourth upright."""
    images = batch().inputs["student"]
    return torch.stack([torch.rot90(i, k, (1, 2)) for i in images for k in range(4)])


def test_a_rotated_batch_has_four_rows_for_each_image() -> None:
    weight = torch.rand(IMAGES)
    given = batch(weight=weight, mask=torch.rand(IMAGES, 8, 8) > 0.5)
    found = rotated(given, method="sskd")
    assert torch.equal(found.inputs["student"], turned())
    assert found.inputs["student"] is found.inputs["teacher"]
    assert len(found) == 4 * IMAGES
    assert found.labels is not None and found.weight is not None and found.mask is not None
    assert found.labels[::4].tolist() == [0, 2, -1, 1, 2]
    assert (by_image(found.labels)[:, 1:] == -1).all()
    assert torch.equal(found.index, given.index.repeat_interleave(4))
    assert torch.equal(found.view, given.view.repeat_interleave(4))
    assert torch.equal(found.weight, weight.repeat_interleave(4))
    assert torch.equal(found.mask[6], torch.rot90(given.mask[1], 2, (0, 1)))
    assert Supervised().valid(found) == Supervised().valid(given)
    assert rotated(found, method="sskd") is found
    assert rotated(batch(labels=None), method="sskd").labels is None


def test_turns_of_mixed_images_have_no_label() -> None:
    shares = torch.rand(IMAGES, CLASSES).softmax(dim=1)
    labels = rotated(batch(labels=shares), method="sskd").labels
    assert labels is not None
    assert torch.equal(labels[::4], shares) and by_image(labels)[:, 1:].abs().sum() == 0


def test_the_memory_format_stays() -> None:
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    given = batch(inputs={"student": images})
    found = rotated(given, method="sskd").inputs["student"]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert rotated(batch(), method="sskd").inputs["student"].is_contiguous()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 3, 8, 6), r"the student's are 8 x 6. Make them square"),
        (torch.zeros(2, 9), r"the student is given \(2, 9\)"),
        ({"input_ids": torch.zeros(2, 9)}, "the student is given dict"),
        (None, r"the student is given None \(no images, or a store\)"),
    ],
)
def test_what_cannot_be_turned_is_refused(inputs: Any, message: str) -> None:
    with pytest.raises(UnderstudyError, match=f"Method 'sskd' turns images.*{message}"):
        rotated(batch(inputs={"student": inputs}), method="sskd")
    with pytest.raises(UnderstudyError, match="Method 'sskd' turns images"):
        Bench(SSKD(), earlier=trained_head(), images=inputs)
    with pytest.raises(UnderstudyError, match="Method 'sskd_head' turns images"):
        Bench(SSKDHead(), images=inputs)


def test_the_head_learns_to_find_the_upright_image() -> None:
    bench = Bench(SSKDHead())
    (head,) = bench.step.active
    assert isinstance(head, SSKDHead) and [part.out_features for part in head.head[::2]] == [32, 32]
    loss, _ = bench.step(batch(), 0.5)
    loss.backward()
    codes = head.head(embedded(bench.teacher, turned())[1])
    cosines = nn.functional.cosine_similarity(codes[:, None], codes[None, ::4], dim=2)
    rows = [row for row in range(4 * IMAGES) if row % 4]
    plain = nn.functional.cross_entropy(cosines[rows], torch.tensor([row // 4 for row in rows]))
    torch.testing.assert_close(loss, plain)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    assert all(p.grad is None for p in bench.student.parameters())
    assert all(p.grad is None for p in bench.teacher.parameters())
    assert head.trains_student is False


def test_an_image_of_weight_zero_is_no_candidate() -> None:
    bench = Bench(SSKDHead())
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    kept = [0, 1, 3, 4]
    images = batch().inputs["student"][kept]
    fewer = Batch({"student": images, "teacher": images}, None, *[torch.arange(4)] * 2)
    torch.testing.assert_close(bench.step(batch(weight=weight), 0.5)[0], bench.step(fewer, 0.5)[0])


def plain_terms(bench: Bench, method: SSKD, truth: list[int]) -> tuple[torch.Tensor, ...]:
    """Follow the authors' training loop: sort by the rank of the truth and keep the first."""
    bench.student.train()
    logits, ours = embedded(bench.student, turned())
    with torch.no_grad():
        bench.teacher.eval()
        known, theirs = embedded(bench.teacher, turned())
        codes = method.teacher_head(theirs)
    rows = [row for row in range(4 * IMAGES) if row % 4]

    def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        q, p = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
        return nn.functional.kl_div(q, p, reduction="batchmean") * temperature**2

    def keep(scores: torch.Tensor, right: list[int], ratio: float) -> list[int]:
        order = scores.argsort(dim=1, descending=True)
        ranks = [o.tolist().index(r) for o, r in zip(order, right, strict=True)]
        # Between equal ranks the more probable truth comes first.
        doubt = [1 - float(s.softmax(0)[r]) for s, r in zip(scores, right, strict=True)]
        wrong = sum(rank > 0 for rank in ranks)
        count = len(ranks) - wrong + int(wrong * ratio)
        return sorted(range(len(ranks)), key=lambda place: ranks[place] + doubt[place])[:count]

    upright = kl(logits[::4], known[::4], 4.0)
    kept = keep(known[rows], [truth[row // 4] for row in rows], method.transformed_ratio)
    transformed = kl(logits[rows][kept], known[rows][kept], 4.0)

    def cosines(embeddings: torch.Tensor) -> torch.Tensor:
        pairs = embeddings[rows][:, None], embeddings[None, ::4]
        return nn.functional.cosine_similarity(*pairs, dim=2)

    student, teacher = cosines(method.student_head(ours)), cosines(codes)
    kept = keep(teacher, [row // 4 for row in rows], method.similarity_ratio)
    return upright, transformed, kl(student[kept], teacher[kept], 0.5)


@pytest.mark.parametrize("ratios", [(1.0, 0.75), (0.5, 0.5)])
def test_value_and_gradient_are_those_of_the_authors_loop(ratios: tuple[float, float]) -> None:
    method = SSKD(transformed_ratio=ratios[0], similarity_ratio=ratios[1])
    bench = Bench(method, earlier=trained_head())
    truth = [0, 2, 1, 1, 2]
    loss, terms = bench.step(batch(labels=torch.tensor(truth)), 0.5)
    upright, transformed, similarity = plain_terms(bench, method, truth)
    torch.testing.assert_close(terms["sskd.upright"], 0.9 * upright.detach())
    torch.testing.assert_close(terms["sskd.transformed"], 2.7 * transformed.detach())
    torch.testing.assert_close(terms["sskd.similarity"], 10 * similarity.detach())
    trained = [*bench.student.parameters(), *method.student_head.parameters()]
    gradients = torch.autograd.grad(loss, trained)
    plain = torch.autograd.grad(0.9 * upright + 2.7 * transformed + 10 * similarity, trained)
    torch.testing.assert_close(gradients, plain, rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_teachers_head_is_taken_over_and_frozen() -> None:
    head = trained_head()
    method = SSKD()
    bench = Bench(method, earlier=head)
    for ours, theirs in zip(method.teacher_head.parameters(), head.parameters(), strict=True):
        assert torch.equal(ours, theirs) and not ours.requires_grad
    bench.step(batch(), 0.5)[0].backward()
    assert all(p.grad is None for p in method.teacher_head.parameters())
    with pytest.raises(UnderstudyError, match=r"Put a stage with `methods: \[sskd_head\]` before"):
        Bench(SSKD())
    small = SSKDHead("layer1")
    with pytest.raises(UnderstudyError, match="does not fit this stage; give both the same taps"):
        Bench(SSKD(), earlier=Bench(small).step.active[0])  # type: ignore[arg-type]


def test_without_labels_every_turn_counts_unless_they_are_ranked() -> None:
    whole = Bench(SSKD(), earlier=trained_head())
    for labels in (None, torch.full((IMAGES,), -1), batch().labels):
        terms = whole.step(batch(labels=labels), 0.5)[1]
        plain = plain_terms(whole, whole.step.active[0], [0] * IMAGES)[1]  # type: ignore[arg-type]
        torch.testing.assert_close(terms["sskd.transformed"], 2.7 * plain.detach())
    ranked = Bench(SSKD(transformed_ratio=0.5), earlier=trained_head())
    hard = torch.tensor([0, 2, -1, 1, 2])
    shares = 0.6 * nn.functional.one_hot(hard.clamp_min(0), CLASSES) + 0.4 / CLASSES
    shares[2] = 0.0
    values = [ranked.step(batch(labels=given), 0.5)[0] for given in (hard, shares)]
    torch.testing.assert_close(*values)
    with pytest.raises(UnderstudyError, match="'sskd' needs labels"):
        ranked.step(batch(labels=None), 0.5)
    images, none = torch.zeros(4, 1, 8, 8), torch.full((4,), -1)
    source = from_tensors(
        images, none, test_inputs=images, test_labels=none.abs(), classes=["a", "b"]
    )
    with pytest.raises(UnderstudyError, match="no training sample has one. Leave it at 1"):
        Bench(SSKD(transformed_ratio=0.5), earlier=trained_head(), train=source.train)


def test_other_methods_see_what_the_card_says() -> None:
    bench = Bench(Supervised(), KD(), SSKD(similarity=0.0), earlier=trained_head())
    _, terms = bench.step(batch(), 0.5)
    bench.student.train()
    logits = embedded(bench.student, turned())[0]
    upright = objectives.cross_entropy(logits[::4], batch().labels)  # type: ignore[arg-type]
    torch.testing.assert_close(terms["supervised"], upright.detach())
    both = terms["sskd.upright"] + terms["sskd.transformed"]
    torch.testing.assert_close(3.6 * terms["kd"], both)


def test_finite_under_bf16() -> None:
    bench = Bench(SSKD(), Supervised(), earlier=trained_head())
    whole = bench.step(batch(), 0.5)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = bench.step(batch(), 0.5)[0]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("upright", -1.0),
        ("similarity", float("nan")),
        ("temperature", 0.0),
        ("similarity_temperature", -0.5),
        ("transformed_ratio", 1.5),
        ("similarity_ratio", -0.1),
    ],
)
def test_values_out_of_range_are_refused(keyword: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{keyword} is {value}; it must be"):
        SSKD(**{keyword: value})


def run(directory: Path, **given: Any) -> Result:
    inputs = torch.randint(0, 256, (48, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(48) % CLASSES
    inputs[torch.arange(48), 0, 2 * labels] = 255
    model = {"name": "kd:resnet8", "width": 0.25}
    return us.distill(
        student=model,
        teacher={"model": model, "train": {"epochs": 4}},
        data=((inputs, labels), (inputs, labels)),
        batch_size=16,
        precision="float32",
        baseline=False,
        directory=directory,
        **given,
    )


def test_two_stages_train_and_leave_the_student_as_it_was_built(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    stages = [
        {"methods": ["sskd_head"], "epochs": 2, "optimizer": {"lr": 0.1}},
        {"methods": ["sskd", {"name": "supervised", "weight": 0.1}], "epochs": 2, "accumulate": 2},
    ]
    done = run(tmp_path / "r", arms={"sskd": {"stages": stages}})
    file = next((done.directory / "student" / "sskd" / "seed-0").glob("*.safetensors"))
    network = kd.build("resnet8", classes=CLASSES, in_channels=1, width=0.25)
    assert set(load_file(file)) == set(network.state_dict())
