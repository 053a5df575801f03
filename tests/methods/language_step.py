"""A method wired to two small language models, and a step on arithmetic; for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.methods import Method, Step
from understudy.methods.wiring import Side, Wiring
from understudy.models import Model, build
from understudy.models.tokens import TokenSequence
from understudy.tasks import CausalLM

CPU = torch.device("cpu")
PAIRS = [("12+35=", "47"), ("1+1=", "2"), ("90+9=", "99"), ("5+2=", "7"), ("30+12=", "42")]
IDS = [3, 14, 15, 92, 65]


def language_model(seed: int, width: int, positions: int = 32, kind: str = "llama") -> Model:
    """Return a fresh model that reads bytes."""
    torch.manual_seed(seed)
    config = {
        "hidden_size": width,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": positions,
        "initializer_range": 0.4,
    }
    return build(
        f"hf:{kind}",
        classes=1,
        kind="text",
        task="causal_lm",
        config=config,
        tokenizer={"kind": "bytes"},
    )


@dataclass
class Wired:
    """A method that is wired, and what it is wired to."""

    method: Any
    student: Model
    teacher: Model
    wiring: Wiring

    @cached_property
    def task(self) -> CausalLM:
        return CausalLM()

    def batch(
        self, chosen: list[int] | None = None, pairs: list[tuple[str, str]] | None = None
    ) -> Batch:
        """Return a batch of the pairs at some places."""
        chosen = list(range(len(PAIRS))) if chosen is None else chosen
        pairs = PAIRS if pairs is None else pairs
        raw = [pairs[place] for place in chosen]
        return Batch(
            {
                "student": self.student.preprocess(raw, CPU),
                "teacher": self.teacher.preprocess(raw, CPU),
            },
            None,
            torch.tensor([IDS[place] for place in chosen]),
            torch.zeros(len(chosen), dtype=torch.int64),
        )

    def step(self, batch: Batch, progress: float = 0.5) -> Step:
        """Return a step on what the method makes of a batch."""

        def teach(given: Batch) -> Any:
            with torch.no_grad():
                return self.task.forward(self.teacher.module.eval(), given, "teacher")

        return Step(
            self.method.inputs(batch),
            task=self.task,
            student=lambda given: self.task.forward(self.student.module, given, "student"),
            teachers={"teacher": teach},
            progress=progress,
        )


def wired(method: Method, *, positions: int = 32, student: Model | None = None) -> Wired:
    """Return a method wired to a student and a teacher."""
    student = student or language_model(0, 16, positions)
    teacher = language_model(1, 24, positions)
    sides = [
        Side(role, model.module, model.preprocess(PAIRS, CPU), training=True, input_height=None)
        for role, model in (("student", student), ("teacher", teacher))
    ]
    wiring = Wiring(sides[0], {"teacher": sides[1]}, classes=1)
    wiring.seed = 7
    method.wire(wiring)
    return Wired(method, student, teacher, wiring)


def response_logits(module: nn.Module, sequence: TokenSequence) -> torch.Tensor:
    """Return the logits that predict the response of a sequence [L, V], by a pass on it alone."""
    logits = module(input_ids=sequence.ids.unsqueeze(0)).logits[0]
    return logits[sequence.start - 1 : -1].float()


def response_log_probs(module: nn.Module, sequence: TokenSequence) -> torch.Tensor:
    """Return the log-probabilities of the tokens of a response [L]."""
    log_probs = response_logits(module, sequence).log_softmax(dim=1)
    return log_probs.gather(1, sequence.response.unsqueeze(1)).squeeze(1)
