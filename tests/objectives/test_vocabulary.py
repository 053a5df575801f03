"""Head and divergence in one, against the plain formula: all logits, and autograd through them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from understudy.objectives import (
    DenseTarget,
    Head,
    LowRank,
    TopKTarget,
    forward_kl,
    jensen_shannon,
    kd_top_k,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    total_variation,
    vocabulary_divergence,
)
from understudy.objectives.vocabulary import chunks

ON_LOGITS = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "total_variation": total_variation,
}
DIVERGENCES: list[dict[str, Any]] = [
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl"},
    {"divergence": "jensen_shannon", "beta": 0.3},
    {"divergence": "jensen_shannon", "beta": 0.7, "normalised": True},
    {"divergence": "jensen_shannon", "beta": 0.0},
    {"divergence": "jensen_shannon", "beta": 1.0},
    {"divergence": "skewed_forward_kl", "skew": 0.1},
    {"divergence": "skewed_forward_kl", "skew": 0.0},
    {"divergence": "skewed_reverse_kl", "skew": 0.2},
    {"divergence": "total_variation"},
]
every = pytest.mark.parametrize(
    "wanted", DIVERGENCES, ids=lambda wanted: "-".join(map(str, wanted.values()))
)

B, T, V, H = 2, 7, 33, 8


class Case:
    """A student with a full head, a teacher, labels and a mask."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0, **head: Any
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

        self.hidden = draw(B, T, H).requires_grad_()
        self.leaves = {"weight": draw(V, H).requires_grad_()}
        self.head = Head(self.leaves["weight"], **head)
        self.target = DenseTarget(draw(B, T, 5), Head(draw(V, 5)))
        self.labels = torch.randint(V, (B, T), generator=generator)
        self.labels[0, 2] = self.labels[1, 6] = -100
        self.weight = torch.rand(B, T, generator=generator, dtype=torch.float64)
        self.weight[0, :2] = self.weight[1, 4] = 0

    def with_all_parts(self) -> Case:
        """Give the head a bias, a low rank pair, scale, cap and padding, and the teacher another padding."""
        generator = torch.Generator().manual_seed(9)

        def draw(*shape: int) -> torch.Tensor:
            drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return drawn.to(self.hidden.dtype).requires_grad_()

        self.leaves |= {"bias": draw(V), "down": draw(3, H), "up": draw(V, 3)}
        self.head = Head(
            self.leaves["weight"],
            self.leaves["bias"],
            scale=0.7,
            soft_cap=3.0,
            low_rank=LowRank(self.leaves["down"], self.leaves["up"], 0.5),
            vocabulary=V - 2,
        )
        theirs = self.target.head.weight[: V - 1]
        self.target = replace(
            self.target, head=Head(theirs, theirs[:, 0], 1.3, 4.0, vocabulary=V - 2)
        )
        return self

    def found(self, **keywords: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self._both(
            vocabulary_divergence(self.hidden, self.head, self.target, **keywords), keywords
        )

    def expected(
        self, *, wanted: dict[str, Any], **keywords: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        value = plain(self.hidden, self.head, self.target, **wanted, **keywords)
        return self._both(value, keywords)

    def _both(
        self, value: torch.Tensor, keywords: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the value and the gradients of 3 times it, or of a weighted sum of its elements."""
        upstream = torch.linspace(1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
        upstream = upstream if keywords.get("reduction") == "none" else torch.full_like(value, 3.0)
        leaves = {"hidden": self.hidden, **self.leaves}
        gradients = torch.autograd.grad(value, list(leaves.values()), upstream)
        return value.detach(), dict(zip(leaves, gradients, strict=True))


def plain_logits(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    """All logits as they are written down, in float32 or better."""
    weight = head.weight
    if head.low_rank is not None:
        weight = weight + head.low_rank.scale * head.low_rank.up @ head.low_rank.down
    logits = hidden @ weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if head.bias is not None:
        logits = logits + head.bias
    logits = head.scale * logits
    if head.soft_cap is not None:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    return logits[..., : head.vocabulary]


def plain(
    hidden: torch.Tensor,
    head: Head,
    target: DenseTarget,
    *,
    divergence: str,
    labels: torch.Tensor | None = None,
    cross_entropy: float = 0.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    temperature: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
    normalised: bool = False,
) -> torch.Tensor:
    """The whole formula on all logits, in probabilities where the package computes in logarithms."""
    student = plain_logits(hidden, head)
    teacher = plain_logits(target.hidden, target.head).detach()
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)

    def kl(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return (one * (one / two).log()).sum(-1)

    if divergence == "forward_kl":
        loss = kl(p, q)
    elif divergence == "reverse_kl":
        loss = kl(q, p)
    elif divergence == "skewed_forward_kl":
        loss = kl(p, skew * p + (1 - skew) * q)
    elif divergence == "skewed_reverse_kl":
        loss = kl(q, skew * q + (1 - skew) * p)
    elif divergence == "total_variation":
        loss = (p - q).abs().sum(-1) / 2
    elif beta in (0, 1):
        loss = kl(q, p) if beta else kl(p, q)
    else:
        m = beta * p + (1 - beta) * q
        loss = beta * kl(p, m) + (1 - beta) * kl(q, m)
        loss = loss / (beta * (1 - beta)) if normalised else loss
    loss = temperature**2 * loss
    if labels is not None:
        hard = F.cross_entropy(student.flatten(0, 1), labels.flatten(), reduction="none")
        loss = loss + cross_entropy * hard.reshape(loss.shape)
    weight = torch.ones_like(loss) if weight is None else weight.to(loss.dtype)
    if reduction == "none":
        return weight * loss
    total = (weight * loss).sum()
    return total if reduction == "sum" else total / weight.sum()


def assert_equal(
    found: tuple[torch.Tensor, dict[str, torch.Tensor]],
    expected: tuple[torch.Tensor, dict[str, torch.Tensor]],
    rtol: float = 1e-9,
    atol: float = 1e-11,
) -> None:
    """Compare value and gradients; `atol` of gradients is relative to their largest element."""
    torch.testing.assert_close(found[0], expected[0], rtol=rtol, atol=atol)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        largest = gradient.abs().max().item()
        assert largest > 0, name
        torch.testing.assert_close(
            found[1][name],
            gradient,
            rtol=rtol,
            atol=atol * largest,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@every
@pytest.mark.parametrize("chunk", [1, 3, 5, 100, None])
def test_value_and_gradient_are_those_of_the_plain_formula(
    wanted: dict[str, Any], chunk: int | None
) -> None:
    case = Case()
    assert_equal(case.found(**wanted, chunk=chunk), case.expected(wanted=wanted))


@every
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_part_of_a_head_and_everything_at_once(
    wanted: dict[str, Any], reduction: str
) -> None:
    case = Case().with_all_parts()
    keywords: dict[str, Any] = {
        "labels": case.labels % (V - 2),
        "cross_entropy": 0.4,
        "weight": case.weight,
        "reduction": reduction,
        "temperature": 2.5,
    }
    keywords["labels"][case.labels < 0] = -100
    expected = case.expected(wanted=wanted, **keywords)
    assert_equal(case.found(**wanted, **keywords, chunk=4), expected)
    found = case.found(**wanted, **keywords)
    assert_equal(found, expected)
    for name in ("weight", "bias", "up"):
        assert (found[1][name][V - 2 :] == 0).all() and (found[1][name][: V - 2] != 0).any()


@every
@pytest.mark.parametrize("chunk", [4, None])
def test_labels_at_temperature_1(wanted: dict[str, Any], chunk: int | None) -> None:
    case = Case()
    keywords = {"labels": case.labels, "cross_entropy": 0.4, "weight": case.weight}
    expected = case.expected(wanted=wanted, **keywords)
    assert_equal(case.found(**wanted, **keywords, chunk=chunk), expected)


@pytest.mark.parametrize("chunk", [9, None])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_teachers_logits_may_be_computed_in_shorter_parts_than_the_students(
    temperature: float, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "TEACHER_ROWS", 4)
    monkeypatch.setattr(chunks, "GROUP", 3 * V)
    case = Case()
    keywords = {
        "labels": case.labels,
        "cross_entropy": 0.4,
        "weight": case.weight,
        "temperature": temperature,
    }
    expected = case.expected(wanted={"divergence": "forward_kl"}, **keywords)
    assert_equal(case.found(**keywords, chunk=chunk), expected)


@pytest.mark.parametrize(
    "keywords", [{}, {"divergence": "jensen_shannon", "temperature": 2.0, "cross_entropy": 0.4}]
)
def test_a_compiled_kernel_computes_the_same(keywords: dict[str, Any]) -> None:
    case = Case(torch.float32)
    if keywords:
        case = case.with_all_parts()
        keywords = {**keywords, "labels": case.labels.clamp(max=V - 3)}
    expected = case.found(**keywords)
    for chunk in (4, None):
        assert_equal(case.found(**keywords, chunk=chunk, compiled=True), expected, 1e-5, 1e-5)


@every
@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_and_temperatures(
    wanted: dict[str, Any], temperature: float, dtype: torch.dtype
) -> None:
    case = Case(dtype, scale=0.5)
    keywords: dict[str, Any] = {"temperature": temperature, "weight": case.weight}
    name = wanted["divergence"]
    options = {key: value for key, value in wanted.items() if key != "divergence"}
    logits = [h.head.logits(x) for h, x in ((case, case.hidden), (case.target, case.target.hidden))]
    value = ON_LOGITS[name](logits[0], logits[1], **options, **keywords)
    expected = case._both(value, {})
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for chunk in (None, 4):
        found = case.found(**wanted, **keywords, chunk=chunk)
        assert found[0].dtype == torch.float32 and found[1]["weight"].dtype == dtype
        # Logits are rounded to the type of the hidden states in both, so values agree closely in bfloat16 too.
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
        assert_equal((found[0], found[1]), (found[0], expected[1]), tolerance, tolerance)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 70.0])
def test_finite_at_extremes(wanted: dict[str, Any], dtype: torch.dtype, scale: float) -> None:
    case = Case(dtype, scale=scale)
    if scale > 1:
        assert plain_logits(case.hidden, case.head).abs().max() > 1e4
    for target in (case.target, top_k(case, 5, 0.05)):
        case.target = target  # type: ignore[assignment]
        value, gradients = case.found(
            **wanted, temperature=0.05, labels=case.labels, cross_entropy=1.0
        )
        assert value.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients.values())


def top_k(case: Case, k: int, temperature: float) -> TopKTarget:
    """The k largest logits of the case's teacher, and the tail at a temperature."""
    logits = plain_logits(case.target.hidden, case.target.head)
    values, indices = logits.topk(k, dim=-1)
    rest = logits.scatter(-1, indices, -torch.inf)
    return TopKTarget(values, indices, temperature * (rest / temperature).logsumexp(-1))


@every
@pytest.mark.parametrize("k", [1, 4, V - 2])
def test_top_k_is_the_formula_on_merged_classes(wanted: dict[str, Any], k: int) -> None:
    case = Case().with_all_parts()
    sparse = top_k(case, k, 2.0)

    def merged(logits: torch.Tensor) -> torch.Tensor:
        rest = (logits / 2.0).scatter(-1, sparse.indices, -torch.inf).logsumexp(-1, keepdim=True)
        kept = logits.gather(-1, sparse.indices)
        # Where nothing is left, autograd through the tail would not be a number.
        return kept if k == V - 2 else torch.cat([kept, 2.0 * rest], -1)

    student = plain_logits(case.hidden, case.head)
    teacher = plain_logits(case.target.hidden, case.target.head)
    name, options = wanted["divergence"], {k: v for k, v in wanted.items() if k != "divergence"}
    keywords: dict[str, Any] = {"temperature": 2.0, "weight": case.weight}
    value = ON_LOGITS[name](merged(student), merged(teacher), **options, **keywords)
    labels = case.labels.clamp(max=V - 3)
    hard = F.cross_entropy(student.flatten(0, 1), labels.flatten(), reduction="none")
    hard = (case.weight * hard.reshape(B, T)).sum() / case.weight.sum()
    expected = case._both(value + 0.5 * hard, {})
    case.target = sparse  # type: ignore[assignment]
    for chunk in (None, 3):
        found = case.found(**wanted, **keywords, labels=labels, cross_entropy=0.5, chunk=chunk)
        assert_equal(found, expected)


def test_top_k_agrees_with_the_objective_on_logits() -> None:
    case = Case()
    sparse = top_k(case, 4, 3.0)
    student = plain_logits(case.hidden, case.head)
    value = kd_top_k(student, sparse.values, sparse.indices, sparse.tail, temperature=3.0)
    expected = case._both(value, {})
    case.target = sparse  # type: ignore[assignment]
    assert_equal(case.found(temperature=3.0), expected)


def test_a_teacher_without_a_tail_is_taken_at_its_word() -> None:
    case = Case()
    sparse = top_k(case, 4, 1.0)
    sparse = replace(sparse, tail=torch.full_like(sparse.tail, -torch.inf))
    student = plain_logits(case.hidden, case.head)
    expected = case._both(
        kd_top_k(student, sparse.values, sparse.indices, sparse.tail, temperature=1.0), {}
    )
    case.target = sparse  # type: ignore[assignment]
    assert_equal(case.found(), expected)


def test_temperatures_of_tokens() -> None:
    case = Case()
    temperature = 0.5 + torch.rand(B, T, dtype=torch.float64)
    each = [
        [
            vocabulary_divergence(
                case.hidden[b, t],
                case.head,
                DenseTarget(case.target.hidden[b, t], case.target.head),
                temperature=temperature[b, t].item(),
            )
            for t in range(T)
        ]
        for b in range(B)
    ]
    expected = case._both(torch.stack([torch.stack(row) for row in each]).mean(), {})
    assert_equal(case.found(temperature=temperature, chunk=3), expected)


def test_finite_differences_agree() -> None:
    case = Case().with_all_parts()
    leaves = {"hidden": case.hidden, **case.leaves}

    def value(*tensors: torch.Tensor, **keywords: Any) -> torch.Tensor:
        given = dict(zip(leaves, tensors, strict=True))
        head = replace(
            case.head,
            weight=given["weight"],
            bias=given["bias"],
            low_rank=LowRank(given["down"], given["up"], 0.5),
        )
        return vocabulary_divergence(
            given["hidden"], head, case.target, weight=case.weight, temperature=2.0, **keywords
        )

    for keywords in ({}, {"reduction": "none", "divergence": "jensen_shannon"}):
        assert torch.autograd.gradcheck(
            lambda *tensors, k=keywords: value(*tensors, **k), list(leaves.values())
        )


def test_masked_tokens_count_nothing_whatever_they_hold() -> None:
    case = Case()
    expected = case.expected(wanted={"divergence": "forward_kl"}, weight=case.weight)
    with torch.no_grad():
        case.hidden[case.weight == 0] = torch.nan
        case.target.hidden[case.weight == 0] = torch.inf
    for reduction in ("mean", "none"):
        value, gradients = case.found(weight=case.weight, reduction=reduction)
        assert (gradients["hidden"][case.weight == 0] == 0).all()
        assert value.isfinite().all() and gradients["weight"].isfinite().all()
    assert_equal(case.found(weight=case.weight, chunk=2), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_masked_is_0_and_has_no_gradient(reduction: str) -> None:
    case = Case().with_all_parts()
    value, gradients = case.found(weight=torch.zeros(B, T), reduction=reduction)
    assert (value == 0).all()
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_splitting_a_batch_changes_nothing() -> None:
    case = Case()
    keywords: dict[str, Any] = {"cross_entropy": 0.3}
    whole = case.found(weight=case.weight, labels=case.labels, **keywords)
    total = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        part = vocabulary_divergence(
            case.hidden[b],
            case.head,
            DenseTarget(case.target.hidden[b], case.target.head),
            weight=case.weight[b],
            labels=case.labels[b],
            reduction="sum",
            **keywords,
        )
        total = total + part
    assert_equal(whole, case._both(total / case.weight.sum(), {}))


def test_a_frozen_head_gets_no_gradient_and_its_pair_does() -> None:
    case = Case().with_all_parts()
    expected = case.expected(wanted={"divergence": "reverse_kl"})
    case.leaves["weight"].requires_grad_(False)
    del case.leaves["weight"], expected[1]["weight"]
    assert_equal(case.found(divergence="reverse_kl"), expected)


def test_a_tied_embedding_gets_both_gradients() -> None:
    ids = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2))
    case = Case()
    weight = case.leaves["weight"]
    found = vocabulary_divergence(weight[ids].tanh(), Head(weight), case.target)
    expected = plain(weight[ids].tanh(), Head(weight), case.target, divergence="forward_kl")
    (gradient,) = torch.autograd.grad(expected, weight)
    found.backward()
    torch.testing.assert_close(weight.grad, gradient)
    vocabulary_divergence(weight[ids].tanh(), Head(weight), case.target).backward()
    torch.testing.assert_close(weight.grad, 2 * gradient)


def test_the_teacher_gets_no_gradient() -> None:
    case = Case()
    theirs = [case.target.hidden.requires_grad_(), case.target.head.weight.requires_grad_()]
    vocabulary_divergence(case.hidden, case.head, case.target).backward()
    assert all(tensor.grad is None for tensor in theirs)


def test_second_derivatives_are_refused() -> None:
    case = Case()
    value = vocabulary_divergence(case.hidden, case.head, case.target)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, case.hidden, create_graph=True)


def test_backward_may_run_twice() -> None:
    case = Case()
    value = vocabulary_divergence(case.hidden, case.head, case.target)
    value.backward(retain_graph=True)
    once = case.leaves["weight"].grad.clone()
    value.backward()
    torch.testing.assert_close(case.leaves["weight"].grad, 2 * once)


def test_autocast_and_no_grad_change_nothing() -> None:
    case = Case(torch.float32)
    expected = case.found()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.found()
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], expected[1][name]) for name in expected[1])
    with torch.no_grad():
        value = vocabulary_divergence(case.hidden, case.head, case.target)
    assert torch.equal(value, expected[0]) and not value.requires_grad


