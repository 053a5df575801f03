"""`export:program.pt2`: a torch-export program as a black box, for a teacher whose code is not at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models.build import Request, builders, refuse_reserved
from understudy.models.model import Model
from understudy.models.optional import first_line
from understudy.models.preprocess import AnyPreprocess, adjusted, from_config
from understudy.models.program_guard import check_program
from understudy.models.weights import file_hash


class ExportedProgram(nn.Module):
    """A loaded program. It has no training mode, its parameters are frozen, and what is inside has no tappable names.

    Args:
        program: what `torch.export.load` gave.
    """

    black_box = True
    """Nothing can be grafted into it."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self._program = program
        self.inner = program.module(check_guards=False)
        self.requires_grad_(False)
        self.training = False

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the program."""
        return self.inner(*inputs, **named)

    def train(self, mode: bool = True) -> ExportedProgram:
        """Stay in evaluation mode, which is baked into the program."""
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> ExportedProgram:
        """Move to another device; devices also stand in the middle of the graph, so it is rebuilt for the new one."""
        own = next(iter((*self.inner.parameters(), *self.inner.buffers())), torch.empty(0))
        probe = fn(torch.empty(0, device=own.device, dtype=own.dtype))
        if probe.dtype != own.dtype:
            raise ModelError(
                f"An exported program keeps the precision that it was exported in ({own.dtype}); "
                f"it cannot be turned into {probe.dtype}."
            )
        if probe.device != own.device:
            from torch.export.passes import move_to_device_pass

            self._program = move_to_device_pass(self._program, probe.device)
            self.inner = self._program.module(check_guards=False)
            self.inner.requires_grad_(False)
        return self


@builders.register("export")
class ExportBuilder:
    """`export:FILE.pt2`, or a folder with `model.pt2`.

    The `config.json` that understudy writes beside it, if it is there, brings preprocessing and class names.
    """

    def names(self) -> list[str]:
        """Return nothing: any file may stand there."""
        return []

    def build(self, request: Request) -> Model:
        """Check and load the program."""
        refuse_reserved(request, dict.fromkeys(request.keywords, "an exported program is fixed"))
        if request.weights is not None:
            raise ModelError(f"'{request.full_name}' has its own weights; leave out `weights`.")
        path = Path(request.name)
        path = path / "model.pt2" if path.is_dir() else path
        if not path.is_file():
            raise ModelError(f"There is no exported program at {path}.")
        check_program(path)
        try:
            program = torch.export.load(path)
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            raise ModelError(f"{path} cannot be loaded: {first_line(error)}") from error
        described = _description_beside(path)
        names = described.get("classes")
        count = described.get("class_count")
        if count is not None and count != request.classes:
            raise ModelError(
                f"'{request.full_name}' has {count} classes, the task has {request.classes}."
            )
        preprocess = _preprocess(request, described, path)
        config = request.rebuilt_by(preprocess)
        weights = f"{path.name} (sha256 {file_hash(path)[:12]})"
        return Model(
            ExportedProgram(program),
            preprocess,
            request.full_name,
            config,
            weights,
            None if names is None else tuple(names),
            {"black_box": True},
        )


def _preprocess(request: Request, described: dict[str, Any], path: Path) -> AnyPreprocess:
    settings = described.get("preprocess")
    if settings is None:
        return request.plain()
    if settings.get("type") != request.kind:
        raise ModelError(
            f"'{request.full_name}' takes {settings.get('type')} data; the data are of the kind {request.kind}."
        )
    return adjusted(from_config(settings, tokenizer=path.parent / "tokenizer"), request.preprocess)


def _description_beside(path: Path) -> dict[str, Any]:
    file = path.parent / "config.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ModelError(f"{file} is no JSON: {first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != "understudy-export":
        return {}
    return content
