"""What methods share that compare models on texts that are written in the step itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from understudy import objectives
from understudy.data.batch import Batch
from understudy.errors import TrainingError, UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Side, Wiring
from understudy.models.language_preprocess import CausalPreprocess
from understudy.models.outputs import Outputs
from understudy.models.tokens import Tokens, TokenSequence
from understudy.sampling import ModelSampler, Sampling
from understudy.sampling.model import ends_of
from understudy.seeding import derive


class OnPolicy(Method):
    """Base of methods whose `inputs` replaces the responses of a batch by new ones.

    A batch is written to once: `valid`, which is asked before where a batch is split, and `inputs` share what was
    written. What is drawn depends on the method's seed, the number of steps it took and the samples' ids; the number is
    a buffer, so that a resumed run writes the same.
    """

    needs_tokens = True
    needs_prompts = True
    """Whether every sample has to be a prompt and a response."""

    counter: torch.Tensor

    def wire(self, wiring: Wiring) -> None:
        """Take hold of the student.

        Raises:
            UnderstudyError: it is no language model that writes, or the data has no prompts.
        """
        self._layout = layout_of(wiring.student, self.name)
        if any(sequence.start < 1 for sequence in wiring.student.inputs.sequences):
            raise UnderstudyError(
                f"Method '{self.name}' writes responses to prompts, and there are samples that are one text. Give "
                "pairs of a prompt and a response."
            )
        # Neither is a part of this method, so that nothing is saved or trained twice.
        self._student, self._seed = [wiring.student.module], wiring.seed
        self._known: list[tuple[Tokens, Batch | None]] = []
        self._counted = True
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def write(self, batch: Batch, number: int) -> Batch | None:
        """Return the batch with other responses in step `number`; None to leave it as it is."""
        raise NotImplementedError(f"{type(self).__name__} does not say what is written.")

    def inputs(self, batch: Batch) -> Batch:
        """Replace the responses."""
        self._counted = False
        return self._written(batch)

    def valid(self, batch: Batch) -> torch.Tensor:
        """Return the number of predicted tokens in what is written."""
        return super().valid(self._written(batch))

    def after_step(self, step: Step) -> None:
        """Count, once for all parts of a batch, and forget what was written."""
        self._known.clear()
        if not self._counted:
            self.counter += 1
            self._counted = True

    def sampler(self, module: nn.Module, **settings: object) -> ModelSampler:
        """Return what writes with a module that reads the student's tokens."""
        tokenizer = self._layout.tokenizer
        return ModelSampler(
            module,
            tokenizer=tokenizer,
            ends=ends_of(module, tokenizer),
            vocabulary=self._layout.vocabulary,
            **settings,  # type: ignore[arg-type]
        )

    def responses(
        self, sampler: ModelSampler, batch: Batch, number: int, settings: Sampling
    ) -> list[TokenSequence]:
        """Return `settings.samples` new sequences for each one of the batch, behind the same prompts, in order.

        What does not fit into the rows of every model is cut.
        """
        sequences = prompted(batch, self.name)
        settings = replace(settings, seed=derive(self._seed, "responses", number))
        ids = batch.index.tolist()
        room = min(_length(tokens, role) for role, tokens in tokens_of(batch, self.name).items())
        # Prompts whose rooms differ are written to apart, so that none depends on how long another one is.
        limits = [min(settings.max_new_tokens, room - each.start) for each in sequences]
        written: dict[int, list[TokenSequence]] = {}
        for limit in sorted(set(limits)):
            chosen = [place for place, own in enumerate(limits) if own == limit]
            if limit < 1:
                raise TrainingError(
                    f"Method '{self.name}': the prompt of sample {ids[sequences[chosen[0]].document]} leaves no room "
                    f"for a response in a row of {room} tokens. Give the models a larger `max_length`."
                )
            samples = sampler.sample(
                [sequences[place].prompt for place in chosen],
                replace(settings, max_new_tokens=limit),
                [ids[sequences[place].document] for place in chosen],
            )
            for sample in samples:
                written.setdefault(chosen[sample.prompt], []).append(
                    answered(sequences[chosen[sample.prompt]], sample.tokens)
                )
        return [sequence for place in range(len(sequences)) for sequence in written[place]]

    def _written(self, batch: Batch) -> Batch:
        tokens = tokens_of(batch, self.name)["student"]
        for given, known in self._known:
            if given is tokens:
                return batch if known is None else known
        if isinstance(tokens, Replaced):
            # What is read from the data's responses, such as a right answer, would be read from a model's.
            raise TrainingError(
                f"Method '{self.name}' writes responses, and another method of the stage has replaced those of the "
                "data already. Give each a stage or an arm of its own."
            )
        written = self.write(batch, int(self.counter))
        self._known.append((tokens, written))
        return batch if written is None else written


