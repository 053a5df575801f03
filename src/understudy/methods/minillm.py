"""MiniLLM: the reverse divergence of whole responses, by a policy gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from understudy import objectives
from understudy.data.batch import Batch
from understudy.errors import UnderstudyError
from understudy.methods._on_policy import OnPolicy, Responses, relaid, token_log_probs
from understudy.methods.step import Step
from understudy.methods.token_kd import target_of
from understudy.methods.wiring import Wiring
from understudy.sampling import Sampling


class MiniLLM(OnPolicy, name="minillm"):
    """Move the student towards responses that the teacher finds likelier than the student does.

    Paper: Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, equation 6, algorithm 1.
    Equation: -w_t * A_t * d log q(y_t) + `exact` * KL(q_t || p_t) of each token, mean over the tokens of the batch's
    responses; A_t is the whitened mean of the rewards log p(y_i) - log q(y_i) behind t (from t on where `exact` is 0),
    discounted by `gamma`, and w_t = q / ((1 - share) q + share * p).
    Use: alone in a stage, after one on the data. Responses are drawn from a mixture with the teacher (`share`), returns
    are divided by the number of tokens that remain (`length`), the first step of each return is computed exactly
    (`exact`), ratios are clipped.
    Labels: not used. Samples are pairs of a prompt and a response; only the prompts are read.
    Deviation: every response serves one step of the optimiser, where the authors take four: the ratio of policies
    is 1, and what is clipped is w alone. Whitening is over the tokens of the part of a batch that a process holds at a
    time, without padding. The authors add the cross-entropy on texts of pre-training, which a stage of its own may do.
    Cost: both models write, token by token, which takes most of a step's time.
    Fails when: the student has not been trained on the task yet; the authors begin with a student that has. The
    teacher has to be a live model with the same tokenizer.

    Args:
        share: the teacher's share of what is drawn from, alpha in the paper.
        gamma: discount of later rewards.
        length: what a return is divided by, see `objectives.returns_to_go`.
        scale: what rewards are divided by.
        limit: largest reward of a token either way, after scaling; None for none.
        exact: weight of the exact first step.
        clip: largest distance of a ratio from 1 that still pays.
        max_new_tokens: most tokens of a response; what does not fit into a row of either model is cut as well.
        official: the authors' arithmetic: padding counts in whitening, and a token's return begins with its own reward
            although `exact` has it already.
        batch_size: responses that are written at the same time.
    """

    def __init__(
        self,
        share: float = 0.2,
        gamma: float = 0.95,
        length: Literal["tokens", "discounted", "none"] = "tokens",
        scale: float = 0.5,
        limit: float | None = 100.0,
        exact: float = 1.0,
        clip: float = 0.2,
        max_new_tokens: int = 128,
        official: bool = False,
        batch_size: int = 32,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"share is {share}; it must be at least 0 and below 1")
        if not exact >= 0:
            raise ValueError(f"exact is {exact}; it must be at least 0")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        nothing = torch.zeros(1, 1)
        objectives.minillm_advantages(
            nothing, nothing, gamma=gamma, length=length, scale=scale, limit=limit
        )
        objectives.clipped_policy(nothing, nothing, clip=clip)
        self.share, self.gamma, self.scale, self.limit = share, gamma, scale, limit
        self.length: Literal["tokens", "discounted", "none"] = length
        self.exact, self.clip, self.official = exact, clip, official
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self._settings = Sampling(max_new_tokens)

    def wire(self, wiring: Wiring) -> None:
        """Take hold of both models."""
        super().wire(wiring)
        self._teacher = [wiring.teacher.module] if self.share else [None]

    def write(self, batch: Batch, number: int) -> Batch:
        """Let both write."""
        sampler = self.sampler(
            self._student[0],
            batch_size=self.batch_size,
            mixed_with=self._teacher[0],
            share=self.share,
        )
        return relaid(batch, self.responses(sampler, batch, number, self._settings), self.name)

    def loss(self, step: Step) -> Mapping[str, torch.Tensor]:
        """Return the two parts, each a mean over the predicted tokens."""
        student, labels = step.student, step.labels_for(self.name)
        if student.hidden is None or student.head is None:
            raise UnderstudyError(
                "Method 'minillm' works on the last hidden states and the head of a language model, and the student "
                "shows none."
            )
        ours, theirs = token_log_probs(student, labels), token_log_probs(step.teacher, labels)
        responses = Responses.of(step.batch.inputs["student"])
        advantages = objectives.minillm_advantages(
            responses.padded(ours.detach()),
            responses.padded(theirs),
            gamma=self.gamma,
            length=self.length,
            own=self.official or not self.exact,
            scale=self.scale,
            limit=self.limit,
            weight=responses.mask.float(),
            official=self.official,
        )
        importance = None
        if self.share:
            importance = objectives.teacher_mixed_importance(
                ours.detach(), theirs, share=self.share
            )
        terms = {
            "policy": objectives.clipped_policy(
                ours, responses.flat(advantages), importance=importance, clip=self.clip
            )
        }
        if self.exact:
            terms["exact"] = self.exact * objectives.vocabulary_divergence(
                student.hidden,
                student.head,
                target_of(step.teacher, 1.0),
                divergence="reverse_kl",
            )
        return terms
