"""Projectors: make a student's feature comparable with a teacher's, sized from measured shapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from understudy.errors import ModelError


class Projector(nn.Module):
    """Brings a student feature and a teacher feature to one shape.

    A vector is mapped by a linear layer, a map by a 1x1 convolution after both maps were pooled to
    the smaller of the two sizes,
    a sequence by a linear layer per token after both were pooled to the shorter length. A token
    sequence facing a map is laid out
    as a map (prefix tokens dropped); a map facing a vector is pooled globally.

    Args:
        student_shape: (D,), (T, D) or (C, H, W), without the batch.
        teacher_shape: the same for the teacher.

    Called with (student [B, ...], teacher [B, ...]), returns both in the teacher's width.
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        """Size the learned map from the two shapes."""
        super().__init__()
        self.form = _common_form(student_shape, teacher_shape)
        self.student_shape, self.teacher_shape = tuple(student_shape), tuple(teacher_shape)
        student_width, teacher_width = _width(student_shape), _width(teacher_shape)
        self.map: nn.Module
        if self.form == "map":
            self.map = nn.Conv2d(student_width, teacher_width, kernel_size=1)
        else:
            self.map = nn.Linear(student_width, teacher_width)

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (projected student, pooled teacher), equal in shape."""
        student, teacher = _arrange(student, self.form), _arrange(teacher, self.form)
        if self.form == "map":
            student, teacher = to_smaller(student, teacher)
        elif self.form == "tokens" and student.shape[1] != teacher.shape[1]:
            length = min(student.shape[1], teacher.shape[1])
            student, teacher = _pool_tokens(student, length), _pool_tokens(teacher, length)
        return self.map(student), teacher

    def extra_repr(self) -> str:
        """Return the shapes, as the plan prints them."""
        return f"{self.student_shape} -> {self.teacher_shape} as {self.form}"


class Connector(nn.Module):
    """Brings a student's map before an activation to the teacher's channels: a 1x1 convolution and a batch norm.

    Both maps are pooled to the smaller of the two sizes first. The batch norm keeps no running statistics: a connector
    runs in training only, and there the batch's own count.

    Args:
        student_shape: (C, H, W), without the batch.
        teacher_shape: the same for the teacher.
        always: whether maps of equally many channels are connected too; otherwise they are only pooled.

    Called with (student [B, C, H, W], teacher [B, ...]), returns both in the teacher's width.
    """

    def __init__(
        self,
        student_shape: tuple[int, ...],
        teacher_shape: tuple[int, ...],
        *,
        always: bool = True,
    ) -> None:
        """Make the convolution (He et al. 2015, fan out) and the batch norm."""
        super().__init__()
        self.student_shape, self.teacher_shape = tuple(student_shape), tuple(teacher_shape)
        inputs, outputs = student_shape[0], teacher_shape[0]
        self.map: nn.Module = nn.Identity()
        if always or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            norm = nn.BatchNorm2d(outputs, track_running_stats=False)
            self.map = nn.Sequential(convolution, norm)

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (connected student, pooled teacher), equal in shape."""
        student, teacher = to_smaller(student, teacher)
        return self.map(student), teacher

    def extra_repr(self) -> str:
        """Return the shapes, as the plan prints them."""
        return f"{self.student_shape} -> {self.teacher_shape}"


def align_widths(student: int, teacher: int, *, bias: bool = True) -> nn.Module:
    """Return a 1x1 convolution from the student's number of channels to the teacher's; nothing where they are equal."""
    if student == teacher:
        return nn.Identity()
    return nn.Conv2d(student, teacher, kernel_size=1, bias=bias)


def to_smaller(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two maps [B, C, H, W], averaged down to the smaller height and the smaller width of the two."""
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return _pool_map(student, size), _pool_map(teacher, size)


def _width(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]


def _common_form(student: tuple[int, ...], teacher: tuple[int, ...]) -> str:
    for role, shape in (("student", student), ("teacher", teacher)):
        if len(shape) not in (1, 2, 3):
            raise ModelError(
                f"The {role}'s feature has shape {tuple(shape)} per sample; a projector takes vectors (D,), "
                "token sequences (T, D) or maps (C, H, W)."
            )
    ranks = {len(student), len(teacher)}
    if 1 in ranks:
        return "vector"
    return "map" if 3 in ranks else "tokens"


def _arrange(feature: torch.Tensor, form: str) -> torch.Tensor:
    """Bring a batch of features to a common form."""
    rank = feature.dim() - 1
    if form == "vector" and rank == 3:
        return feature.mean(dim=(2, 3))
    if form == "vector" and rank == 2:
        return feature.mean(dim=1)
    if form == "map" and rank == 2:
        return tokens_to_map(feature)
    return feature


def tokens_to_map(tokens: torch.Tensor) -> torch.Tensor:
    """Lay tokens [B, P + H * H, D] out as a square map [B, D, H, H]; the P leading prefix tokens are dropped.

    P is the smallest number that leaves a square: 1 for a class token, 2 with a distillation token,
    5 with four registers.
    """
    batch, count, width = tokens.shape
    side = int(count**0.5)
    prefix = count - side * side
    return tokens[:, prefix:].transpose(1, 2).reshape(batch, width, side, side)


def _pool_map(feature: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if feature.shape[2:] == size:
        return feature
    return F.adaptive_avg_pool2d(feature, size)


def _pool_tokens(feature: torch.Tensor, length: int) -> torch.Tensor:
    if feature.shape[1] == length:
        return feature
    return F.adaptive_avg_pool1d(feature.transpose(1, 2), length).transpose(1, 2)