@dataclass(frozen=True, eq=False)
class Replaced(Tokens):
    """Tokens in which a method put other responses in place of those of the data."""

    @staticmethod
    def of(tokens: Tokens) -> Replaced:
        """Return the same tokens under this name."""
        return Replaced(**{each.name: getattr(tokens, each.name) for each in fields(Tokens)})


def layout_of(side: Side, method: str) -> CausalPreprocess:
    """Return how a model's sequences are laid into rows.

    Raises:
        UnderstudyError: it is no causal language model.
    """
    layout = side.inputs.layout if isinstance(side.inputs, Tokens) else None
    if not isinstance(layout, CausalPreprocess):
        raise UnderstudyError(
            f"Method '{method}' is for language models that write (`task: causal_lm`), and the {side.called} is none. "
            "Use a method for its task."
        )
    return layout


def tokens_of(batch: Batch, method: str) -> dict[str, Tokens]:
    """Return the tokens of every role.

    Raises:
        TrainingError: a role has something else, such as rows of a store.
    """
    found = {}
    for role, tokens in batch.inputs.items():
        if not isinstance(tokens, Tokens):
            raise TrainingError(
                f"Method '{method}' gives the {role} texts that are written in the step, so it has to be a live model, "
                "not a store of outputs for other texts."
            )
        found[role] = tokens
    return found


def prompted(batch: Batch, method: str) -> tuple[TokenSequence, ...]:
    """Return the student's sequences.

    Raises:
        TrainingError: one has no prompt to which a response could be written.
    """
    sequences = tokens_of(batch, method)["student"].sequences
    for sequence in sequences:
        if sequence.start < 1:
            raise TrainingError(
                f"Method '{method}' writes responses, and sample {int(batch.index[sequence.document])} has no prompt. "
                "Give pairs of a prompt and a response."
            )
    return sequences


def answered(sequence: TokenSequence, response: torch.Tensor) -> TokenSequence:
    """Return the prompt of a sequence with another response."""
    return replace(sequence, ids=torch.cat([sequence.prompt, response]))


def relaid(batch: Batch, sequences: Sequence[TokenSequence], method: str) -> Batch:
    """Return the batch with other sequences for every model."""
    inputs = {
        role: Replaced.of(each.relaid(sequences)) for role, each in tokens_of(batch, method).items()
    }
    return replace(batch, inputs=inputs)


def token_log_probs(outputs: Outputs, labels: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each predicted token [N], in nats, with the gradient that the outputs carry."""
    if outputs.hidden is not None and outputs.head is not None:
        return -objectives.vocabulary_cross_entropy(
            outputs.hidden, outputs.head, labels, reduction="none"
        )
    if outputs.logits is None:
        raise UnderstudyError("Neither hidden states with a head nor logits are there.")
    return objectives.token_log_probabilities(outputs.logits, labels)


@dataclass(frozen=True)
class Responses:
    """The predicted tokens of a batch, response by response.

    Attributes:
        counts: predicted tokens of each of S responses.
        device: where what is computed lies.
    """

    counts: tuple[int, ...]
    device: torch.device

    @staticmethod
    def of(tokens: Tokens) -> Responses:
        """Return those of the rows of a batch."""
        counts = tuple(len(each) - max(1, each.start) for each in tokens.sequences)
        return Responses(counts, tokens.device)

    def padded(self, flat: torch.Tensor) -> torch.Tensor:
        """Return [S, T] of [N]: a row for each response, 0 behind its last token."""
        shape = (len(self.counts), max(self.counts, default=0))
        return flat.new_zeros(shape).masked_scatter(self.mask, flat)

    def flat(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [N] of [S, T]."""
        return rows[self.mask]

    def spread(self, each: torch.Tensor) -> torch.Tensor:
        """Return [N] of [S]: the number of a response at all of its tokens."""
        counts = torch.tensor(self.counts, device=self.device)
        return each.repeat_interleave(counts, output_size=sum(self.counts))

    @property
    def mask(self) -> torch.Tensor:
        """Bool [S, T], which tokens there are."""
        counts = torch.tensor(self.counts, device=self.device).unsqueeze(1)
        return torch.arange(max(self.counts, default=0), device=self.device) < counts


def _length(tokens: Tokens, role: str) -> int:
    """Return how many tokens a row holds."""
    if not isinstance(tokens.layout, CausalPreprocess):
        raise TrainingError(f"The {role} is no causal language model.")
    return tokens.layout.max_length
