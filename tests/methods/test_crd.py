"""CRD: two banks, negatives by visible labels, a constant normaliser; the same numbers however it is run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from wired_step import Wired, features, reached, wired

from understudy.errors import UnderstudyError
from understudy.methods import CRD, Step

Sides = dict[str, torch.Tensor]


def embeddings(at: Wired, step: Step) -> Sides:
    student, teacher = features(at, step)
    return {
        "student": F.normalize(at.method.student_embedding(student), dim=1),
        "teacher": F.normalize(at.method.teacher_embedding(teacher), dim=1),
    }


def banks(at: Wired) -> Sides:
    return {"student": at.method.student_bank.clone(), "teacher": at.method.teacher_bank.clone()}


def drawn(at: Wired, step: Step) -> torch.Tensor:
    return at.method._draw(step.batch.index)


def test_two_steps_are_those_of_the_paper() -> None:
    at = wired(CRD(dimensions=6, negatives=3), count=12)
    z: dict[str, torch.Tensor] = {}
    for index in ([0, 5, 7, 2], [5, 1, 11, 8]):
        step = at.step(index)
        ours, before, rows = embeddings(at, step), banks(at), drawn(at, step)
        assert rows.shape == (4, 4) and torch.equal(rows[:, 0], torch.tensor(index))
        expected = {}
        for side, other in (("student", "teacher"), ("teacher", "student")):
            scores = (ours[side].unsqueeze(1) * before[other][rows]).sum(dim=2) / 0.07
            z.setdefault(side, scores.exp().mean().detach() * 12)
            p = scores.exp() / z[side]
            expected[side] = (
                -(p[:, 0] / (p[:, 0] + 3 / 12)).log()
                - ((3 / 12) / (p[:, 1:] + 3 / 12)).log().sum(dim=1)
            ).mean()
        found = at.method.loss(step)
        assert list(found) == ["student", "teacher"]
        trained = [*at.student.parameters(), *at.method.parameters()]
        for side, value in expected.items():
            torch.testing.assert_close(found[side], value, rtol=1e-4, atol=1e-5)
            gradients = (
                torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
                for loss in (found[side], value)
            )
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert all(torch.equal(before[side], banks(at)[side]) for side in before)
        at.method.after_step(step)
        for side, bank in banks(at).items():
            moved = before[side].index_copy(
                0,
                torch.tensor(index),
                F.normalize(0.5 * before[side][index] + 0.5 * ours[side].detach(), dim=1),
            )
            torch.testing.assert_close(bank, moved)
    torch.testing.assert_close(
        at.method.log_normalisers.exp(), torch.stack([z["student"], z["teacher"]])
    )
    assert at.method.steps == 2


def test_both_embeddings_and_the_student_learn() -> None:
    at = wired(CRD(), count=12)
    torch.stack([*at.method.loss(at.step()).values()]).sum().backward()
    assert reached(at.method) == {name for name, _ in at.method.named_parameters()}
    assert any(name.startswith("layer1") for name in reached(at.student))
    assert not any(name.startswith("fc") for name in reached(at.student))
    assert not reached(at.teacher)


def test_the_wiring_is_the_papers() -> None:
    at = wired(CRD(), count=12)
    assert at.method.places == ("fc@input", "fc@input")
    assert at.method.student_embedding.weight.shape == (128, 16)
    assert at.method.teacher_embedding.weight.shape == (128, 32)
    bank = at.method.teacher_bank
    assert bank.shape == (12, 128) and not torch.equal(bank, at.method.student_bank)
    assert float(bank.abs().max()) <= (3 / 128) ** 0.5
    torch.testing.assert_close(bank.square().sum(dim=1).mean(), torch.tensor(1.0), rtol=0.1, atol=0)
    notes = [note for note in at.wiring.notes if note.startswith("crd")]
    assert notes == [
        "crd: 8 negatives instead of 16384: of 12 samples, no more can be drawn for every one",
        "crd: two banks of 12 x 128 numbers, 0.0 MB, also in each checkpoint",
    ]
    kept = {"student_bank", "teacher_bank", "log_normalisers", "steps"}
    parameters = {name for name, _ in at.method.named_parameters()}
    assert set(at.method.state_dict()) == kept | parameters


# Negatives

LABELS = [0, 1, -1, 2, 0, 1, -1, 2, 0, 1, 2, 0]


def test_negatives_are_not_of_the_samples_own_class_as_far_as_is_known() -> None:
    at = wired(CRD(negatives=4), count=12, labels=LABELS)
    every = at.step()
    labels = torch.tensor(LABELS)
    seen: list[set[int]] = [set() for _ in LABELS]
    for _ in range(60):
        rows = drawn(at, every)
        assert torch.equal(rows[:, 0], torch.arange(12))
        for own, others in zip(rows[:, 0].tolist(), rows[:, 1:].tolist(), strict=True):
            seen[own] |= set(others)
        at.method.steps += 1
    for own, others in enumerate(seen):
        allowed = torch.arange(12) != own
        if LABELS[own] >= 0:
            allowed = labels != LABELS[own]
        assert others == set(allowed.nonzero().flatten().tolist()), "all of them, and no other"


def test_other_samples_may_be_of_the_same_class() -> None:
    at = wired(CRD(negatives=11, negatives_from="other_samples"), count=12, labels=LABELS)
    rows = drawn(at, at.step())
    assert all(sorted(row) == list(range(12)) for row in rows.tolist())


def test_all_negatives_are_equally_likely_and_hardly_any_is_drawn_twice() -> None:
    at = wired(CRD(negatives=5, negatives_from="other_samples"), count=12)
    own = torch.tensor([3])
    rounds = []
    for _ in range(2000):
        rounds.append(at.method._draw(own)[0, 1:])
        at.method.steps += 1
    counts = torch.bincount(torch.cat(rounds), minlength=12)
    assert counts[3] == 0
    # The expected share is 5 in 11, its standard deviation about 0.011.
    assert ((counts[torch.arange(12) != 3] / 2000 - 5 / 11).abs() < 0.045).all()
    assert sum(len(row.unique()) == 5 for row in rounds) > 1000


def test_negatives_depend_on_seed_sample_and_step_only() -> None:
    at = wired(CRD(negatives=4), count=12)
    rows = drawn(at, at.step())
    torch.manual_seed(99)
    assert torch.equal(drawn(at, at.step([7, 2])), rows[[7, 2]])
    at.method.steps += 1
    later = drawn(at, at.step())
    assert not torch.equal(later, rows)
    at.method.steps -= 1
    assert torch.equal(drawn(at, at.step()), rows)
    at.method._seed += 1
    assert not torch.equal(drawn(at, at.step()), rows)


# What goes into the banks


def test_a_sample_that_is_in_a_batch_twice_and_one_of_weight_0() -> None:
    at = wired(CRD(negatives=2), count=12)
    before = banks(at)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    step = at.step([4, 6, 4, 9], weight=weight)
    at.method.loss(step)
    ours = {side: rows.detach() for side, rows in embeddings(at, step).items()}
    at.method.after_step(step)
    for side, bank in banks(at).items():
        last = F.normalize(before[side][4] + ours[side][2], dim=0)
        torch.testing.assert_close(bank[4], last)
        assert torch.equal(bank[9], before[side][9])
        assert not torch.equal(bank[6], before[side][6])


def test_a_sample_of_weight_0_counts_nothing() -> None:
    at = wired(CRD(negatives=3), count=12)
    at.student.eval()
    whole = at.method.loss(at.step([1, 2, 3], weight=torch.tensor([1.0, 0.0, 1.0])))
    at.method.log_normalisers.fill_(torch.nan)
    few = at.method.loss(at.step([1, 3]))
    for name in whole:
        torch.testing.assert_close(whole[name], few[name], rtol=1e-4, atol=1e-5)


def test_steps_that_are_not_taken_leave_no_trace() -> None:
    at = wired(CRD(), count=12)
    before = banks(at)
    at.method.loss(at.step())
    at.method.after_step(at.step())  # another step, which was never compared
    assert at.method.steps == 0 and not at.method._followed
    assert all(torch.equal(before[side], bank) for side, bank in banks(at).items())


def test_embeddings_are_of_single_precision_under_autocast() -> None:
    at = wired(CRD(), count=12)
    at.student.eval()
    plain = at.method.loss(at.step())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = at.step()
        found = at.method.loss(step)
    assert step.student.features["fc@input"].dtype == torch.bfloat16
    at.method.after_step(step)
    for name in plain:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], plain[name], rtol=0.1, atol=0.1)
    norms = at.method.student_bank.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(12), rtol=1e-5, atol=0)


def test_the_normalisers_are_those_of_the_first_batch_after_a_checkpoint_too() -> None:
    at = wired(CRD(negatives=3), count=12)
    for _ in range(2):
        step = at.step()
        at.method.loss(step)
        at.method.after_step(step)
    state = {name: value.clone() for name, value in at.method.state_dict().items()}
    again = wired(CRD(negatives=3), count=12)
    again.student.load_state_dict(at.student.state_dict())
    again.method.load_state_dict(state)
    step = at.step([2, 3, 4])
    expected, found = at.method.loss(step), again.method.loss(again.step([2, 3, 4]))
    for name in expected:
        assert torch.equal(expected[name], found[name])
    assert torch.equal(again.method.log_normalisers, state["log_normalisers"])


# In the batch


def test_in_the_batch_there_is_no_bank() -> None:
    at = wired(CRD(bank="batch", dimensions=6), train=False)
    assert not list(at.method.buffers())
    step = at.step()
    ours = embeddings(at, step)
    found = at.method.loss(step)
    for side, other in (("student", "teacher"), ("teacher", "student")):
        scores = ours[side] @ ours[other].detach().T / 0.07
        p, c = scores.exp() / (scores.exp().mean() * 8), 7 / 8
        own = torch.eye(8, dtype=torch.bool)
        terms = torch.where(own, -(p / (p + c)).log(), -(c / (p + c)).log())
        torch.testing.assert_close(found[side], terms.sum(dim=1).mean(), rtol=1e-4, atol=1e-5)
    torch.stack([*found.values()]).sum().backward()
    assert reached(at.method) == {name for name, _ in at.method.named_parameters()}
    at.method.after_step(step)
    with pytest.raises(ValueError, match="at least one row of another sample"):
        at.method.loss(at.step([0]))


# Refusals


def test_a_bank_needs_samples_of_two_classes_and_a_run() -> None:
    with pytest.raises(UnderstudyError, match=r"outside of a run .* `bank: batch`"):
        wired(CRD(), train=False)
    with pytest.raises(UnderstudyError, match=r"nothing to contrast with.*other_samples"):
        wired(CRD(), count=4, labels=[1, 1, 1, 1])
    assert wired(CRD(negatives_from="other_samples"), count=4, labels=[1, 1, 1, 1])
    with pytest.raises(UnderstudyError, match="nothing to contrast with"):
        wired(CRD(negatives_from="other_samples"), count=1, labels=[1])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dimensions": 0}, "dimensions is 0; it must be at least 1"),
        ({"negatives": 0}, "negatives is 0; it must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be greater than 0"),
        ({"bank": "memroy"}, "bank is 'memroy'; it must be one of 'memory', 'batch'"),
        ({"negatives_from": "all"}, "negatives_from is 'all'; it must be one of"),
        ({"momentum": 1.0}, r"momentum is 1.0; it must be in \[0, 1\)"),
    ],
)
def test_values_out_of_range_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CRD(**keywords)
