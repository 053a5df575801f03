"""Preference optimisation with the teacher as the judge."""

from __future__ import annotations

import copy
from typing import Literal

import torch

from understudy import objectives
from understudy.data.batch import Batch
from understudy.methods._on_policy import OnPolicy, Responses, prompted, relaid, token_log_probs
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.models.outputs import Outputs
from understudy.models.taps import unwrap
from understudy.models.tokens import TokenSequence
from understudy.objectives.preference.forms import check_form
from understudy.sampling import Sampling


class DPO(OnPolicy, name="dpo"):
    """Make what the teacher prefers likelier than what the student writes.

    Paper: Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS
    2023, equation 7; with a teacher's responses as the preferred ones Tunstall et al., "Zephyr: Direct Distillation of
    LM Alignment", 2023.
    Equation: -log sigma(beta * h), h = (log q(y_w) - log r(y_w)) - (log q(y_l) - log r(y_l)), mean over the pairs; r is
    the reference. "ipo": (h - 1 / (2 beta))^2 with means over tokens; "hinge": max(0, 1 - beta h).
    Labels: not used. Samples are pairs of a prompt and a response.
    Deviation: the rejected response is written by the student in the step, where the papers take pairs that were made
    before.
    Cost: responses are written, token by token; both models read two responses to every prompt. With the reference
    "student", a copy of the student, which checkpoints hold.
    Fails when: the preferred responses are far from what the student writes: it then learns to avoid its own and not to
    write the others; train it on the data first. The teacher has to be a live model with the same tokenizer.

    Args:
        preferred: "data": the data's response, such as one that `understudy.sampling.write` let the teacher write,
            against one of the student; "teacher": one that the teacher writes in the step, against one of the student;
            "ranked": the better of two of the student, by the teacher's log-probability per token.
        reference: "student", as the stage finds it, or "teacher".
        form: "sigmoid", "ipo" or "hinge".
        beta: how much a nat counts.
        label_smoothing: probability that a preference is the wrong way round, of "sigmoid".
        max_new_tokens: most tokens of a response; what does not fit into a row of either model is cut as well.
        sampling_temperature: at which responses are drawn.
        batch_size: responses that are written at the same time.
    """

    def __init__(
        self,
        preferred: Literal["data", "teacher", "ranked"] = "data",
        reference: Literal["student", "teacher"] = "student",
        form: Literal["sigmoid", "ipo", "hinge"] = "sigmoid",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        max_new_tokens: int = 128,
        sampling_temperature: float = 1.0,
        batch_size: int = 32,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        check_form(form, beta, label_smoothing)
        for name, value, valid in (
            ("preferred", preferred, ("data", "teacher", "ranked")),
            ("reference", reference, ("student", "teacher")),
        ):
            if value not in valid:
                raise ValueError(f"{name} is '{value}'; it must be one of {', '.join(valid)}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.preferred: Literal["data", "teacher", "ranked"] = preferred
        self.reference: Literal["student", "teacher"] = reference
        self.form: Literal["sigmoid", "ipo", "hinge"] = form
        self.beta, self.label_smoothing = beta, label_smoothing
        self.max_new_tokens, self.sampling_temperature = max_new_tokens, sampling_temperature
        self.batch_size = batch_size
        self.needs_teacher = reference == "teacher" or preferred == "ranked"
        self._settings = Sampling(max_new_tokens, sampling_temperature)

    def wire(self, wiring: Wiring) -> None:
        """Take hold of the models, and copy the student where it is the reference."""
        super().wire(wiring)
        self._teacher = [wiring.teacher.module] if self.preferred == "teacher" else []
        if self.reference == "student":
            # A part of the method, so that a checkpoint brings back the student as the stage found it.
            self.before = copy.deepcopy(unwrap(wiring.student.module)).requires_grad_(False)

    def write(self, batch: Batch, number: int) -> Batch:
        """Put two responses behind every prompt: the preferred one first, unless the teacher has yet to rank them."""
        ranked = self.preferred == "ranked"
        first = prompted(batch, self.name)
        student = self.sampler(self._student[0], batch_size=self.batch_size)
        settings = Sampling(
            self.max_new_tokens, self.sampling_temperature, samples=2 if ranked else 1
        )
        written = self.responses(student, batch, number, settings)
        if ranked:
            return relaid(batch, written, self.name)
        if self._teacher:
            teacher = self.sampler(self._teacher[0], batch_size=self.batch_size)
            first = tuple(self.responses(teacher, batch, number, self._settings))
        pairs: list[TokenSequence] = []
        for preferred, other in zip(first, written, strict=True):
            pairs += [preferred, other]
        return relaid(batch, pairs, self.name)

    def valid(self, batch: Batch) -> torch.Tensor:
        """Return the number of pairs."""
        count = len(prompted(batch, self.name))
        return torch.tensor(float(count), device=batch.index.device)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the pairs."""
        ours = self._pairs(step, step.student, mean=self.form == "ipo")
        if self.preferred == "ranked":
            judged = self._pairs(step, step.teacher, mean=True)
            order = judged.argsort(dim=1, descending=True, stable=True)
        else:
            order = torch.arange(2, device=ours.device).expand(len(ours), 2)
        reference = step.teacher if self.reference == "teacher" else self._reference(step)
        theirs = self._pairs(step, reference, mean=self.form == "ipo")
        preferred, rejected = ours.gather(1, order).unbind(dim=1)
        before, before_rejected = theirs.gather(1, order).unbind(dim=1)
        return objectives.dpo(
            preferred,
            before,
            rejected,
            before_rejected,
            form=self.form,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
        )

    @torch.no_grad()
    def _reference(self, step: Step) -> Outputs:
        self.before.eval()
        return step.task.forward(self.before, step.batch, "student")

    def _pairs(self, step: Step, outputs: Outputs, *, mean: bool) -> torch.Tensor:
        """Return the log-probabilities of the responses to every prompt [prompts, 2]."""
        responses = Responses.of(step.batch.inputs["student"])
        rows = responses.padded(token_log_probs(outputs, step.labels_for(self.name)))
        mask = responses.mask.float()
        return objectives.sequence_log_probabilities(rows, mask, mean=mean).view(-1, 2)
