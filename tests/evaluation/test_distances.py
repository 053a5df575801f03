"""Distances of distributions, summed over batches, against torch and worked-out values."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import kl_div

from understudy.errors import DataError
from understudy.evaluation.answers import answer_agreement, cohens_kappa
from understudy.evaluation.distances import Distances, distances, embedding_similarity


def draw(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, *shape, generator=generator)
    return student, teacher


def test_distances_equal_the_plain_formulas() -> None:
    student, teacher = draw(2, 7, 11)
    found = distances(student, teacher, top=(1, 3)).means()
    log_q, log_p = (logits.double().log_softmax(-1) for logits in (student, teacher))
    q, p = log_q.exp(), log_p.exp()
    middle = ((p + q) / 2).log()

    def divergence(log_first: torch.Tensor, log_second: torch.Tensor) -> torch.Tensor:
        return kl_div(log_second, log_first, log_target=True, reduction="sum") / 14

    expected = {
        "forward_kl": divergence(log_p, log_q),
        "reverse_kl": divergence(log_q, log_p),
        "jensen_shannon": (divergence(log_p, middle) + divergence(log_q, middle)) / 2,
        "total_variation": (p - q).abs().sum() / 28,
        "top_1": (p.argmax(-1) == q.argmax(-1)).double().mean(),
        "student_entropy": -(q * log_q).sum() / 14,
        "teacher_entropy": -(p * log_p).sum() / 14,
    }
    shared = [
        len(set(ours.topk(3).indices.tolist()) & set(theirs.topk(3).indices.tolist())) / 3
        for ours, theirs in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True)
    ]
    assert found == pytest.approx(
        {**{name: float(value) for name, value in expected.items()}, "top_3": sum(shared) / 14},
        rel=1e-9,
    )


def test_equal_models_have_no_distance_whatever_is_added_to_logits() -> None:
    student, _ = draw(20, 6)
    found = distances(student + 3.0, student.double(), top=(1, 6)).means()
    for name in ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation"):
        assert found[name] == pytest.approx(0, abs=1e-6)
    assert found["top_1"] == found["top_6"] == 1.0
    assert found["student_entropy"] == pytest.approx(found["teacher_entropy"], abs=1e-6)


def test_parts_and_batches_add_up() -> None:
    student, teacher = draw(10, 5)
    weight = torch.linspace(0, 2, 10)
    whole = distances(student, teacher, weight=weight).means()
    assert distances(student, teacher, weight=weight, rows=3).means() == pytest.approx(whole)
    parts = [
        distances(student[at], teacher[at], weight=weight[at]) for at in (slice(0, 4), slice(4, 10))
    ]
    assert (parts[0] + parts[1]).means() == pytest.approx(whole)
    with pytest.raises(DataError, match="cannot be added"):
        parts[0] + distances(student, teacher, top=(2,))


def test_weights_are_heeded_and_what_is_masked_counts_nothing() -> None:
    student, teacher = draw(4, 5)
    each = [distances(student[row], teacher[row]).means() for row in torch.arange(4).split(1)]
    weighted = distances(student, teacher, weight=torch.tensor([1.0, 3.0, 0.0, 0.0])).means()
    for name, value in weighted.items():
        assert value == pytest.approx((each[0][name] + 3 * each[1][name]) / 4, abs=1e-12)
    student[2:], teacher[2:] = torch.nan, torch.inf
    mask = torch.tensor([True, True, False, False])
    found = distances(student, teacher, weight=mask).means()
    assert found == pytest.approx(distances(student[:2], teacher[:2]).means())
    with pytest.raises(DataError, match="no tokens"):
        distances(student, teacher, weight=torch.zeros(4)).means()


def test_temperature_divides_logits_and_has_no_factor() -> None:
    student, teacher = draw(4, 5)
    found = distances(student, teacher, temperature=2.0).means()
    assert found == pytest.approx(distances(student / 2, teacher / 2).means())


def test_classes_that_both_rule_out_count_nothing() -> None:
    student, teacher = draw(4, 5)
    padded = [
        torch.cat([logits, torch.full((4, 2), -torch.inf)], -1) for logits in (student, teacher)
    ]
    found = distances(padded[0], padded[1]).means()
    assert found == pytest.approx(distances(student, teacher).means())


def test_embeddings_of_the_same_direction() -> None:
    first = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    second = torch.tensor([[2.0, 0.0], [4.0, -3.0]])
    assert embedding_similarity(first, second) == pytest.approx(0.5)


def test_agreement_by_hand() -> None:
    expected = ["A", "B", "C", "A", "B", "A"]
    teacher = ["A", "B", "C", "B", None, "B"]
    student = ["A", "B", "A", "B", None, "A"]
    found = answer_agreement(student, teacher, expected)
    assert (found.rights, found.wrongs) == (3, 3)
    assert found.overall == pytest.approx(3 / 6)
    assert found.teacher_right == pytest.approx(2 / 3)
    assert found.teacher_wrong == pytest.approx(1 / 3)
    # By chance: A 3 * 1, B 2 * 3 of 36.
    assert found.kappa == pytest.approx((1 / 2 - 9 / 36) / (1 - 9 / 36))


def test_agreement_at_its_ends() -> None:
    found = answer_agreement([1, 2], [1, 2], [1, 2])
    assert found == (1.0, 1.0, 1.0, None, 2, 0)
    assert cohens_kappa([1, 1], [1, 1]) is None
    assert cohens_kappa([1, 2], [2, 1]) == pytest.approx(-1.0)
    # Independent answers agree as chance has it.
    assert cohens_kappa([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0.0)
    assert cohens_kappa([None], [None]) == 0.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: distances(torch.ones(2, 3), torch.ones(2, 4)), r"\(2, 3\).*\(2, 4\)"),
        (lambda: distances(torch.ones(3), torch.ones(3)), r"\(3,\)"),
        (lambda: distances(torch.ones(2, 3), torch.ones(2, 3)), r"top is \(1, 5\); with 3"),
        (
            lambda: distances(torch.ones(2, 9), torch.ones(2, 9), weight=torch.ones(3)),
            r"\(3,\).*\(2,\)",
        ),
        (lambda: distances(torch.ones(2, 9), torch.ones(2, 9), temperature=0), "temperature is 0"),
        (lambda: Distances(torch.tensor(0.0), {}).means(), "no tokens"),
        (lambda: embedding_similarity(torch.ones(0, 2), torch.ones(0, 2)), r"\(0, 2\)"),
        (lambda: answer_agreement([1], [1], []), "1 answers of the student, 1 .* 0 right"),
        (lambda: cohens_kappa([], []), "0 answers"),
    ],
)
def test_what_cannot_be_compared_is_refused(call: object, said: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=said):
        call()


def test_a_flat_student_of_a_sharp_teacher() -> None:
    found = distances(torch.zeros(1, 2), torch.tensor([[100.0, 0.0]]), top=(1,)).means()
    assert found["forward_kl"] == pytest.approx(math.log(2))
    assert found["total_variation"] == pytest.approx(0.5)
    assert found["student_entropy"] == pytest.approx(math.log(2))
