"""The divergence of two language models from their hidden states, without the logits of all tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch

from understudy.objectives.card import without_autocast
from understudy.objectives.divergence import fit
from understudy.objectives.vocabulary.chunks import Side, Work
from understudy.objectives.vocabulary.closed_form import Divergence, Name
from understudy.objectives.vocabulary.function import fused
from understudy.objectives.vocabulary.head import Head
from understudy.objectives.vocabulary.rows import Loss, TopK
from understudy.objectives.vocabulary.target import DenseTarget, Target

# Bytes that the student's logits of one chunk may take in float32, unless the head's gradient takes more anyway.
CHUNK_BYTES = {"cpu": 32 * 2**20, "other": 512 * 2**20}
# Bytes that they may take for each number of that gradient.
GRADIENT_BYTES = 8
IGNORED = -100

Select = Callable[[torch.Tensor], torch.Tensor]


@without_autocast
def vocabulary_divergence(
    student: torch.Tensor,
    head: Head,
    target: Target,
    *,
    divergence: Name = "forward_kl",
    beta: float = 0.5,
    normalised: bool = False,
    skew: float = 0.1,
    temperature: float | torch.Tensor = 1.0,
    labels: torch.Tensor | None = None,
    cross_entropy: float = 0.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    chunk: int | None = None,
    compiled: bool = False,
) -> torch.Tensor:
    """T^2 * D(p, q) + cross_entropy * (-log q_1(label)) of each token, in nats, from hidden states and heads.

    p = softmax(t / T) is the teacher, q = softmax(s / T) the student, q_1 the student at T = 1, s and t the logits
    that `head` and the target's head make. Value and gradient are those of the objective of the same name on the
    logits, plus `cross_entropy`; but logits live for one chunk of tokens only, and gradients are computed in the
    forward pass. Second derivatives are refused.

    Products are computed in the type of the hidden states (float16 in float32), to which heads are converted where
    they differ, everything after them in float32 or better. Sums over chunks are in float32 or better.

    Args:
        student: last hidden states [B, T, H] (any leading dimensions).
        head: the student's head. Parts that need no gradient cost none.
        target: `DenseTarget` (hidden states and head of the teacher, live or stored) or `TopKTarget`.
        divergence: "forward_kl", "reverse_kl", "jensen_shannon", "skewed_forward_kl", "skewed_reverse_kl" or
            "total_variation".
        beta: as in `jensen_shannon`.
        normalised: as in `jensen_shannon`.
        skew: as in `skewed_forward_kl` and `skewed_reverse_kl`.
        temperature: T > 0, a number or a tensor that broadcasts over [B, T].
        labels: int64 [B, T], already shifted: the token that these hidden states should predict. A token with -100
            has no cross-entropy and keeps its divergence; its weight counts in the mean for both. To average over
            labelled tokens only, give the others the weight 0.
        cross_entropy: factor of the cross-entropy. Labels are needed if it is not 0, and not looked at if it is.
        weight: mask or weights over tokens [B, T]. Tokens of weight 0 are dropped before anything is multiplied. On
            an accelerator this waits for their number.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]). With "none" the backward pass
            computes the logits again.
        chunk: tokens in a chunk; None for as many as fit into a budget, see the documentation.
        compiled: whether `torch.compile` makes one kernel of all that happens to single logits, in some seconds at the
            first call. For accelerators: on a processor that kernel is slower than the operations it replaces.

    Rows of a head after its `vocabulary` are padding: no softmax sees them, and their gradient is 0. Both
    vocabularies must be equally long without it.

    Source: closed-form gradients by differentiation of the objectives named; the idea to compute them chunk by chunk
    in the forward pass is that of Liger Kernel (Hsu et al., 2024, arXiv 2410.10989).

    Raises:
        ValueError: shapes or vocabularies do not fit, a name is unknown, or a number is out of its range.
    """
    wanted = Divergence(divergence, beta, normalised, skew)
    _check_target(student, head, target)
    if cross_entropy != 0 and labels is None:
        raise ValueError(f"cross_entropy is {cross_entropy}, but there are no labels")
    masked = head.bias is not None or (
        isinstance(target, DenseTarget) and target.head.bias is not None
    )
    loss = Loss(wanted, cross_entropy, masked)
    if cross_entropy == 0 and labels is not None:
        _check_labels(labels, student, head.size)
        labels = None
    return _run(
        student, head, target, loss, temperature, labels, weight, reduction, chunk, compiled
    )


@without_autocast
def vocabulary_cross_entropy(
    student: torch.Tensor,
    head: Head,
    labels: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    chunk: int | None = None,
    compiled: bool = False,
) -> torch.Tensor:
    """-log q(label) of each token, in nats, from hidden states and a head; q is the student's softmax at temperature 1.

    Value and gradient are those of `cross_entropy` on the logits, computed as in `vocabulary_divergence`.

    Args:
        student: last hidden states [B, T, H] (any leading dimensions).
        head: the student's head.
        labels: int64 [B, T], already shifted; a token with -100 has no loss, but counts in the mean unless its weight
            is 0.
        weight: as in `vocabulary_divergence`.
        reduction: as in `vocabulary_divergence`.
        chunk: as in `vocabulary_divergence`.
        compiled: as in `vocabulary_divergence`.

    Source: the standard definition; closed-form gradient chunk by chunk as in Liger Kernel (Hsu et al., 2024, arXiv
    2410.10989).

    Raises:
        ValueError: shapes do not fit, a label is out of range, or a number is.
    """
    loss = Loss(Divergence("forward_kl"), 1.0, head.bias is not None)
    return _run(student, head, None, loss, 1.0, labels, weight, reduction, chunk, compiled)


def _run(
    student: torch.Tensor,
    head: Head,
    target: Target | None,
    loss: Loss,
    temperature: float | torch.Tensor,
    labels: torch.Tensor | None,
    weight: torch.Tensor | None,
    reduction: str,
    chunk: int | None,
    compiled: bool,
) -> torch.Tensor:
    """Drop the tokens that do not count, and compute; arguments as in `vocabulary_divergence`."""
    rows = _check(student, head, labels, reduction)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    exact = torch.float64 if student.dtype == torch.float64 else torch.float32
    factor = torch.ones(rows, dtype=exact, device=student.device)
    if weight is not None:
        factor = fit(weight.detach(), rows).to(exact)
    flat = factor.reshape(-1)
    kept = None if weight is None else flat.nonzero().squeeze(-1)

    def select(tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows that count: [..., D] as [N, D]."""
        tensor = tensor.reshape(flat.numel(), *tensor.shape[len(rows) :])
        return tensor if kept is None else tensor.index_select(0, kept)

    work = Work(
        loss=loss,
        teacher=None if target is None else _teacher(target, select, exact),
        temperature=_temperature(temperature, rows, select, exact),
        labels=None if labels is None else select(labels),
        chunk=chunk or _chunk(student, head),
        compiled=compiled,
    )
    side = _side(select(student), head)
    valid = flat if kept is None else flat.index_select(0, kept)
    if reduction == "none":
        each = fused(work, side, valid, each=True)
        if kept is None:
            return each.reshape(rows)
        return torch.zeros_like(flat).index_copy(0, kept, each).reshape(rows)
    if reduction == "mean":
        count = flat.sum()
        valid = valid / torch.where(count == 0, torch.ones_like(count), count)
    return fused(work, side, valid, each=False)


