"""Laws that every objective on features and relations obeys, with every keyword that changes the mathematics."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from understudy import objectives
from understudy.objectives.card import cards

Loss = Callable[..., torch.Tensor]
MAPS, NARROW = (6, 4, 3, 3), (6, 3, 3, 3)
VECTORS, OTHER = (6, 5), (6, 7)
SEQUENCES, ATTENTION = (6, 4, 5), (6, 2, 4, 3)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Case:
    """One way to call an objective."""

    function: Loss
    student: tuple[int, ...]
    teacher: tuple[int, ...] | None
    keywords: dict[str, object] = field(default_factory=dict)
    # Tensors with a row per sample, which are cut with the batch.
    per_sample: dict[str, torch.Tensor] = field(default_factory=dict)
    zero_at_teacher: bool = True
    coupled: bool = False
    smallest: int = 1

    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor | None, **more: object
    ) -> torch.Tensor:
        rows = more.pop("rows", slice(None))
        extra = {
            key: value[rows].to(student.dtype) if value.is_floating_point() else value[rows]
            for key, value in self.per_sample.items()
        }
        tensors = {
            key: value.to(student.dtype) if isinstance(value, torch.Tensor) else value
            for key, value in self.keywords.items()
        }
        inputs = (student,) if self.teacher is None else (student, teacher)
        return self.function(*inputs, **tensors, **extra, **more)


o = objectives
CASES: dict[str, Case] = {
    "mse": Case(o.mse, MAPS, MAPS),
    "normalised_mse": Case(o.normalised_mse, SEQUENCES, SEQUENCES),
    "normalised_mse maps": Case(o.normalised_mse, MAPS, MAPS, {"dim": 1}),
    "mgd": Case(o.mgd, MAPS, MAPS),
    "cosine": Case(o.cosine, SEQUENCES, SEQUENCES),
    "feature_cross_entropy": Case(
        o.feature_cross_entropy, SEQUENCES, SEQUENCES, zero_at_teacher=False
    ),
    "attention_transfer": Case(o.attention_transfer, MAPS, NARROW),
    "attention_transfer paper": Case(
        o.attention_transfer, MAPS, NARROW, {"form": "paper", "power": 3.0}
    ),
    "fsp": Case(
        o.fsp,
        MAPS,
        MAPS,
        per_sample={"student_later": normal(6, 3, 2, 2), "teacher_later": normal(6, 3, 2, 2)},
    ),
    "fsp official": Case(
        o.fsp,
        MAPS,
        MAPS,
        {"official": True},
        {"student_later": normal(6, 3, 2, 2), "teacher_later": normal(6, 3, 2, 2)},
    ),
    "factor_transfer": Case(o.factor_transfer, MAPS, MAPS),
    "factor_transfer 3": Case(o.factor_transfer, MAPS, MAPS, {"power": 3.0}),
    "knowledge_translation": Case(
        o.knowledge_translation, MAPS, MAPS, {"power": 2.0, "norm_power": 1.5}
    ),
    "activation_boundaries": Case(o.activation_boundaries, MAPS, MAPS, zero_at_teacher=False),
    "ofd": Case(o.ofd, MAPS, MAPS, {"margin": -normal(4, seed=3).abs()}),
    "nst": Case(o.nst, MAPS, NARROW),
    "nst linear": Case(o.nst, MAPS, NARROW, {"kernel": "linear"}),
    "nst gaussian": Case(o.nst, MAPS, NARROW, {"kernel": "gaussian"}),
    "vid": Case(
        o.vid, MAPS, MAPS, {"variance": normal(4, seed=3).abs() + 0.1}, zero_at_teacher=False
    ),
    "pad": Case(
        o.pad,
        VECTORS,
        VECTORS,
        per_sample={"log_variance": normal(6, 5, seed=3)},
        zero_at_teacher=False,
    ),
    "review": Case(o.review, (6, 4, 5, 5), (6, 4, 5, 5)),
    "cwd": Case(o.cwd, MAPS, MAPS),
    "srd": Case(o.srd, VECTORS, VECTORS, zero_at_teacher=False, coupled=True),
    "lsh": Case(
        o.lsh,
        VECTORS,
        VECTORS,
        {"hash_weight": normal(9, 5, seed=3), "hash_bias": normal(9, seed=4)},
        zero_at_teacher=False,
    ),
    "lsh l1": Case(
        o.lsh, VECTORS, VECTORS, {"hash_weight": normal(9, 5, seed=3), "distance": "l1"}
    ),
    "norm_penalty": Case(o.norm_penalty, MAPS, None, {"power": 2.5}, zero_at_teacher=False),
    "procrustes": Case(o.procrustes, VECTORS, OTHER, coupled=True, smallest=2),
    "procrustes raw": Case(
        o.procrustes, OTHER, VECTORS, {"preprocessing": "raw", "squared": False}, coupled=True
    ),
    "feature_gram": Case(o.feature_gram, VECTORS, OTHER, coupled=True, smallest=2),
    "feature_gram wide": Case(
        o.feature_gram, (6, 2), (6, 3), {"squared": False}, coupled=True, smallest=2
    ),
    "cka": Case(o.cka, VECTORS, OTHER, coupled=True, smallest=2),
    "cka debiased": Case(o.cka, VECTORS, OTHER, {"debiased": True}, coupled=True, smallest=4),
    "cka rbf": Case(
        o.cka, VECTORS, OTHER, {"kernel": "rbf", "bandwidth": 0.7}, coupled=True, smallest=2
    ),
    "cka rbf debiased": Case(
        o.cka, VECTORS, OTHER, {"kernel": "rbf", "debiased": True}, coupled=True, smallest=4
    ),
    "visual_words": Case(
        o.visual_words,
        (6, 4, 9),
        SEQUENCES,
        {"centres": normal(9, 5, seed=3), "sharpness": 0.5},
        zero_at_teacher=False,
    ),
    "subclass_scores": Case(
        o.subclass_scores,
        (6, 4, 6),
        SEQUENCES,
        {"centres": normal(3, 2, 5, seed=3), "table": normal(6, 6, seed=4).softmax(dim=-1)},
        {"labels": torch.tensor([0, 2, 1, 0, 2, 1])},
        zero_at_teacher=False,
    ),
    "rkd_distance": Case(o.rkd_distance, VECTORS, OTHER, coupled=True, smallest=2),
    "rkd_angle": Case(o.rkd_angle, VECTORS, OTHER, coupled=True, smallest=2),
    "pkt": Case(o.pkt, VECTORS, OTHER, coupled=True),
    "similarity_preserving": Case(o.similarity_preserving, MAPS, OTHER, coupled=True),
    "similarity_preserving official": Case(
        o.similarity_preserving, MAPS, OTHER, {"official": True}, coupled=True
    ),
    "correlation_congruence": Case(o.correlation_congruence, VECTORS, OTHER, coupled=True),
    "correlation_congruence official": Case(
        o.correlation_congruence, VECTORS, OTHER, {"official": True, "gamma": 0.1}, coupled=True
    ),
    "correlation_congruence bilinear": Case(
        o.correlation_congruence, VECTORS, OTHER, {"kernel": "bilinear"}, coupled=True
    ),
    "ickd": Case(o.ickd, MAPS, (6, 4, 2, 2)),
    "affinity": Case(o.affinity, MAPS, NARROW),
    "affinity official": Case(o.affinity, MAPS, MAPS, {"official": True}),
    "crd": Case(o.crd, VECTORS, VECTORS, zero_at_teacher=False, coupled=True, smallest=2),
    "info_nce": Case(o.info_nce, VECTORS, VECTORS, zero_at_teacher=False, coupled=True, smallest=2),
    "info_nce queue": Case(
        o.info_nce,
        VECTORS,
        VECTORS,
        {"queue": normal(8, 5, seed=3), "temperature": 0.5},
        zero_at_teacher=False,
        coupled=True,
    ),
    "attention_relation": Case(
        o.attention_relation,
        ATTENTION,
        (6, 2, 4, 5),
        {"causal": True},
        {
            "student_keys": normal(*ATTENTION, seed=3),
            "teacher_keys": normal(6, 2, 4, 5, seed=4),
            "mask": torch.tensor([[1, 1, 1, 0]] * 6),
        },
    ),
    "value_relation": Case(o.value_relation, ATTENTION, (6, 3, 4, 4), {"relation_heads": 6}),
    "skd_direction": Case(o.skd_direction, VECTORS, OTHER, coupled=True, smallest=2),
    "skd_instance": Case(o.skd_instance, VECTORS, VECTORS),
    "channel_correlation": Case(o.channel_correlation, MAPS, MAPS),
    "spatial_correlation": Case(o.spatial_correlation, MAPS, NARROW, coupled=True, smallest=2),
    "nt_xent": Case(o.nt_xent, SEQUENCES, None, zero_at_teacher=False, coupled=True, smallest=2),
    "sskd_auxiliary": Case(
        o.sskd_auxiliary, SEQUENCES, None, zero_at_teacher=False, coupled=True, smallest=2
    ),
    "sskd_similarity": Case(o.sskd_similarity, SEQUENCES, (6, 4, 3), coupled=True, smallest=2),
    "sskd_transformed": Case(
        o.sskd_transformed,
        SEQUENCES,
        SEQUENCES,
        {"ratio": 0.5},
        {"labels": torch.tensor([0, 3, 1, 4, 2, 2])},
        coupled=True,
    ),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def inputs(
    case: Case, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor | None]:
    student = normal(*case.student, seed=1).to(dtype).requires_grad_()
    return student, None if case.teacher is None else normal(*case.teacher, seed=2).to(dtype)


def gradient(loss: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, student)[0]


def test_every_objective_of_the_two_rooms_is_here() -> None:
    declared = {
        name.split(".")[1] for name in cards if name.split(".")[0] in ("feature", "relation")
    }
    assert declared == {name.split(" ")[0] for name in CASES}


@every
def test_the_gradient_is_right(case: Case) -> None:
    student, teacher = inputs(case)
    assert torch.autograd.gradcheck(lambda s: case(s, teacher), (student,))


@every
def test_the_teacher_gets_none(case: Case) -> None:
    student, teacher = inputs(case)
    if teacher is not None:
        teacher.requires_grad_()
        case(student, teacher).backward()
        assert teacher.grad is None and student.grad is not None


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_features_cost_nothing_and_pull_nowhere(case: Case, dtype: torch.dtype) -> None:
    if not case.zero_at_teacher:
        pytest.skip("its minimum is elsewhere")
    shape = case.teacher if case.function in (o.affinity, o.value_relation) else case.student
    student = normal(*shape, seed=1).to(dtype).requires_grad_()
    extra = {key: value for key, value in case.per_sample.items() if not key.startswith("teacher")}
    twins = {key.replace("student", "teacher"): value for key, value in extra.items()}
    same = Case(case.function, shape, shape, case.keywords, {**extra, **twins})
    loss = same(student, student.detach().clone())
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    # A cosine of two equal vectors is 1 up to rounding.
    assert -tolerance <= loss <= tolerance
    pull = gradient(loss, student)
    # The published formula of PKT has an eps that keeps its minimum this far from equality.
    largest = 1e-7 if case.function is o.pkt else 20 * tolerance
    assert pull.isfinite().all() and pull.abs().max() <= largest


@every
@pytest.mark.parametrize(
    "kind", ["zeros", "equal rows", "one zero row", "equal to the teacher", "large", "bf16"]
)
def test_finite_where_it_degenerates(case: Case, kind: str) -> None:
    student, teacher = inputs(case, torch.float32)
    values = student.detach().clone()
    if kind == "zeros":
        values.zero_()
    elif kind == "equal rows":
        values[:] = values[:1].clone()
    elif kind == "one zero row":
        values[2] = 0
    elif kind == "equal to the teacher" and teacher is not None and teacher.shape == values.shape:
        values = teacher.clone()
    elif kind == "large":
        values, teacher = 1e4 * values, None if teacher is None else 1e4 * teacher
    elif kind == "bf16":
        values, teacher = values.bfloat16(), None if teacher is None else teacher.bfloat16()
    values.requires_grad_()
    loss = case(values, teacher)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert gradient(loss, values).isfinite().all()


@every
def test_a_masked_sample_is_as_good_as_absent_whatever_it_holds(case: Case) -> None:
    student, teacher = inputs(case)
    kept = torch.tensor([0, 1, 3, 4, 5])
    weight = torch.ones(6)
    weight[2] = 0
    poisoned = student.detach().clone()
    poisoned[2] = torch.nan
    poisoned.requires_grad_()
    bad_teacher = None if teacher is None else teacher.clone()
    if bad_teacher is not None:
        bad_teacher[2] = torch.nan
    masked = case(poisoned, bad_teacher, weight=weight)
    subset = student.detach()[kept].requires_grad_()
    absent = case(subset, None if teacher is None else teacher[kept], rows=kept)
    torch.testing.assert_close(masked, absent)
    pull = gradient(masked, poisoned)
    torch.testing.assert_close(pull[kept], gradient(absent, subset))
    assert (pull[2] == 0).all()


@every
def test_all_masked_is_finite_and_pulls_nowhere(case: Case) -> None:
    student, teacher = inputs(case, torch.float32)
    loss = case(student, teacher, weight=torch.zeros(6))
    assert loss.isfinite()
    assert (gradient(loss, student) == 0).all()


@every
def test_weights_split_a_batch_or_are_homogeneous(case: Case) -> None:
    student, teacher = inputs(case)
    weight = normal(6, seed=5).abs()
    whole = case(student, teacher, weight=weight)
    if case.coupled:
        if case.function is not o.srd and case.keywords.get("preprocessing") != "raw":
            torch.testing.assert_close(case(student, teacher, weight=3 * weight), whole)
        return
    parts = [
        case(
            student[rows],
            None if teacher is None else teacher[rows],
            weight=weight[rows],
            reduction="sum",
            rows=rows,
        )
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close((parts[0] + parts[1]) / weight.sum(), whole)
    each = case(student, teacher, weight=weight, reduction="none")
    assert each.shape == (6,)
    torch.testing.assert_close(each.sum() / weight.sum(), whole)


@every
def test_the_order_of_samples_does_not_matter(case: Case) -> None:
    student, teacher = inputs(case)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = case(student[order], None if teacher is None else teacher[order], rows=order)
    torch.testing.assert_close(shuffled, case(student, teacher))


@every
def test_wrong_shapes_are_refused_with_both_of_them(case: Case) -> None:
    student, teacher = inputs(case)
    if teacher is None:
        return
    wrong = teacher[:5]
    pattern = f"{re.escape(str(tuple(student.shape)))}.*{re.escape(str(tuple(wrong.shape)))}"
    with pytest.raises(ValueError, match=pattern):
        case(student, wrong)
    with pytest.raises(ValueError, match=r"weight has shape \(5,\)|weight has shape \(5, 1"):
        case(student, teacher, weight=torch.ones(5))


@every
def test_too_few_samples_are_refused_with_a_sentence(case: Case) -> None:
    student, teacher = inputs(case)
    few = case.smallest - 1
    if few:
        rows = slice(0, few)
        with pytest.raises(ValueError, match="needs?"):
            case(student[rows], None if teacher is None else teacher[rows], rows=rows)
    else:
        rows = slice(0, 1)
        loss = case(student[rows], None if teacher is None else teacher[rows], rows=rows)
        assert loss.isfinite()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda a, b: o.attention_transfer(a, b, form="papr"), "form is 'papr'.*'code', 'paper'"),
        (lambda a, b: o.factor_transfer(a, b, power=0.5), "at least 1"),
        (lambda a, b: o.nst(a, b, kernel="rbf"), "'gaussian'"),
        (lambda a, b: o.cwd(a, b, temperature=0.0), "greater than 0"),
        (lambda a, b: o.vid(a, b, variance=torch.ones(7)), r"\(7,\).*\(6, 4, 3, 3\)"),
        (lambda a, b: o.ofd(a, b, margin=torch.ones(7)), r"\(7,\).*one number per channel"),
        (lambda a, b: o.ickd(a, b, official=True, reduction="sum"), "must be 'mean'"),
        (
            lambda a, b: o.mse(a, b, weight=torch.ones(6, 4, 3, 3, 1)),
            "leading dimensions|does not fit",
        ),
        (lambda a, b: o.cwd(a.flatten(1), b.flatten(1)), r"\(6, 36\)"),
        (lambda a, b: o.value_relation(a, b, relation_heads=5), "relation_heads, 5"),
        (lambda a, b: o.cka(a, b, kernel="poly"), "kernel is 'poly'"),
        (lambda a, b: o.cka(a, b, kernel="rbf", bandwidth=0), "bandwidth is 0"),
        (lambda a, b: o.procrustes(a, b, preprocessing="center"), "'centred'"),
        (lambda a, b: o.crd(a.flatten(1), b.flatten(1)[:, :5]), r"\(6, 36\).*\(6, 5\)"),
        (lambda a, b: o.crd(a.flatten(1), b.flatten(1), index=torch.zeros(3, 2)), r"\(3, 2\)"),
        (lambda a, b: o.crd(a.flatten(1), b.flatten(1)[:4]), "without an index"),
        (lambda a, b: o.info_nce(a.flatten(1), b.flatten(1), queue=torch.ones(3, 4)), r"\(3, 4\)"),
        (lambda a, b: o.sskd_similarity(a.flatten(2), b.flatten(2), ratio=2.0), r"\[0, 1\]"),
        (lambda a, b: o.skd_direction(a, b, tikhonov=0.0), "tikhonov is 0.0"),
        (lambda a, b: o.norm_penalty(a, official=True, reduction="sum"), "no reduction"),
        (lambda a, b: o.correlation_congruence(a, b, order=-1), "order is -1"),
    ],
)
def test_a_bad_keyword_is_refused_with_a_sentence(call: Loss, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(normal(*MAPS), normal(*MAPS, seed=1))
