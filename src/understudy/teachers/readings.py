"""What is read of a teacher's pass: a tap, and how its tensor becomes rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch.nn import functional

from understudy.data.batch import Batch
from understudy.errors import ModelError, UnderstudyError, unknown_name
from understudy.models.outputs import Outputs
from understudy.models.tokens import Tokens

LOGITS = "<logits>"
"""The tap that means what the whole model gives."""

Form = Literal["rows", "mean", "first"]
FORMS = ("rows", "mean", "first")


@dataclass(frozen=True)
class Reading:
    """One place in a teacher, and what is taken there.

    Attributes:
        tap: the tap, or `LOGITS`.
        form: "rows" keeps every place of a map and every token of a sequence, "mean" takes their mean and "first" the
            first token (often called [CLS]). Vectors are taken as they are.
        pool: side and stride of the windows that a map is averaged over first; 1 for none.
        size: height and width that a map is averaged to first, over windows that differ by 1 at most; None for none.
        teacher: which teacher, when a stage has several.
    """

    tap: str
    form: Form = "rows"
    pool: int = 1
    teacher: str | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.form not in FORMS:
            raise unknown_name("form of a reading", self.form, FORMS)
        if self.pool < 1:
            raise UnderstudyError(f"pool is {self.pool}; it must be at least 1.")
        if self.size is not None and (min(self.size) < 1 or self.pool > 1):
            raise UnderstudyError(
                f"size is {self.size} and pool {self.pool}; a size is at least 1 x 1 and goes without pool."
            )

    @classmethod
    def of(cls, given: Reading | str) -> Reading:
        """Return a reading; a tap alone is read in the default form."""
        return cls(given) if isinstance(given, str) else given

    def config(self) -> dict[str, Any]:
        """Return what decides the values, as JSON; which teacher is said by its weights."""
        values = asdict(self)
        del values["teacher"]
        if self.size is None:
            # What was kept before there were sizes has the same key.
            del values["size"]
        return values


@dataclass
class Seen:
    """One batch of a pass, as statistics see it.

    Attributes:
        batch: the batch; its inputs are the teachers'.
        outputs: teacher name -> outputs.
        classes: number of classes.
    """

    batch: Batch
    outputs: Mapping[str, Outputs]
    classes: int

    def values(self, reading: Reading) -> torch.Tensor:
        """Return what a reading gives for each sample: float32 [B, D], [B, C, H, W] or [B, T, D].

        Raises:
            ModelError: the tap's shape does not suit the reading, or a value is not finite.
        """
        role = self.role(reading)
        outputs = self.outputs[role]
        found = outputs.logits if reading.tap == LOGITS else outputs.features[reading.tap]
        if found is None:
            raise ModelError(f"The teacher '{role}' gives no logits.")
        values = self._formed(reading, found.detach().float(), role)
        finite = values.flatten(1).isfinite().all(dim=1)
        if not bool(finite.all()):
            first = int(self.batch.index[~finite][0])
            raise ModelError(
                f"The teacher's tap '{reading.tap}' is not finite for sample {first}: nothing can be fitted to it."
            )
        return values

    def rows(self, reading: Reading) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a reading as rows.

        Returns:
            float32 [R, D]: one row for each sample, place of a map, or token that the model's attention mask does not
            leave out; int64 [R]: the sample of the batch that each belongs to.
        """
        values = self.values(reading)
        own = torch.arange(len(values), device=values.device)
        if values.dim() == 2:
            return values, own
        if values.dim() == 4:
            values = values.flatten(2).transpose(1, 2)
        places = values.shape[1]
        rows, owners = values.reshape(-1, values.shape[2]), own.repeat_interleave(places)
        mask = self._mask(self.role(reading), places) if self._is_sequence(reading) else None
        if mask is not None:
            kept = mask.flatten()
            rows, owners = rows[kept], owners[kept]
        return rows, owners

    def role(self, reading: Reading) -> str:
        """Return the name of the teacher that a reading is of."""
        return only(self.outputs, reading.teacher)

    def _is_sequence(self, reading: Reading) -> bool:
        outputs = self.outputs[self.role(reading)]
        return reading.tap != LOGITS and outputs.features[reading.tap].dim() == 3

    def _formed(self, reading: Reading, values: torch.Tensor, role: str) -> torch.Tensor:
        place = f"The teacher's tap '{reading.tap}' has shape {tuple(values.shape)}"
        if values.dim() not in (2, 3, 4) or len(values) != len(self.batch):
            raise ModelError(
                f"{place}; [B, D], [B, C, H, W] or [B, T, D] with B = {len(self.batch)} can be read."
            )
        if reading.pool > 1:
            if values.dim() != 4 or min(values.shape[2:]) < reading.pool:
                raise ModelError(
                    f"{place}; it cannot be averaged over windows of {reading.pool} x {reading.pool}."
                )
            values = functional.avg_pool2d(values, reading.pool, reading.pool)
        if reading.size is not None:
            height, width = reading.size
            if values.dim() != 4 or values.shape[2] < height or values.shape[3] < width:
                raise ModelError(f"{place}; it cannot be averaged to {height} x {width}.")
            values = functional.adaptive_avg_pool2d(values, reading.size)
        if reading.form == "first":
            if values.dim() != 3:
                raise ModelError(f"{place}, which has no first token.")
            return values[:, 0]
        if reading.form == "mean" and values.dim() == 4:
            return values.mean(dim=(2, 3))
        if reading.form == "mean" and values.dim() == 3:
            mask = self._mask(role, values.shape[1])
            if mask is None:
                return values.mean(dim=1)
            kept = mask.unsqueeze(2).to(values.dtype)
            return (values * kept).sum(dim=1) / kept.sum(dim=1).clamp_min(1.0)
        return values

    def _mask(self, role: str, tokens: int) -> torch.Tensor | None:
        """Return bool [B, T]: the tokens that count, which padding does not; None when the model does not tell."""
        inputs = self.batch.inputs[role]
        if isinstance(inputs, Tokens):
            return inputs.mask if inputs.mask.shape == (len(self.batch), tokens) else None
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        if not isinstance(mask, torch.Tensor) or mask.shape != (len(self.batch), tokens):
            return None
        return mask.bool()


def only(named: Mapping[str, Any], wanted: str | None) -> str:
    """Return the name of the wanted teacher; None means the only one."""
    if wanted is None:
        if len(named) != 1:
            raise UnderstudyError(
                f"A method fits to the teacher, but this stage has {len(named)} teachers"
                + (f" ({', '.join(named)}); say which." if named else ".")
            )
        return next(iter(named))
    if wanted not in named:
        raise unknown_name("teacher", wanted, named)
    return wanted
