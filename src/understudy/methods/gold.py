"""Distillation between different tokenizers over spans of text that both cut out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from understudy import objectives
from understudy.data.batch import Batch
from understudy.errors import UnderstudyError
from understudy.methods._answers import refuse_other_tasks, tokens_in
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.models.token_bytes import begins_with_space, token_bytes
from understudy.models.tokens import Tokens


class GOLD(Method, name="gold"):
    """Match the teacher over spans of text that begin and end together in both models' tokens.

    Paper: Patino et al., "Unlocking On-Policy Distillation for Any Model Family" (GOLD), 2025, and its code in TRL.
    Equation: of each span M / V' times the generalised Jensen-Shannon divergence over the M tokens that both have, plus
    1 - M / V' times the `uld` distance over all others; mean over spans. A span of several tokens is stood for by the
    distribution at its first token, times the probabilities of those that follow in it ("observed").
    Deviation: probabilities are not cut off at 1e-8; what follows the last common place is left out; the mean runs over
    all spans of the batch.
    Labels: not used; `supervised` belongs beside it.
    Cost: the logits of all predicted tokens of both models, sorted, and a loop over the batch's tokens on the host.
    Fails when: a tokenizer changes the text (small letters only, other spaces), so that the two have no place in
    common. One that cannot tell what its tokens stand for is refused.

    Args:
        beta: the teacher's share in the mixture of the Jensen-Shannon divergence, in (0, 1).
        temperature: T, by which both models' logits are divided.
        merge: what stands for a span of several tokens: "observed", or "bayesian": the distribution at its last token,
            times the probabilities of those before.
        matched: weight of the part on shared tokens; None for their share of the teacher's vocabulary.
        unmatched: weight of the other part; None for the rest.
    """

    needs_tokens = True
    crosses_tokenizers = True
    shared: torch.Tensor

    def __init__(
        self,
        beta: float = 0.5,
        temperature: float = 1.0,
        merge: Literal["observed", "bayesian"] = "observed",
        matched: float | None = None,
        unmatched: float | None = None,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not 0 < beta < 1:
            raise ValueError(f"beta is {beta}; it must lie between 0 and 1")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        if merge not in ("observed", "bayesian"):
            raise ValueError(f"merge is '{merge}'; it must be 'observed' or 'bayesian'")
        self.beta, self.temperature, self.merge = beta, temperature, merge
        self.matched, self.unmatched = matched, unmatched

    def wire(self, wiring: Wiring) -> None:
        """Learn what text the tokens of both stand for, and which ones are the same."""
        self._teacher = wiring.teacher.role
        tokenizers = [
            self._tokenizer(side.inputs, side.called) for side in (wiring.student, wiring.teacher)
        ]
        self._bytes = [token_bytes(tokenizer) for tokenizer in tokenizers]
        self._strips = [begins_with_space(tokenizer) for tokenizer in tokenizers]
        pairs = _shared(*self._bytes)
        ends = [tokenizer.eos_token_id for tokenizer in tokenizers]
        pairs.append((ends[0], ends[1]))
        self.register_buffer("shared", torch.tensor(pairs), persistent=False)
        wiring.notes.append(
            f"{self.name}: {len(pairs)} tokens are the same in both vocabularies, of {len(tokenizers[0])} of the "
            f"student and {len(tokenizers[1])} of the {wiring.teacher.called}"
        )

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over spans."""
        refuse_other_tasks(step, self.name)
        ours, theirs, count = self._groups(step.batch)
        student, teacher = step.logits()
        if count == 0:
            return student.sum() * 0.0
        own = tokens_in(step.batch.inputs, "student", self.name)
        other = tokens_in(step.batch.inputs, self._teacher, self.name)
        q, p = (
            objectives.spans(
                logits.unsqueeze(0),
                tokens.labels.unsqueeze(0),
                torch.tensor([groups]).to(logits.device, non_blocking=True),
                count=count,
                merge=self.merge,
                temperature=self.temperature,
            )
            for logits, tokens, groups in ((student, own, ours), (teacher.detach(), other, theirs))
        )
        return objectives.gold(
            q.logits,
            p.logits,
            self.shared,
            student_rest=q.rest,
            teacher_rest=p.rest,
            beta=self.beta,
            matched=self.matched,
            unmatched=self.unmatched,
            temperature=self.temperature,
        )

    def valid(self, batch: Batch) -> torch.Tensor:
        """Return the number of spans."""
        return torch.tensor(float(self._groups(batch)[2]), device=batch.index.device)

    def _groups(self, batch: Batch) -> tuple[list[int], list[int], int]:
        """Return the span of every predicted token of both, -1 for none, and how many spans there are."""
        sides = [
            _ends(tokens_in(batch.inputs, role, self.name), known, strips)
            for role, known, strips in zip(
                ("student", self._teacher), self._bytes, self._strips, strict=True
            )
        ]
        ours: list[int] = []
        theirs: list[int] = []
        count = 0
        for own, other in zip(*sides, strict=True):
            first, second = objectives.common_spans(own, other)
            ours += [count + number if number >= 0 else -1 for number in first]
            theirs += [count + number if number >= 0 else -1 for number in second]
            count += max(first, default=-1) + 1
        return ours, theirs, count

    def _tokenizer(self, inputs: Any, whom: str) -> Any:
        layout = inputs.layout if isinstance(inputs, Tokens) else None
        tokenizer = getattr(layout, "tokenizer", None)
        if tokenizer is None:
            raise UnderstudyError(
                f"Method '{self.name}' needs the tokenizer of the {whom}, and its preprocessing has none. It works on "
                "language models."
            )
        return tokenizer


def _shared(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return pairs of the tokens that stand for the same bytes in two vocabularies, each token once."""
    known: dict[bytes, int] = {}
    for number, text in enumerate(theirs):
        if text:
            known.setdefault(text, number)
    pairs: dict[bytes, tuple[int, int]] = {}
    for number, text in enumerate(ours):
        if text in known:
            pairs.setdefault(text, (number, known[text]))
    return list(pairs.values())


def _ends(tokens: Tokens, known: Sequence[bytes], strips: bool) -> Iterator[list[int]]:
    """Give for each document where its predicted tokens end in their text, in bytes."""
    predicted: list[list[int]] = [[] for _ in range(tokens.documents)]
    for sequence in tokens.sequences:
        predicted[sequence.document] += sequence.ids[max(1, sequence.start) :].tolist()
    for ids in predicted:
        end, ends = 0, []
        for token in ids:
            text = known[token]
            end += len(text.removeprefix(b" ") if strips and end == 0 else text)
            ends.append(end)
        yield ends
