from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from understudy import objectives
from understudy.data.batch import Batch
from understudy.errors import UnderstudyError
from understudy.methods import CKA, PKD, FeatureGram, Method, Procrustes, Step, Wiring
from understudy.methods.rows import FeatureRows, gathered
from understudy.methods.wiring import Side, TapShape
from understudy.models import kd
from understudy.models.outputs import Outputs
from understudy.tasks.classification import Classification

METHODS: list[Callable[..., FeatureRows]] = [Procrustes, FeatureGram, CKA]
PLAIN: dict[Any, Callable[..., torch.Tensor]] = {
    Procrustes: objectives.procrustes,
    FeatureGram: objectives.feature_gram,
    CKA: objectives.cka,
}


def wiring() -> Wiring:
    """Two kd networks on 8x8 images."""
    sides = []
    for name, width in (("resnet8", 0.25), ("resnet14", 0.5)):
        module = kd.build(name, classes=3, in_channels=1, width=width)
        sides.append(Side(name, module, torch.randn(8, 1, 8, 8), training=True, input_height=8))
    return Wiring(sides[0], {"teacher": sides[1]}, classes=3)


def step(method: Any, student: torch.Tensor, teacher: torch.Tensor, **fields: Any) -> Step:
    """A step in which the method's taps give these features."""
    count = len(student)
    method.places = ("s", "t")
    inputs = fields.pop("inputs", {"student": student, "teacher": teacher})
    batch = Batch(inputs, None, torch.arange(count), torch.zeros(count), **fields)
    return Step(
        batch,
        task=Classification(),
        student=lambda batch: Outputs(None, {"s": student}),
        teachers={"teacher": lambda batch: Outputs(None, {"t": teacher})},
        progress=0.0,
    )


@pytest.mark.parametrize("make", METHODS)
def test_pooled_rows_are_one_per_sample(make: Callable[..., FeatureRows]) -> None:
    method = make()
    student, teacher = torch.randn(6, 4, 3, 3, requires_grad=True), torch.randn(6, 7)
    weight = torch.tensor([1.0, 1, 0, 1, 2, 1])
    found = method.loss(step(method, student, teacher, weight=weight))
    expected = PLAIN[make](student.mean(dim=(2, 3)), teacher, weight=weight)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert student.grad is not None and (student.grad[2] == 0).all()


@pytest.mark.parametrize("make", METHODS)
def test_padding_is_no_row(make: Callable[..., FeatureRows]) -> None:
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    inputs = {"student": {"attention_mask": mask}, "teacher": {"attention_mask": mask}}
    method = make(rows="elements")
    found = method.loss(step(method, student, teacher, inputs=inputs))
    keep = mask.bool()
    torch.testing.assert_close(found, PLAIN[make](student[keep], teacher[keep]))
    pooled = make(rows="pooled")
    length = mask.sum(dim=1, keepdim=True)
    means = [(x * mask.unsqueeze(2)).sum(dim=1) / length for x in (student, teacher)]
    torch.testing.assert_close(
        pooled.loss(step(pooled, student, teacher, inputs=inputs)), PLAIN[make](*means)
    )
    first = make(rows="first")
    torch.testing.assert_close(
        first.loss(step(first, student, teacher, inputs=inputs)),
        PLAIN[make](student[:, 0], teacher[:, 0]),
    )


@pytest.mark.parametrize("make", METHODS)
def test_tokens_of_a_decoder_that_the_batch_leaves_out_do_not_count(make: Any) -> None:
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 6)
    padding = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    response = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
    inputs = {"student": {"attention_mask": padding}, "teacher": {"attention_mask": padding}}
    method = make(rows="elements")
    taken = step(method, student, teacher, inputs=inputs)
    taken.batch.mask = response
    keep = padding.bool() & response
    torch.testing.assert_close(method.loss(taken), PLAIN[make](student[keep], teacher[keep]))


def test_places_of_maps_are_compared_at_the_smaller_size() -> None:
    student, teacher = torch.randn(2, 4, 3, 5), torch.randn(2, 6, 6, 10)
    method = Procrustes(rows="elements")
    small = torch.nn.functional.avg_pool2d(teacher, 2)
    rows = [x.permute(0, 2, 3, 1).reshape(2 * 15, -1) for x in (student, small)]
    torch.testing.assert_close(
        method.loss(step(method, student, teacher)), objectives.procrustes(*rows)
    )