def test_hidden_states_and_head_of_different_types() -> None:
    case = Case(torch.float32)
    expected = case.expected(wanted={"divergence": "forward_kl"})
    hidden = case.hidden.detach().bfloat16().requires_grad_()
    vocabulary_divergence(hidden, case.head, case.target, chunk=4).backward()
    weight = case.leaves["weight"].grad
    assert hidden.grad.dtype == torch.bfloat16 and weight.dtype == torch.float32
    for found, gradient in ((hidden.grad.float(), "hidden"), (weight, "weight")):
        assert (3 * found - expected[1][gradient]).norm() < 0.02 * expected[1][gradient].norm()


def test_half_precision_keeps_small_gradients() -> None:
    case = Case(torch.float32)
    hidden = case.hidden.detach().half().requires_grad_()
    weight = (1e-6 * torch.ones(B, T)).double()
    (found,) = torch.autograd.grad(
        vocabulary_divergence(hidden, case.head, case.target, weight=weight, reduction="sum"),
        case.leaves["weight"],
    )
    expected = case.expected(wanted={"divergence": "forward_kl"}, weight=weight, reduction="sum")
    assert (3 * found - expected[1]["weight"]).norm() < 1e-2 * expected[1]["weight"].norm()


class Sizes(TorchDispatchMode):
    """Record the number of elements of every tensor that an operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return found


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("sparse", [False, True])
def test_no_tensor_of_tokens_times_vocabulary_is_made(reduction: str, sparse: bool) -> None:
    tokens, classes, width, chunk = 96, 500, 4, 8
    hidden = torch.randn(tokens, width, requires_grad=True)
    head = Head(torch.randn(classes, width, requires_grad=True))
    target: DenseTarget | TopKTarget = DenseTarget(
        torch.randn(tokens, width), Head(torch.randn(classes, width))
    )
    if sparse:
        indices = torch.stack([torch.randperm(classes)[:5] for _ in range(tokens)])
        target = TopKTarget(torch.randn(tokens, 5), indices, torch.randn(tokens))
    with Sizes() as sizes:
        loss = vocabulary_divergence(
            hidden,
            head,
            target,
            labels=torch.zeros(tokens, dtype=torch.int64),
            cross_entropy=0.5,
            reduction=reduction,
            chunk=chunk,
        )
        loss.sum().backward()
    assert sizes.largest == max(chunk, width) * classes


def test_what_does_not_fit_is_refused() -> None:
    case = Case()

    def refused(match: str, **changes: Any) -> None:
        given = {"student": case.hidden, "head": case.head, "target": case.target, **changes}
        with pytest.raises(ValueError, match=match):
            vocabulary_divergence(**given)

    refused(r"\(2, 6, 8\).*\(2, 7, 5\)", student=case.hidden[:, 1:])
    refused(r"\(2, 7, 7\).*\(33, 8\)", student=case.hidden[..., 1:])
    refused(r"\(2, 7, 4\).*\(33, 5\)", target=replace(case.target, hidden=torch.randn(2, 7, 4)))
    longer = Head(torch.randn(40, 5))
    refused(r"33 tokens.*40 .*vocabulary", target=replace(case.target, head=longer))
    refused(
        r"\(2, 7, 8\).*\(2, 7, 3\)", target=TopKTarget(*(torch.zeros(2, 7, 3),) * 2, torch.zeros(2))
    )
    refused("only 33", target=TopKTarget(*(torch.zeros(2, 7, 34),) * 2, torch.zeros(2, 7)))
    refused(r"\(9,\).*\(2, 7\)", weight=torch.ones(9))
    refused("'average'", reduction="average")
    refused("'backward_kl'", divergence="backward_kl")
    refused("temperature is 0", temperature=0)
    refused("beta is 1.5", divergence="jensen_shannon", beta=1.5)
    refused("skew is 1", divergence="skewed_forward_kl", skew=1)
    refused("chunk is 0", chunk=0)
    refused("no labels", cross_entropy=1.0)
    refused(r"\(7,\).*\(2, 7, 8\)", labels=case.labels[0])
    refused("labels hold 33", labels=torch.full((B, T), 33))
    refused("labels hold -1;", labels=torch.full((B, T), -1))
    with pytest.raises(ValueError, match=r"\(33,\)"):
        Head(torch.zeros(33, 8), torch.zeros(32))
    with pytest.raises(ValueError, match="low rank"):
        Head(torch.zeros(33, 8), low_rank=LowRank(torch.zeros(2, 8), torch.zeros(33, 3)))
    with pytest.raises(ValueError, match="soft_cap is 0"):
        Head(torch.zeros(33, 8), soft_cap=0.0)
    with pytest.raises(ValueError, match="vocabulary is 34"):
        Head(torch.zeros(33, 8), vocabulary=34)


@every
def test_classes_that_a_bias_masks_count_nothing(wanted: dict[str, Any]) -> None:
    case = Case()
    keywords: dict[str, Any] = {"labels": case.labels.clamp(max=V - 4), "cross_entropy": 0.5}
    full = case.head, case.target
    for sparse in (False, True):
        case.head, case.target = (
            replace(full[0], vocabulary=V - 3),
            replace(full[1], head=replace(full[1].head, vocabulary=V - 3)),
        )
        kept = top_k(case, 6, 1.0)
        case.target = kept if sparse else case.target  # type: ignore[assignment]
        expected = case.found(**wanted, **keywords)
        bias = torch.zeros(V, dtype=torch.float64)
        bias[V - 3 :] = -torch.inf
        case.head = replace(full[0], bias=bias)
        if not sparse:
            case.target = replace(full[1], head=replace(full[1].head, bias=bias))
        found = case.found(**wanted, **keywords)
        assert_equal(found, expected)
        assert (found[1]["weight"][V - 3 :] == 0).all()


def test_logits_of_a_head_are_the_plain_formula() -> None:
    case = Case().with_all_parts()
    torch.testing.assert_close(case.head.logits(case.hidden), plain_logits(case.hidden, case.head))
