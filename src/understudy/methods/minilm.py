"""MiniLM: what tokens attend to, and how their values relate, in the last layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from understudy import objectives
from understudy.errors import UnderstudyError, suggestion
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Side, Wiring

PROJECTIONS = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
)
"""What the linear maps to queries, keys and values are called in attention modules."""
HEADS = ("num_attention_heads", "n_heads", "num_heads")
"""What the number of heads is called there."""


@dataclass(frozen=True)
class _Attention:
    """A self-attention module: its path, the taps of queries, keys and values, heads and whether it is causal."""

    path: str
    taps: tuple[str, ...]
    heads: int
    causal: bool


class MiniLM(Method, name="minilm"):
    """Match attention distributions and relations between values in one self-attention layer.

    Paper: Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
    Transformers", NeurIPS 2020, section 3; with `relation_heads` Wang et al., "MiniLMv2: Multi-Head
    Self-Attention Relation Distillation for Compressing Pretrained Transformers", Findings of ACL 2021.
    Equation: KL(A_t || A_s) + KL(R_t || R_s), with A = softmax(Q K^T / sqrt(d)) and R = softmax(V V^T / sqrt(d)), means
    over heads and over the tokens of a sequence that are no padding, in nats. With `relation_heads`: the same R of
    queries, of keys and of values, each split anew into so many heads.
    Labels: not used.
    Use: as a stage of its own before fine-tuning, or beside other methods. Widths and depths are free.
    Weight: 1; MiniLMv2 weighs its three terms equally.
    Cost: heads x tokens^2 numbers per sample and relation; nothing that is learnt.
    Fails when: the two models do not read the same tokens, which is refused. Attention that turns queries and keys by
    position (rotary) has other distributions than its projections say, and is refused too.

    Args:
        student_attention: path of the module with the projections to queries, keys and values, or "auto" for the last
            in the student.
        teacher_attention: the same in the teacher. MiniLMv2 takes an upper middle layer of large teachers, such as
            number 21 of 24.
        relation_heads: None for MiniLM, where both models need as many heads; a number for MiniLMv2, such as 48.
    """

    family = "relation"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_attention: str = "auto",
        teacher_attention: str = "auto",
        relation_heads: int | None = None,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if relation_heads is not None and relation_heads < 1:
            raise ValueError(f"relation_heads is {relation_heads}; it must be at least 1")
        self.student_attention = student_attention
        self.teacher_attention = teacher_attention
        self.relation_heads = relation_heads

    def wire(self, wiring: Wiring) -> None:
        """Find the attention modules and ask for their projections."""
        student = _attention(wiring.student, self.student_attention)
        teacher = _attention(wiring.teacher, self.teacher_attention)
        shapes = [
            [side.tap(tap).shape for tap in found.taps]
            for side, found in ((wiring.student, student), (wiring.teacher, teacher))
        ]
        if shapes[0][0][0] != shapes[1][0][0] or not _same_tokens(wiring):
            raise UnderstudyError(
                "Method 'minilm' compares tokens one by one, but student and teacher read different ones. Give both "
                "the same tokenizer and max_length (images: the same patches)."
            )
        for side, found, shape in zip(
            ("student", "teacher"), (student, teacher), shapes, strict=True
        ):
            _check_heads(side, found, shape, self.relation_heads)
        if self.relation_heads is None and student.heads != teacher.heads:
            raise UnderstudyError(
                f"The student's '{student.path}' has {student.heads} heads and the teacher's '{teacher.path}' "
                f"{teacher.heads}; MiniLM needs equal numbers. Set relation_heads (MiniLMv2), such as "
                f"{max(student.heads, teacher.heads)}, which must divide both widths."
            )
        if student.causal != teacher.causal:
            raise UnderstudyError(
                f"Only one of the student's '{student.path}' and the teacher's '{teacher.path}' is causal; their "
                "attention cannot be compared."
            )
        wiring.notes.append(f"attention of student '{student.path}', teacher '{teacher.path}'")
        self.places = list(zip(student.taps, teacher.taps, strict=True))
        self.heads, self.causal = (student.heads, teacher.heads), student.causal

    def loss(self, step: Step) -> Mapping[str, torch.Tensor]:
        """Return the means over the sequences, of each relation."""
        pairs = [step.features(*places) for places in self.places]
        mask, weight = step.token_mask(pairs[0][0]), step.batch.weight
        queries, keys, values = (
            (_heads(ours, self.heads[0]), _heads(theirs, self.heads[1])) for ours, theirs in pairs
        )

        def relation(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return objectives.value_relation(
                *pair,
                relation_heads=self.relation_heads,
                mask=mask,
                causal=self.causal,
                weight=weight,
            )

        if self.relation_heads is not None:
            return {
                "queries": relation(queries),
                "keys": relation(keys),
                "values": relation(values),
            }
        attention = objectives.attention_relation(
            *queries,
            student_keys=keys[0],
            teacher_keys=keys[1],
            mask=mask,
            causal=self.causal,
            weight=weight,
        )
        return {"attention": attention, "values": relation(values)}


def _heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    """Split [B, T, D] into [B, heads, T, D / heads]."""
    split: torch.Tensor = projected.unflatten(2, (heads, -1))
    return split.transpose(1, 2)


def _attention(side: Side, path: str) -> _Attention:
    modules = dict(side.module.named_modules())
    found = [name for name, module in modules.items() if _names(module) is not None]
    if any("rotary" in type(module).__name__.lower() for module in modules.values()):
        raise UnderstudyError(
            f"The {side.called} turns queries and keys by position (rotary embedding), after the projections that "
            "method 'minilm' reads."
        )
    if path == "auto" and not found:
        wanted = "; ".join(", ".join(names) for names in PROJECTIONS)
        raise UnderstudyError(
            f"The {side.called} has no self-attention module with projections of its own to queries, keys and values "
            f"(looked for {wanted}), so that method 'minilm' cannot read them."
        )
    if path != "auto" and path not in found:
        raise UnderstudyError(
            f"The {side.called}'s '{path}' is no self-attention module with projections to queries, keys and values. "
            f"{suggestion(path, found)}"
        )
    name = found[-1] if path == "auto" else path
    module = modules[name]
    heads = next(
        (getattr(module, key) for key in HEADS if isinstance(getattr(module, key, None), int)), None
    )
    if heads is None:
        raise UnderstudyError(
            f"The {side.called}'s '{name}' does not say how many heads it has (looked for {', '.join(HEADS)})."
        )
    taps = tuple(f"{name}.{projection}" for projection in _names(module) or ())
    return _Attention(name, taps, heads, bool(getattr(module, "is_causal", False)))


def _names(module: nn.Module) -> tuple[str, ...] | None:
    parts = dict(module.named_children())
    return next((names for names in PROJECTIONS if all(name in parts for name in names)), None)


def _check_heads(
    role: str, found: _Attention, shapes: list[tuple[int, ...]], relation_heads: int | None
) -> None:
    if any(len(shape) != 2 for shape in shapes) or len(set(shapes)) > 1:
        listed = ", ".join(map(str, shapes))
        raise UnderstudyError(
            f"The {role}'s '{found.path}' has queries, keys and values of shapes {listed} per sample; method 'minilm' "
            "needs three sequences (T, D) of one width."
        )
    heads = relation_heads or found.heads
    if shapes[0][1] % heads:
        raise UnderstudyError(
            f"The {role}'s '{found.path}' has the width {shapes[0][1]}, which {heads} heads do not divide."
        )


def _same_tokens(wiring: Wiring) -> bool:
    """Tell whether the example batch holds the same tokens for both; true where it holds none."""
    ours, theirs = wiring.student.inputs, wiring.teacher.inputs
    if not (isinstance(ours, Mapping) and isinstance(theirs, Mapping)):
        return True
    ours, theirs = ours.get("input_ids"), theirs.get("input_ids")
    if not (isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)):
        return True
    return torch.equal(ours, theirs)
