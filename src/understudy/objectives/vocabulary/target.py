"""What a student's next-token distributions are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from understudy.objectives.vocabulary.head import Head


@dataclass(frozen=True, slots=True)
class DenseTarget:
    """All of a teacher's logits, as hidden states and the head that makes them; live or from a store.

    Attributes:
        hidden: last hidden states [..., H_t] of the same tokens as the student's; detached.
        head: the teacher's head; detached.
    """

    hidden: torch.Tensor
    head: Head


@dataclass(frozen=True, slots=True)
class TopKTarget:
    """A teacher's k largest logits and one number for the rest, as in `kd_top_k`.

    The divergence is that of k + 1 classes: the k and all others together. It is at most the dense one, and equals it
    where student and teacher share out the tail alike.

    Attributes:
        values: the k largest logits [..., k] of the same tokens as the student's; detached. A number may be added to
            those and to the tail of a token.
        indices: int64 [..., k], which tokens of the vocabulary they are, each once.
        tail: [...], T * log sum exp(t / T) over the teacher's other logits t at the very temperature T of the
            loss; -inf when there are none. Detached.
    """

    values: torch.Tensor
    indices: torch.Tensor
    tail: torch.Tensor


Target = DenseTarget | TopKTarget
