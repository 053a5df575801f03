"""KDRL: rewards by rule and a teacher in one loss on the student's own responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from understudy import objectives
from understudy.data.batch import Batch
from understudy.errors import TrainingError
from understudy.evaluation.verify import (
    boxed_answer,
    gsm8k_answer,
    last_choice,
    last_number,
    same_answer,
)
from understudy.methods._on_policy import (
    OnPolicy,
    Responses,
    prompted,
    relaid,
    token_log_probs,
)
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.models.tokens import Tokens, TokenSequence
from understudy.sampling import Sampling

READERS: dict[str, Callable[[str], str | None]] = {
    "whole": str.strip,
    "boxed": boxed_answer,
    "gsm8k": gsm8k_answer,
    "number": last_number,
    "choice": last_choice,
}
"""What finds the answer in a response, by the name of the verifier."""
Verifier = Literal["whole", "boxed", "gsm8k", "number", "choice"]


class KDRL(OnPolicy, name="kdrl"):
    r"""Reward right answers of the student, and keep it near the teacher, on the same responses.

    Paper: Xu et al., "KDRL: Post-Training Reasoning LLMs via Unified Knowledge Distillation and Reinforcement
    Learning", 2025, equation 8, sections 3.3 and 3.4.
    Equation: -min(r A, clip(r) A) + beta * m * k2(log p(y_t) - log q(y_t)) of each token, mean over all tokens of the
    batch's responses; A = (reward - mean) / deviation over the `group` responses to a prompt, r the ratio of policies.
    Labels: not used. Samples are pairs of a prompt and a response; the right answer is read from the response.
    Deviation: every group serves one step of the optimiser, so that r is 1 and nothing is clipped. Masked tokens stay
    in the mean, so that beta keeps its meaning.
    Weight: beta lies in the range of the paper's annealing; a constant one and the size of a group it does not give.
    Log: `kdrl.reward`, the mean reward, and `kdrl.kl`, the mean of log q(y_t) - log p(y_t), which estimates KL(q || p).
    Cost: `group` responses to every prompt are written, token by token, and scored by the teacher.
    Fails when: no response is ever right and the teacher is not listened to (beta 0): there is nothing to learn from.
    With a poor teacher and rewards that come often, rewards alone do better. beta counts per token: 1e-3 suits long
    reasoning, 0.2 short answers. The teacher has to be a live model with the same tokenizer.

    Args:
        beta: weight of the teacher. With 0 it is GRPO and there need be no teacher.
        decrement: what beta falls by in each step; 5e-5 from 5e-3 in the paper's annealing, 0 for none.
        floor: where it stops; 1e-3 in the paper.
        masking: "response" listens to the teacher for wrong responses only, "group" for prompts without a right
            response, "none" always.
        estimator: "k2", "k3" or "k1", see `objectives.sampled_kl`.
        limit: largest |log p - log q|; None for none.
        group: responses to each prompt.
        deviation: "population" or "sample", see `objectives.group_advantages`.
        clip: largest distance of r from 1 that still pays.
        verifier: where an answer stands: "whole" is all of the text, "boxed" the last \boxed{...}, "gsm8k" what follows
            the last "####", "number" the last number, "choice" the last of the letters A to E that stands alone.
            Answers are compared as numbers where both are.
        end: whether the teacher is listened to at the token that ends a response; False where its texts end otherwise.
        max_new_tokens: most tokens of a response; what does not fit into a row of either model is cut as well.
        batch_size: responses that are written at the same time.
    """

    def __init__(
        self,
        beta: float = 2e-3,
        decrement: float = 0.0,
        floor: float = 0.0,
        masking: Literal["none", "response", "group"] = "none",
        estimator: Literal["k1", "k2", "k3"] = "k2",
        limit: float | None = 20.0,
        group: int = 8,
        deviation: Literal["population", "sample"] = "population",
        clip: float = 0.2,
        verifier: Verifier = "whole",
        end: bool = True,
        max_new_tokens: int = 128,
        batch_size: int = 32,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; it must be at least 0")
        if group < 2:
            raise ValueError(f"group is {group}; a response is compared with others, so at least 2")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        nothing = torch.zeros(1, 2)
        objectives.annealed_coefficient(0, start=beta, decrement=decrement, floor=floor)
        objectives.group_advantages(nothing, deviation=deviation)
        objectives.reward_guided_mask(nothing, masking)
        objectives.kdrl(
            nothing, nothing, nothing, beta=beta, estimator=estimator, limit=limit, clip=clip
        )
        if verifier not in READERS:
            raise ValueError(f"verifier is '{verifier}'; it must be one of {', '.join(READERS)}")
        self.beta, self.decrement, self.floor = beta, decrement, floor
        self.masking: Literal["none", "response", "group"] = masking
        self.estimator: Literal["k1", "k2", "k3"] = estimator
        self.limit, self.group, self.clip, self.end = limit, group, clip, end
        self.deviation: Literal["population", "sample"] = deviation
        self.verifier: Verifier = verifier
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.needs_teacher = beta > 0
        # Any other temperature would have to be that of both log-probabilities.
        self._settings = Sampling(max_new_tokens, samples=group)

    def wire(self, wiring: Wiring) -> None:
        """Take hold of the student."""
        super().wire(wiring)
        if self.needs_teacher:
            _ = wiring.teacher  # several at once are refused
        self._rewards: list[tuple[Tokens, torch.Tensor]] = []

    def write(self, batch: Batch, number: int) -> Batch:
        """Let the student write a group of responses to every prompt, and reward them."""
        expected = self._expected(batch)
        sampler = self.sampler(self._student[0], batch_size=self.batch_size)
        sequences = self.responses(sampler, batch, number, self._settings)
        rolled = relaid(batch, sequences, self.name)
        tokens = rolled.inputs["student"]
        read = READERS[self.verifier]
        rewards = [
            float(same_answer(read(self._layout.decode(each.response)), expected[k // self.group]))
            for k, each in enumerate(sequences)
        ]
        given = torch.tensor(rewards, device=tokens.device).view(-1, self.group)
        self._rewards.append((tokens, given))
        return rolled

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the predicted tokens."""
        tokens: Tokens = step.batch.inputs["student"]
        rewards = next((given for each, given in self._rewards if each is tokens), None)
        if rewards is None:
            raise TrainingError(
                "another method of the stage replaced the responses that were rewarded; let one method write"
            )
        labels = step.labels_for(self.name)
        ours = token_log_probs(step.student, labels)
        responses = Responses.of(tokens)
        step.note("reward", rewards.float().mean())
        advantages = objectives.group_advantages(rewards, deviation=self.deviation)
        per_token = responses.spread(advantages.flatten())
        if not self.needs_teacher:
            return objectives.clipped_policy(ours, per_token, clip=self.clip)
        theirs = token_log_probs(step.teacher, labels)
        step.note("kl", (ours - theirs).mean())
        distilled = responses.spread(objectives.reward_guided_mask(rewards, self.masking).flatten())
        if not self.end:
            distilled = distilled * self._before_the_end(tokens, labels)
        return objectives.kdrl(
            ours,
            theirs,
            per_token,
            beta=objectives.annealed_coefficient(
                int(self.counter), start=self.beta, decrement=self.decrement, floor=self.floor
            ),
            distilled=distilled,
            estimator=self.estimator,
            limit=self.limit,
            clip=self.clip,
        )

    def after_step(self, step: Step) -> None:
        """Count, and forget the rewards."""
        super().after_step(step)
        self._rewards.clear()

    def _expected(self, batch: Batch) -> list[str]:
        """Return the right answer to each prompt, read from the responses of the data."""
        found = []
        for sequence in prompted(batch, self.name):
            text = self._layout.decode(sequence.response)
            answer = READERS[self.verifier](text)
            if answer is None:
                raise TrainingError(
                    f"Method 'kdrl': the response of sample {int(batch.index[sequence.document])} has no answer in the "
                    f"form '{self.verifier}': {text[:80]!r}. Choose the verifier that fits the data."
                )
            found.append(answer)
        return found

    def _before_the_end(self, tokens: Tokens, labels: torch.Tensor) -> torch.Tensor:
        """Return 0.0 at tokens that end a response, 1.0 elsewhere [N]."""
        ends = torch.tensor(self._ends(tokens.sequences), device=labels.device, dtype=labels.dtype)
        return 1.0 - torch.isin(labels, ends).float()

    def _ends(self, sequences: Sequence[TokenSequence]) -> list[int]:
        return list(self.sampler(self._student[0]).ends)
