"""Universal logit distillation between models with different tokenizers."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.data.batch import Batch
from understudy.methods._answers import refuse_other_tasks, side_by_side, tokens_in
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring


class ULD(Method, name="uld"):
    """Match how sure the teacher is at each place of a text, whatever its tokens are.

    Paper: Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs", 2024.
    Equation: sum over ranks of |q_(v) - p_(v)|, probabilities sorted from the largest, the smaller vocabulary filled up
    with zeros; mean over the first min(n, m) predicted tokens of each document, where the student reads n and the
    teacher m of them.
    Weight: it is added to the labels' loss. Temperature 1 and predictions side by side are the authors' code's.
    Deviation: the mean runs over all compared tokens of the batch, not first over those of each document.
    Labels: not used. It says nothing of which token is the right one, so `supervised` belongs beside it.
    Cost: the logits of all predicted tokens of both models, sorted; a batch of 4 096 tokens with 150 000 entries each
    takes 2.5 GB a model in float32.
    Fails when: the two cut a text into very different numbers of tokens: the k-th tokens then stand at different
    places. `gold` compares what stands at the same place.

    Args:
        temperature: T, by which both models' logits are divided.
        first: how many predicted tokens at the beginning of a document are left out on both sides. 0 pairs the
            predictions of the first tokens; 1 those made at the first token of an answer, which predict the second, as
            TRL does by default.
    """

    needs_tokens = True
    crosses_tokenizers = True

    def __init__(self, temperature: float = 1.0, first: int = 0) -> None:
        """Keep the configuration."""
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        if first < 0:
            raise ValueError(f"first is {first}; it must be at least 0")
        self.temperature, self.first = temperature, first

    def wire(self, wiring: Wiring) -> None:
        """Remember whose tokens to look at."""
        self._teacher = wiring.teacher.role

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the tokens that have a counterpart."""
        refuse_other_tasks(step, self.name)
        rows, valid = self._pairs(step.batch)
        student, teacher = step.logits()
        if not len(teacher) or not len(student):
            return student.sum() * 0.0
        return objectives.uld(
            student,
            teacher.index_select(0, rows),
            temperature=self.temperature,
            weight=valid.float(),
        )

    def valid(self, batch: Batch) -> torch.Tensor:
        """Return the number of tokens that are compared."""
        return self._pairs(batch)[1].sum().float()

    def _pairs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        ours, theirs = (
            tokens_in(batch.inputs, role, self.name) for role in ("student", self._teacher)
        )
        return side_by_side(ours, theirs, self.first)
