"""Networks for tests of surgery, and what is done with them again and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spare_parts import Templates
from torch import nn

from understudy import seeding
from understudy.methods.wiring import Side, Wiring
from understudy.models import kd
from understudy.models.build import build
from understudy.models.export_check import RUNNERS
from understudy.models.export_verify import Case
from understudy.models.model import Model
from understudy.models.outputs import call, logits_of
from understudy.models.taps import Tapped, unchanged
from understudy.models.tokenizer import train_tokenizer

IMAGES = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(3))
TEXTS = [f"a film of {number} good and bad moments" * (1 + number % 3) for number in range(20)]
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def network(kind: str) -> nn.Module:
    with seeding.isolated(1, kind):
        if kind == "sequential":
            block = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
            return nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        if kind == "blocks":
            return Blocks()
        if kind == "mlp":
            layers = [nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(6, 3))
        return kd.build(kind, classes=3, in_channels=1, width=0.5)


class Blocks(nn.Module):
    """A sequence of equal blocks on tokens, which is the student's list of stages."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[nn.LayerNorm(16) for _ in range(3)])
        self.fc = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(x[:, 0]).mean(dim=1))


def bert() -> Model:
    with seeding.isolated(7, "test"):
        return build(
            "hf:bert",
            classes=3,
            kind="text",
            config=BERT,
            class_names=("no", "yes", "both"),
            tokenizer=train_tokenizer(TEXTS, 120),
        )


def tokens(model: Model) -> Any:
    return model.preprocess(TEXTS[:4], torch.device("cpu"))


def side(module: nn.Module, inputs: Any = IMAGES) -> Side:
    return Side("student", module, inputs, training=True, input_height=16)


def wiring(module: nn.Module, inputs: Any = IMAGES) -> Wiring:
    return Wiring(side(module, inputs), {}, classes=3)


def sized(shape: tuple[int, ...], **more: Any) -> Templates:
    """Make templates for a map, for tokens or for a vector."""
    graft = Templates(shape[0] if len(shape) == 3 else shape[-1], **more)
    with torch.no_grad():
        graft.norm.running_mean.normal_()
    return graft


def answer(module: nn.Module, inputs: Any = IMAGES) -> torch.Tensor:
    with unchanged(module), torch.no_grad():
        return logits_of(call(module.eval(), inputs))


def tapped(module: nn.Module, names: list[str], inputs: Any = IMAGES) -> dict[str, torch.Tensor]:
    reader = Tapped(module, names)
    with unchanged(module), torch.no_grad():
        module.eval()
        found = call(reader, inputs)[1]
    reader.close()
    return found


def run_here(form: str, place: Path, cases: list[Case]) -> list[np.ndarray]:
    """Stand in for `run_fresh`, in this process, which is quicker."""
    runner: Callable[..., list[np.ndarray]] = RUNNERS[form]
    return runner(
        str(place), [{name: t.numpy() for name, t in case.tensors.items()} for case in cases]
    )
