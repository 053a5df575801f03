"""Language models: every predicted token is a row of logits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from understudy import objectives
from understudy.data.batch import Batch
from understudy.errors import TrainingError
from understudy.models.language_head import LanguageHead, head_of
from understudy.models.outputs import Outputs, TokenOutputs, call, logits_of
from understudy.models.taps import Stop, Tap, Tapped, unwrap
from understudy.models.tokens import Tokens
from understudy.tasks.task import Measure, Task


class LanguageModelling(Task):
    """What a batch means when every sample is a document, and tokens of it are predicted.

    Logits and labels have a row for every predicted token of the batch, document by document, so that methods on
    logits need to know nothing of sequences. They are made from the last hidden states when somebody asks for them: a
    model's pass ends before its head. Features have the shape [documents, tokens, width], whatever rows the model has.
    """

    measure = Measure("nll", "lower")
    labels_itself = True
    latency_sizes = (1, 8)

    def __init__(self) -> None:
        """Know no model yet."""
        self._heads: weakref.WeakKeyDictionary[nn.Module, LanguageHead | None] = (
            weakref.WeakKeyDictionary()
        )

    def tapped(
        self,
        module: nn.Module,
        taps: Iterable[str] = (),
        copied: Iterable[str] = (),
        stop: Stop | None = None,
    ) -> Tapped:
        """Return a model that ends before its head, with what goes into that among its taps."""
        module = unwrap(module)
        head, names = self._head(module), list(taps)
        if stop is not None or head is None:
            return Tapped(module, names, copied, stop)
        places = [(tap.path, tap.side) for tap in map(Tap.parse, names)]
        end = None if (head.path, "output") in places else Stop(head.path, "input")
        return Tapped(module, [*names, _entrance(head)], copied, end)

    def forward_tapped(
        self, tapped: Callable[..., tuple[Any, dict[str, torch.Tensor]]], batch: Batch, role: str
    ) -> Outputs:
        """Run what `tapped` gave (or a compiled one) on the batch."""
        tokens = batch.inputs[role]
        if not isinstance(tokens, Tokens):
            raise TrainingError(
                f"A language model needs tokens, and the batch holds {type(tokens).__name__} for the {role}. Its "
                "preprocessing has to be that of a language model."
            )
        raw, features = call(tapped, tokens)
        module = tapped.module  # type: ignore[attr-defined]
        head, hidden, logits = self._head(module), None, None
        if head is not None and (entrance := _entrance(head)) in features:
            hidden = tokens.predicting(features.pop(entrance))
        elif raw is not None:
            logits = tokens.predicting(logits_of(raw))[:, : tokens.layout.vocabulary]
        return TokenOutputs(
            hidden=hidden,
            head=None if head is None or hidden is None else head.head(tokens.layout.vocabulary),
            logits=logits,
            features={name: tokens.by_document(value) for name, value in features.items()},
        )

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the predicted tokens [N] of the student's rows."""
        return tokens_of(batch).labels

    def supervised_loss(
        self, outputs: Outputs, batch: Batch, *, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Return the cross-entropy with the tokens, mean over those that are predicted, in nats."""
        labels = self.labels(batch)
        if outputs.hidden is None or outputs.head is None or label_smoothing:
            if outputs.logits is None:
                raise TrainingError("The supervised loss needs the student's logits.")
            return objectives.cross_entropy(
                outputs.logits, labels, label_smoothing=label_smoothing, all_labelled=True
            )
        return objectives.vocabulary_cross_entropy(outputs.hidden, outputs.head, labels)

    def _head(self, module: nn.Module) -> LanguageHead | None:
        if module not in self._heads:
            self._heads[module] = head_of(module)
        return self._heads[module]


class CausalLM(LanguageModelling):
    """Every token is predicted from those before it."""

    name = "causal_lm"


class MaskedLM(LanguageModelling):
    """Tokens that were masked are predicted from all others."""

    name = "masked_lm"


class Seq2Seq(LanguageModelling):
    """The tokens of an answer are predicted from a text and those before them."""

    name = "seq2seq"

    def tapped(
        self,
        module: nn.Module,
        taps: Iterable[str] = (),
        copied: Iterable[str] = (),
        stop: Stop | None = None,
    ) -> Tapped:
        """Return a model that ends before its head.

        Raises:
            TrainingError: a tap lies in the encoder, whose rows are those of the prompts.
        """
        names, encoder = list(taps), _encoder_of(module)
        inside = [
            name
            for name in names
            if encoder and f"{Tap.parse(name).path}.".startswith(f"{encoder}.")
        ]
        if inside:
            raise TrainingError(
                f"The tap '{inside[0]}' lies in the encoder ('{encoder}'), which reads prompts; features are compared "
                "at the tokens of responses. Name a tap of the decoder."
            )
        return super().tapped(module, names, copied, stop)


def tokens_of(batch: Batch, role: str = "student") -> Tokens:
    """Return the tokens of a role.

    Raises:
        TrainingError: the batch holds something else.
    """
    found = batch.inputs.get(role)
    if not isinstance(found, Tokens):
        raise TrainingError(f"The batch holds no tokens for the {role}.")
    return found


def _encoder_of(module: nn.Module) -> str:
    """Return the module path of the encoder, "" where the model does not say."""
    module = unwrap(module)
    get = getattr(module, "get_encoder", None)
    found = get() if callable(get) else None
    return next((path for path, part in module.named_modules() if part is found and path), "")


def _entrance(head: LanguageHead) -> str:
    # A method that taps the same place writes it without a number.
    return f"{head.path}@input#0"
