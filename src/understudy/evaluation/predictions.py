"""What a model answered for every sample of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from understudy.data.batch import UNLABELLED, Batch
from understudy.errors import DataError, ModelError


@dataclass(frozen=True, slots=True)
class Predictions:
    """The logits of one model over one split, on the CPU, in the order in which the batches came.

    Attributes:
        logits: float32 [N, C], raw scores before the softmax.
        labels: int64 [N], class indices, -1 where a sample has none.
        ids: int64 [N], stable sample ids.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor

    def __post_init__(self) -> None:
        """Check that the columns agree and that every label has a logit."""
        if self.logits.ndim != 2:
            raise ModelError(
                f"Predictions need logits of shape [N, C]; these have {list(self.logits.shape)}."
            )
        lengths = (len(self.logits), len(self.labels), len(self.ids))
        if len(set(lengths)) != 1:
            raise DataError(
                "Predictions hold {} logits, {} labels and {} ids; they must be as many.".format(
                    *lengths
                )
            )
        if len(self.labels) and int(self.labels.max()) >= self.classes:
            wrong = int(self.labels.argmax())
            raise DataError(
                f"Sample {int(self.ids[wrong])} has label {int(self.labels[wrong])}, but the model "
                f"gives {self.classes} classes, so labels run from 0 to {self.classes - 1}."
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.ids)

    @property
    def classes(self) -> int:
        """Return the number of classes C."""
        return self.logits.shape[1]

    def labelled(self) -> Predictions:
        """Return the part that has labels; an error when there is none."""
        keep = self.labels != UNLABELLED
        if not bool(keep.any()):
            raise DataError(
                f"None of the {len(self)} samples has a label, so there is nothing to measure the "
                "predictions against. Evaluate on a split with labels."
            )
        return Predictions(self.logits[keep], self.labels[keep], self.ids[keep])


def predict(forward: Callable[[Batch], torch.Tensor], batches: Iterable[Batch]) -> Predictions:
    """Run `forward` over `batches` and collect what it gives.

    Results stay on the device until the last batch, so the host never waits in between. Putting the
    model into evaluation mode is the caller's part.

    Args:
        forward: a batch -> logits [B, C] of any floating type, on any device.
        batches: hard labels or none; each sample once.

    Returns:
        The predictions, logits in float32.

    Raises:
        DataError: when there are no batches, or one has mixed (soft) labels.
        ModelError: when logits don't have shape [B, C], or hold NaN or +infinity. -infinity is
        legal: it
            rules a class out.
    """
    logits: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    ids: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in batches:
            scores = forward(batch)
            if scores.ndim != 2 or len(scores) != len(batch):
                raise ModelError(
                    f"For a batch of {len(batch)} samples the model gave logits of shape "
                    f"{list(scores.shape)}; [{len(batch)}, classes] was expected."
                )
            logits.append(scores.detach().float())
            labels.append(_hard_labels(batch))
            ids.append(batch.index)
    if not logits:
        raise DataError("There are no batches to predict: the split is empty.")
    found = Predictions(
        torch.cat(logits).cpu(),
        torch.cat([part.to(logits[0].device) for part in labels]).cpu().long(),
        torch.cat([part.to(logits[0].device) for part in ids]).cpu().long(),
    )
    _refuse_non_finite(found)
    return found


def _hard_labels(batch: Batch) -> torch.Tensor:
    if batch.labels is None:
        return torch.full_like(batch.index, UNLABELLED)
    if batch.labels.is_floating_point():
        raise DataError(
            "Predictions are measured against class indices, but a batch has soft labels (as MixUp "
            "and CutMix make them). Evaluate without mixing."
        )
    return batch.labels


def _refuse_non_finite(predictions: Predictions) -> None:
    bad = (predictions.logits.isnan() | predictions.logits.isposinf()).any(dim=1)
    if bool(bad.any()):
        first = int(predictions.ids[bad][0])
        raise ModelError(
            f"The model gave NaN or infinite logits for {int(bad.sum())} of {len(predictions)} "
            f"samples (the first is sample {first}): it has diverged, or its precision is too low "
            "for its values."
        )