def _check(
    student: torch.Tensor, head: Head, labels: torch.Tensor | None, reduction: str
) -> torch.Size:
    """Refuse what does not fit; return the leading dimensions."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is '{reduction}'; it must be 'mean', 'sum' or 'none'")
    _check_width(student, head, "student")
    if labels is not None:
        _check_labels(labels, student, head.size)
    return student.shape[:-1]


def _check_target(student: torch.Tensor, head: Head, target: Target) -> None:
    rows = student.shape[:-1]
    _check_width(student, head, "student")
    if isinstance(target, DenseTarget):
        _check_width(target.hidden, target.head, "teacher")
        if target.hidden.shape[:-1] != rows:
            raise ValueError(
                f"student hidden states have shape {tuple(student.shape)} and teacher hidden states "
                f"{tuple(target.hidden.shape)}; all but their last dimension must be equal"
            )
        if target.head.size != head.size:
            raise ValueError(
                f"the student's vocabulary has {head.size} tokens (weight {tuple(head.weight.shape)}) and the "
                f"teacher's {target.head.size} (weight {tuple(target.head.weight.shape)}); they must be equal. If "
                "the longer one is the same vocabulary, padded, give its head `vocabulary`, the number of tokens"
            )
    else:
        shapes = (target.values.shape[:-1], target.indices.shape[:-1], target.tail.shape)
        count = target.indices.shape[-1] if target.indices.dim() else 0
        if any(shape != rows for shape in shapes) or target.values.shape[-1:] != (count,):
            raise ValueError(
                f"student hidden states have shape {tuple(student.shape)}, teacher values "
                f"{tuple(target.values.shape)}, indices {tuple(target.indices.shape)} and the teacher's tail "
                f"{tuple(target.tail.shape)}; they must be [..., H], [..., k], [..., k] and [...]"
            )
        if head.size < count:
            raise ValueError(
                f"teacher values have shape {tuple(target.values.shape)}, but the student's vocabulary has only "
                f"{head.size} tokens (weight {tuple(head.weight.shape)})"
            )


def _check_width(hidden: torch.Tensor, head: Head, whose: str) -> None:
    if hidden.dim() < 1 or hidden.shape[-1] != head.width:
        raise ValueError(
            f"{whose} hidden states have shape {tuple(hidden.shape)} and the {whose}'s head has a weight of shape "
            f"{tuple(head.weight.shape)}; their last dimensions must be equal"
        )


def _check_labels(labels: torch.Tensor, student: torch.Tensor, size: int) -> None:
    if labels.shape != student.shape[:-1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and student hidden states {tuple(student.shape)}; labels must "
            f"be {tuple(student.shape[:-1])}"
        )
    # Elsewhere looking would wait for the device, whose own gather refuses what is out of range.
    if labels.device.type == "cpu" and labels.numel():
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= size))
        if wrong.any():
            raise ValueError(
                f"labels hold {labels[wrong][0].item()}; they must be {IGNORED} or at least 0 and below the "
                f"vocabulary's {size} tokens"
            )


def _side(hidden: torch.Tensor, head: Head) -> Side:
    """Return hidden states [N, H] and a head, ready to multiply."""
    # The gradient of a logit can be too small for float16.
    hidden = hidden.float() if hidden.dtype == torch.float16 else hidden
    inputs: tuple[torch.Tensor, ...] = (hidden,)
    matrices: tuple[torch.Tensor, ...] = (head.weight,)
    if head.low_rank is not None:
        # The first half is an ordinary product of few numbers, which autograd differentiates.
        low = head.low_rank.scale * (hidden @ head.low_rank.down.to(hidden.dtype).mT)
        inputs, matrices = (hidden, low), (head.weight, head.low_rank.up)
    return Side(inputs, matrices, head.bias, head.scale, head.soft_cap, head.size)


def _teacher(target: Target, select: Select, exact: torch.dtype) -> Side | TopK:
    """Return the teacher's side of the rows that count, without gradients."""
    with torch.no_grad():
        if isinstance(target, DenseTarget):
            return _side(select(target.hidden.detach()), target.head)
        values, tail = target.values.detach().to(exact), target.tail.detach().to(exact)
        return TopK(select(values), select(target.indices), select(tail))


def _temperature(
    temperature: float | torch.Tensor, rows: torch.Size, select: Select, exact: torch.dtype
) -> float | torch.Tensor:
    """Return T as a number, or [N, 1]."""
    if not isinstance(temperature, torch.Tensor):
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        return float(temperature)
    try:
        given = temperature.detach().to(exact).expand(rows)
    except RuntimeError as error:
        raise ValueError(
            f"temperature has shape {tuple(temperature.shape)}, which does not fit tokens of shape {tuple(rows)}"
        ) from error
    return select(given).unsqueeze(-1)


def _chunk(student: torch.Tensor, head: Head) -> int:
    """Return how many tokens a chunk has by default.

    The gradient of a head's weight is read and written once a chunk. Where there is one, a chunk is long enough to make
    the product worth that pass.
    """
    budget = CHUNK_BYTES["cpu" if student.device.type == "cpu" else "other"]
    tokens = budget // (4 * head.size)
    if head.weight.requires_grad and torch.is_grad_enabled():
        tokens = max(tokens, GRADIENT_BYTES * head.width // student.element_size())
    return max(1, tokens)
