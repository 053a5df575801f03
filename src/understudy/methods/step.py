"""What a method sees of a training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from understudy.data.batch import Batch
from understudy.errors import UnderstudyError, suggestion
from understudy.models.outputs import Outputs
from understudy.models.tokens import Tokens
from understudy.tasks import Task
from understudy.teachers.listening import Combined

if TYPE_CHECKING:
    from understudy.methods.method import Method


class Step:
    """What `Method.loss` sees. Everything on it is computed once, when first asked for.

    Attributes:
        batch: the batch.
        task: what a batch means.
        progress: how much of the stage is done, in [0, 1].
        teachers: name -> that teacher's outputs for the batch.
        method: the method that this step was made for (see `heard_by`); None for the step of a stage.
        noted: what the loss that is being computed noted (see `note`).
    """

    def __init__(
        self,
        batch: Batch,
        *,
        task: Task,
        student: Callable[[Batch], Outputs],
        teachers: Mapping[str, Callable[[Batch], Outputs]],
        progress: float,
    ) -> None:
        """Keep what is needed to compute outputs when they are asked for."""
        self.batch = batch
        self.task = task
        self.progress = progress
        self.teachers: Mapping[str, Outputs] = _Lazy(batch, teachers)
        self.method: Method | None = None
        self.noted: dict[str, torch.Tensor] = {}
        self._student = _Once(student)
        self._teacher: Outputs | None = None
        self._several = len(teachers) > 1
        self._heard: dict[Method, Step] = {}

    def heard_by(self, method: Method) -> Step:
        """Return the step as a method sees it: `teacher` is what the method listens to. The same one every time.

        With one teacher, whose features are read as they are, that is the step itself.
        """
        if method.hears is None and method.standardised is None and not self._several:
            return self
        if method not in self._heard:
            view = copy.copy(self)
            # The view must not lead back to this step: a circle would keep activations until it is looked for.
            view.method, view._heard, view._teacher = method, {}, None
            self._heard[method] = view
        return self._heard[method]

    @property
    def student(self) -> Outputs:
        """The student's outputs for the batch."""
        return self._student(self.batch)

    @property
    def teacher(self) -> Outputs:
        """The outputs of the teacher that the method listens to: of the only one where nothing else is said."""
        if self._teacher is None:
            found = self._listened()
            if self.method is not None and self.method.standardised is not None:
                found = self.method.standardised(found)
            self._teacher = found
        return self._teacher

    def _listened(self) -> Outputs:
        hears = None if self.method is None else self.method.hears
        if isinstance(hears, str):
            return self.teachers[hears]
        if hears is None and len(self.teachers) == 1:
            return self.teachers[next(iter(self.teachers))]
        if not self.teachers:
            raise UnderstudyError("A method asks for the teacher, but this stage has none.")
        if self.method is None:
            raise UnderstudyError(
                f"This stage has the teachers {', '.join(self.teachers)}, and this step belongs to no method that says "
                "to which it listens. Use `step.teachers[name]`, or `step.heard_by(method).teacher`."
            )
        return Combined(
            hears,
            self.teachers,
            self.batch,
            temperature=self.method.averaging_temperature,
            method=self.method.name,
        )

    def note(self, name: str, value: torch.Tensor) -> None:
        """Log a number beside the loss that is being computed, such as a policy's rewards. Nothing is learnt from it.

        Args:
            name: what the log calls it, behind the method's name.
            value: a single number, a mean over what `Method.valid` counts.
        """
        self.noted[name] = value.detach()

    @property
    def labels(self) -> torch.Tensor | None:
        """What the rows of the logits should be: the batch's labels (see `Batch.labels`), or tokens; or None."""
        return self.task.labels(self.batch)

    def labels_for(self, method: str) -> torch.Tensor:
        """Return `labels` for a method that needs them.

        Raises:
            UnderstudyError: nothing in the data is labelled.
        """
        labels = self.labels
        if labels is None:
            raise UnderstudyError(f"Method '{method}' needs labels, and this batch has none.")
        return labels

    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the student, and of the teacher that the method listens to: [B, C], or a row a token."""
        pair = []
        for role, outputs in (("student", self.student), ("teacher", self.teacher)):
            if outputs.logits is None:
                raise UnderstudyError(f"A method asks for the {role}'s logits, and it gives none.")
            pair.append(outputs.logits)
        return pair[0], pair[1]

    def features(self, student_tap: str, teacher_tap: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the feature of the student, and of the teacher that the method listens to, at two taps."""
        return self.student.features[student_tap], self.teacher.features[teacher_tap]

    def weight_of(self, feature: torch.Tensor, role: str = "student") -> torch.Tensor | None:
        """Return the weights of a feature's elements in a mean over samples, None for all ones.

        Args:
            feature: [B, ...].
            role: whose feature it is: "student", a teacher's name, or "teacher" for the one that the method listens to.

        Returns:
            [B, T] for a token sequence [B, T, D] whose padding the model's attention mask marks: each sample's weight,
            spread evenly over its tokens that are no padding. The batch's weight [B], or None, for anything else.
        """
        mask = self.token_mask(feature, role)
        if mask is None:
            return self.batch.weight
        share = mask / mask.sum(dim=1, keepdim=True).clamp_min(1)
        return share if self.batch.weight is None else share * self.batch.weight.unsqueeze(1)

    def token_mask(self, feature: torch.Tensor, role: str = "student") -> torch.Tensor | None:
        """Return float [B, T], 1 for tokens that count, when `feature` [B, T, D] is a sequence of which some do not.

        Padding does not count, nor what the batch's `mask` [B, T] leaves out, such as the tokens of a prompt.
        """
        if feature.dim() != 3:
            return None
        inputs = self.batch.inputs[self._role(role)]
        if isinstance(inputs, Tokens):
            return inputs.mask.float() if inputs.mask.shape == feature.shape[:2] else None
        given = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        masks = [
            mask.float()
            for mask in (given, self.batch.mask)
            if isinstance(mask, torch.Tensor) and mask.shape == feature.shape[:2]
        ]
        if not masks:
            return None
        return masks[0] if len(masks) == 1 else masks[0] * masks[1]

    def _role(self, role: str) -> str:
        """Return under which name the batch holds a role's inputs."""
        if role != "teacher":
            return role
        hears = None if self.method is None else self.method.hears
        if hears is None and len(self.teachers) == 1:
            return next(iter(self.teachers))
        return hears if isinstance(hears, str) else role

    def pooled(self, feature: torch.Tensor, role: str = "student") -> torch.Tensor:
        """Return [B, D]: a vector as it is, the mean of a map over its places, of a sequence over its tokens."""
        if feature.dim() == 2:
            return feature
        if feature.dim() == 4:
            return feature.mean(dim=(2, 3))
        mask = self.token_mask(feature, role)
        if mask is None:
            return feature.mean(dim=1)
        return (feature * mask.unsqueeze(2)).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)

    @staticmethod
    def gather(rows: torch.Tensor) -> torch.Tensor:
        """Return the rows [B, ...] of all processes, one after the other, without a gradient.

        Every process has to call it at the same point.
        """
        rows = rows.detach()
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return rows
        counts = [
            torch.zeros(1, dtype=torch.int64, device=rows.device)
            for _ in range(dist.get_world_size())
        ]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        lengths = [int(count) for count in counts]
        padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.zeros_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


class _Lazy(Mapping[str, Outputs]):
    """Teacher outputs, computed when first looked up."""

    def __init__(self, batch: Batch, sources: Mapping[str, Callable[[Batch], Outputs]]) -> None:
        self._batch, self._sources = batch, sources
        self._known: dict[str, Outputs] = {}

    def __getitem__(self, name: str) -> Outputs:
        if name not in self._known:
            if name not in self._sources:
                raise UnderstudyError(
                    f"There is no teacher called '{name}'. {suggestion(name, self._sources)}"
                )
            self._known[name] = self._sources[name](self._batch)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


class _Once:
    """A model's outputs for a batch, computed when first asked for and shared by the views of a step."""

    def __init__(self, compute: Callable[[Batch], Outputs]) -> None:
        self._compute = compute
        self._known: Outputs | None = None

    def __call__(self, batch: Batch) -> Outputs:
        if self._known is None:
            self._known = self._compute(batch)
        return self._known
