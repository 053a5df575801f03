"""Word-level knowledge distillation of language models."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.models.outputs import Outputs
from understudy.objectives import DenseTarget, TopKTarget
from understudy.objectives.vocabulary.closed_form import Divergence, Name


class TokenKD(Method, name="token_kd"):
    """Match the teacher's next-token probabilities, token by token, without holding the logits of all tokens.

    Paper: Kim and Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, section 3.1 (word-level); reverse and
    Jensen-Shannon divergences Gu et al., "MiniLLM", ICLR 2024, and Agarwal et al., "On-Policy Distillation of Language
    Models", ICLR 2024; skewed ones Ko et al., "DistiLLM", ICML 2024.
    Equation: T^2 * D(p, q) + c * (-log q_1(token)), mean over predicted tokens, in nats; p is the teacher's softmax at
    temperature T, q the student's.
    Top k: where a store holds the k largest logits and a tail, the divergence is that of the k tokens and the rest.
    Labels: not used, unless `cross_entropy` is greater than 0. That does in one pass over the head what `supervised`
    beside it does in two.
    Cost: the two heads' products, chunk by chunk; memory does not grow with tokens times vocabulary.
    Fails when: the two have different tokenizers, which is refused; `uld` compares such.

    Args:
        divergence: "forward_kl" covers all that the teacher may say, "reverse_kl" keeps to what it likely says,
            "jensen_shannon" lies between, "skewed_forward_kl" and "skewed_reverse_kl" are bounded forms of the first
            two, "total_variation" counts probability that differs.
        temperature: T; 1 is usual for language models.
        beta: of "jensen_shannon": the teacher's share of the mixture.
        skew: of the skewed ones: the share of the other distribution.
        cross_entropy: c, the factor of the cross-entropy with the text itself.
        compiled: whether the arithmetic on single logits is compiled, see `objectives.vocabulary_divergence`.
    """

    needs_tokens = True

    def __init__(
        self,
        divergence: Name = "forward_kl",
        temperature: float = 1.0,
        beta: float = 0.5,
        skew: float = 0.1,
        cross_entropy: float = 0.0,
        compiled: bool = False,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        Divergence(divergence, beta, False, skew)
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        if cross_entropy < 0:
            raise ValueError(f"cross_entropy is {cross_entropy}; it must not be negative")
        self.divergence: Name = divergence
        self.temperature = temperature
        self.beta, self.skew = beta, skew
        self.cross_entropy, self.compiled = cross_entropy, compiled

    def wire(self, wiring: Wiring) -> None:
        """Refuse several teachers at once: hidden states and a head are those of one."""
        _ = wiring.teacher

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the predicted tokens."""
        return divergence_of_tokens(
            step,
            self.name,
            Divergence(self.divergence, self.beta, False, self.skew),
            temperature=self.temperature,
            cross_entropy=self.cross_entropy,
            compiled=self.compiled,
        )


def divergence_of_tokens(
    step: Step,
    method: str,
    divergence: Divergence,
    *,
    temperature: float,
    cross_entropy: float = 0.0,
    compiled: bool = False,
) -> torch.Tensor:
    """Return the divergence of teacher and student, mean over the predicted tokens (see `vocabulary_divergence`).

    Args:
        step: the step.
        method: the name of the method that asks.
        divergence: which one.
        temperature: T.
        cross_entropy: factor of the cross-entropy with the tokens.
        compiled: whether the arithmetic on single logits is compiled.

    Raises:
        UnderstudyError: student or teacher show neither hidden states nor the largest logits.
    """
    student = step.student
    if student.hidden is None or student.head is None:
        raise UnderstudyError(
            f"Method '{method}' works on the last hidden states and the head of a language model, and the student "
            "shows none. `kd` works on logits."
        )
    return objectives.vocabulary_divergence(
        student.hidden,
        student.head,
        target_of(step.teacher, temperature),
        divergence=divergence.name,
        beta=divergence.beta,
        skew=divergence.skew,
        temperature=temperature,
        labels=step.labels if cross_entropy else None,
        cross_entropy=cross_entropy,
        compiled=compiled,
    )


def target_of(teacher: Outputs, temperature: float) -> DenseTarget | TopKTarget:
    """Return what a teacher gives for the predicted tokens, as a target of `vocabulary_divergence`.

    Args:
        teacher: its outputs: top k, or hidden states and a head.
        temperature: that of the loss, to which a tail belongs.

    Raises:
        UnderstudyError: it gives neither.
    """
    if teacher.top_k is not None:
        top_k = teacher.top_k
        return TopKTarget(top_k.values, top_k.indices, top_k.tail(temperature))
    if teacher.hidden is None or teacher.head is None:
        raise UnderstudyError(
            "The teacher gives neither hidden states with a head nor its largest logits for the predicted tokens. Use "
            "`kd`, which works on logits."
        )
    return DenseTarget(teacher.hidden, teacher.head)
