"""Generalised knowledge distillation: language models compared on what the student writes."""

from __future__ import annotations

import torch

from understudy.data.batch import Batch
from understudy.methods._on_policy import OnPolicy, relaid
from understudy.methods.step import Step
from understudy.methods.token_kd import divergence_of_tokens
from understudy.methods.wiring import Wiring
from understudy.objectives.vocabulary.closed_form import Divergence, Name
from understudy.sampling import Sampling
from understudy.seeding import stream


class GKD(OnPolicy, name="gkd"):
    """Match the teacher's next-token probabilities on responses that the student writes itself.

    Paper: Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", ICLR
    2024, algorithm 1.
    Equation: T^2 * D(p, q) of each token, mean over the tokens of a batch's responses, in nats; with probability
    `share` the student writes them, else they are those of the data. No gradient goes through the writing.
    Labels: not used. Samples are pairs of a prompt and a response.
    Use: every method of the stage sees the responses that are written; `supervised` beside it would teach the student
    its own texts in these steps. The coin of a step, and what is drawn for a sample in it, depend on the method's seed,
    the step and the sample's id alone.
    Deviation: the authors take the temperature 1 in the loss, as the default here does.
    Cost: in a share of the steps the student writes, token by token, which takes most of a step's time.
    Fails when: the student writes nothing sensible yet; train it on the data first (`token_kd`, `supervised`), or begin
    with a small share. The teacher has to be a live model with the same tokenizer.

    Args:
        share: share of the steps in which the student writes, lambda in the paper; 1 is on-policy throughout.
        divergence: see `token_kd`.
        beta: of "jensen_shannon": the teacher's share of the mixture. Towards 0 it acts as "forward_kl", towards 1 as
            "reverse_kl".
        skew: of the skewed ones: the share of the other distribution.
        temperature: T of the loss.
        max_new_tokens: most tokens of a response; what does not fit into a row of either model is cut as well.
        sampling_temperature: at which responses are drawn.
        top_p: the most probable tokens with this probability together are drawn from.
        seq_kd: whether the teacher writes the responses in the other steps, in place of those of the data.
        batch_size: responses that are written at the same time.
    """

    def __init__(
        self,
        share: float = 0.5,
        divergence: Name = "jensen_shannon",
        beta: float = 0.5,
        skew: float = 0.1,
        temperature: float = 1.0,
        max_new_tokens: int = 128,
        sampling_temperature: float = 0.9,
        top_p: float = 1.0,
        seq_kd: bool = False,
        batch_size: int = 32,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        Divergence(divergence, beta, False, skew)
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it must lie between 0 and 1")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.share, self.temperature = share, temperature
        self.divergence: Name = divergence
        self.beta, self.skew = beta, skew
        self.max_new_tokens, self.sampling_temperature = max_new_tokens, sampling_temperature
        self.top_p, self.seq_kd, self.batch_size = top_p, seq_kd, batch_size
        self._settings = Sampling(max_new_tokens, sampling_temperature, top_p)

    def wire(self, wiring: Wiring) -> None:
        """Take hold of the student, and of the teacher where it writes."""
        super().wire(wiring)
        # Also where it writes nothing: hidden states and a head are those of one teacher.
        teacher = wiring.teacher
        self._teacher = [teacher.module] if self.seq_kd else []

    def student_writes(self, number: int) -> bool:
        """Tell whether the student writes in step `number`."""
        coin = torch.rand((), dtype=torch.float64, generator=stream(self._seed, "coin", number))
        return float(coin) < self.share

    def write(self, batch: Batch, number: int) -> Batch | None:
        """Let the student write, or the teacher, or nobody."""
        writers = self._student if self.student_writes(number) else self._teacher
        if not writers:
            return None
        sampler = self.sampler(writers[0], batch_size=self.batch_size)
        return relaid(batch, self.responses(sampler, batch, number, self._settings), self.name)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the predicted tokens."""
        return divergence_of_tokens(
            step,
            self.name,
            Divergence(self.divergence, self.beta, False, self.skew),
            temperature=self.temperature,
        )