def test_a_student_that_is_a_rotated_and_scaled_teacher_has_no_distance() -> None:
    teacher = torch.randn(40, 6, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))
    student = 3 * teacher @ turn[:6] + torch.randn(9, dtype=torch.float64)
    for make in METHODS:
        method = make()
        assert method.loss(step(method, student, teacher)).abs() < 1e-10


def test_auto_takes_what_goes_into_the_classifiers() -> None:
    wired = wiring()
    method = Procrustes()
    method.wire(wired)
    assert method.places == ("fc@input", "fc@input")
    assert "widths 16 and 32" in wired.notes[-1]


@pytest.mark.parametrize(
    ("rows", "tap", "wanted"),
    [
        ("first", "auto", r"tokens \(T, D\), but"),
        ("elements", "auto", "a map"),
        ("first", "layer2", "tokens"),
    ],
)
def test_taps_without_such_rows_are_refused(rows: Any, tap: str, wanted: str) -> None:
    with pytest.raises(UnderstudyError, match=wanted):
        Procrustes(student_tap=tap, rows=rows).wire(wiring())


def test_tokens_of_unequal_number_are_refused() -> None:
    method = FeatureGram(rows="elements")
    with pytest.raises(UnderstudyError, match="5 and 4 tokens"):
        method.loss(step(method, torch.randn(2, 5, 3), torch.randn(2, 4, 3)))


def test_keywords_are_checked() -> None:
    for make, keywords in (
        (Procrustes, {"rows": "all"}),
        (CKA, {"kernel": "cubic"}),
        (CKA, {"bandwidth": 0.0}),
        (PKD, {"summary": "last"}),
    ):
        with pytest.raises(ValueError, match=next(iter(keywords))):
            make(**keywords)


def test_pkd_compares_directions_through_a_map_where_widths_differ() -> None:
    wired = wiring()
    method = PKD()
    method.wire(wired)
    assert method.places == [("layer1", "layer1"), ("layer2", "layer2")]
    student, teacher = torch.randn(5, 4, 8, 8), torch.randn(5, 8, 8, 8)
    taken = step(method, student, teacher)
    method.places, method.maps = [("s", "t")], method.maps[:1]
    ours, theirs = method.maps[0](student.mean(dim=(2, 3))), teacher.mean(dim=(2, 3))
    plain = (
        ours / ours.norm(dim=1, keepdim=True) - theirs / theirs.norm(dim=1, keepdim=True)
    ).square()
    torch.testing.assert_close(method.loss(taken), plain.sum(dim=1).mean())


def test_alone_gathering_changes_nothing() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert gathered(rows) is rows
    method = Procrustes(gather=True)
    student, teacher = torch.randn(6, 4), torch.randn(6, 7)
    torch.testing.assert_close(
        method.loss(step(method, student, teacher)), objectives.procrustes(student, teacher)
    )


def _rank(rank: int, port: int, student: torch.Tensor, teacher: torch.Tensor, out: Any) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    part = slice(0, 5) if rank == 0 else slice(5, 9)  # parts of unequal length
    ours = student[part].clone().requires_grad_()
    method = Procrustes(gather=True)
    loss = method.loss(step(method, ours, teacher[part]))
    # As the loop does: each part counts by its share, and gradients are averaged over the processes.
    (loss * (len(ours) * 2 / 9)).backward()
    out.put((rank, float(loss.detach()), (ours.grad / 2).tolist()))  # type: ignore[operator]
    dist.barrier()
    dist.destroy_process_group()


def test_gathered_rows_give_the_value_and_gradient_of_the_whole_batch() -> None:
    student, teacher = torch.randn(9, 4), torch.randn(9, 6)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    out: Any = context.SimpleQueue()
    ranks = [context.Process(target=_rank, args=(r, port, student, teacher, out)) for r in (0, 1)]
    for process in ranks:
        process.start()
    found = sorted(out.get() for _ in ranks)
    for process in ranks:
        process.join()
    whole = student.clone().requires_grad_()
    expected = objectives.procrustes(whole, teacher)
    expected.backward()
    assert found[0][1] == found[1][1] == pytest.approx(expected.item(), rel=1e-5)
    gradient = torch.tensor(found[0][2] + found[1][2])
    torch.testing.assert_close(gradient, whole.grad, rtol=1e-4, atol=1e-6)


def test_base_is_no_method() -> None:
    from understudy.methods import methods

    assert "featurerows" not in methods.names()
    assert issubclass(FeatureRows, Method) and TapShape("x", (3,)).shape == (3,)
