"""A workbench for methods: one stage of a toy run at a time, on images, on texts, and on a language model.

"language" is a language model of texts, "pairs" one of prompts and responses.

A stage's methods are named; what a method needs before it (`Method.follows`) is trained by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from understudy.data.source import Source
from understudy.data.sources.python import from_tensors
from understudy.data.transforms.random_crop import RandomCrop
from understudy.methods import Method, Supervised, methods
from understudy.models.build import build
from understudy.models.configured import Configured
from understudy.models.model import Model
from understudy.tasks import make_task
from understudy.training.context import Context
from understudy.training.distribution import World
from understudy.training.experiment import Experiment, ExperimentData
from understudy.training.loop import Interrupted, train
from understudy.training.optimizers import Optimizer
from understudy.training.precision import Precision
from understudy.training.recorder import Recorder
from understudy.training.settings import Settings
from understudy.training.splits import make_splits
from understudy.training.stage import Stage
from understudy.training.stage_run import Earlier, StageRun

CLASSES = ("low", "middle", "high")
COUNT, BATCH, STEPS = 48, 16, 4
ALONE = World(0, 1, torch.device("cpu"))
TEXT_ONLY = frozenset({"minilm"})
"""Methods that read queries, keys and values, which the image networks do not have."""
LANGUAGE_KINDS = ("language", "pairs")
LANGUAGE = {
    "student": {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12},
    "teacher": {"hidden_size": 12, "num_hidden_layers": 4, "intermediate_size": 16},
}
"""Sizes of the language models."""


class Letters(Configured):
    """Texts as letter numbers with a mask; letters beyond the eighth are cut off."""

    def __call__(self, raw: Sequence[str], device: torch.device) -> dict[str, torch.Tensor]:
        rows = [[ord(letter) % 27 + 1 for letter in text[:8]] for text in raw]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def config(self) -> dict[str, Any]:
        return {}


class Attention(nn.Module):
    """Self-attention with two heads, its projections and their names as in BERT."""

    num_attention_heads = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heads = (
            projection(tokens).unflatten(2, (self.num_attention_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None] > 0)
        return self.output(attended.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Self-attention and a perceptron, each added to what went in and normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width), nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.norm2 = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        tokens = self.norm1(tokens + self.attention(tokens, mask))
        return self.norm2(tokens + self.perceptron(tokens))


class Reader(nn.Module):
    """A small transformer over letters: the mean of its tokens goes into a linear classifier."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(28, width, padding_idx=0)
        self.blocks = nn.ModuleList(Layer(width) for _ in range(depth))
        self.classifier = nn.Linear(width, len(CLASSES))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.embedding(input_ids)
        for block in self.blocks:
            tokens = block(tokens, attention_mask)
        mask = attention_mask.unsqueeze(2)
        return self.classifier((tokens * mask).sum(dim=1) / mask.sum(dim=1))


def source(kind: str, missing: int) -> Source:
    """Return images with a bright bar, or texts with many of one letter; `missing` training labels are hidden.

    What a language model learns from are texts too; their labels are what it calls domains.
    """
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(COUNT + 30) % len(CLASSES)
    train = labels[:COUNT].clone()
    train[COUNT - missing :] = -1
    inputs: Any
    if kind == "image":
        inputs = torch.randint(
            0, 90, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8
        )
        for number, label in enumerate(labels.tolist()):
            inputs[number, 0, 2 * label + 1] += 120
    else:
        inputs = [
            "abc"[label] * (2 + number % 3) + "defgh"[number % 5] * (1 + number % 4)
            for number, label in enumerate(labels.tolist())
        ]
    if kind == "pairs":
        inputs = [(text[:4], text[:4][::-1]) for text in inputs]
    return from_tensors(
        inputs[:COUNT],
        train,
        test_inputs=inputs[COUNT:],
        test_labels=labels[COUNT:],
        classes=list(CLASSES),
    )


def model(kind: str, role: str) -> Model:
    """Return a fresh student or teacher."""
    small = role == "student"
    if kind == "text":
        return Model(Reader(8 if small else 12, 2 if small else 4), Letters(), "reader")
    if kind in LANGUAGE_KINDS:
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        # Every token that fits into a row is written, where nothing has been learnt.
        heads["max_position_embeddings"] = 16 if kind == "pairs" else 32
        return build(
            "hf:llama",
            classes=len(CLASSES),
            kind="text",
            task="causal_lm",
            config={**LANGUAGE[role], **heads},
            tokenizer={"kind": "bytes"},
        )
    name, width = ("resnet8", 0.25) if small else ("resnet14", 0.5)
    return build(
        f"kd:{name}",
        classes=len(CLASSES),
        kind="image",
        input_shape=(1, 8, 8),
        statistics=((0.25,), (0.2,)),
        width=width,
    )


@dataclass
class Bench:
    """One stage with everything around it.

    Attributes:
        context: the data and settings.
        student: the student.
        teacher: the teacher.
        stages: the arm's stages, the last one under test.
        earlier: what the stages before learnt.
    """

    context: Context
    student: Model
    teacher: Model
    stages: list[Stage]
    earlier: Earlier

    def start(self, number: int = -1, earlier: Earlier | None = None) -> StageRun:
        """Build a stage."""
        number %= len(self.stages)
        return self.context.stage_run(
            self.stages[number],
            student=self.student,
            teacher=self.teacher,
            split=self.context.splits.train,
            seed=0,
            number=number,
            earlier=self.earlier if earlier is None else earlier,
        )


def kind_for(*names: str) -> str:
    """Return what methods are tested on where one kind is enough."""
    known = [methods.get(name) for name in names if name in methods]
    if any(getattr(method, "needs_prompts", False) for method in known):
        return "pairs"
    if any(method.needs_tokens for method in known):
        return "language"
    return "text" if TEXT_ONLY & set(names) else "image"


def bench(
    chosen: Sequence[Method | str],
    kind: str | None = None,
    *,
    before: Sequence[str] | None = None,
    missing: int = 0,
    accumulate: int = 1,
    precision: str = "float32",
    compile: bool = False,
    world: World = ALONE,
) -> Bench:
    """Return the workbench for a stage with these methods; the stages before it are trained.

    Those are the stages with the methods `before`, where given, else with those that the methods build on. Without a
    kind it is images, but for methods that are for texts only.
    """
    made = [methods.get(name)() if isinstance(name, str) else name for name in chosen]
    kind = kind or kind_for(*(method.name for method in made))
    if before is None:
        before = [name for method in made for name in method.follows]

    def stage(name: str, used: Sequence[Method]) -> Stage:
        return Stage(
            used,
            name=name,
            steps=STEPS,
            accumulate=accumulate,
            optimizer=Optimizer("sgd", lr=0.02, momentum=0.9),
        )

    stages = [stage(name, [methods.get(name)()]) for name in before] + [stage("tested", made)]
    experiment = Experiment(
        name="bench",
        data=ExperimentData(
            source(kind, missing),
            validation=None,
            transforms=[RandomCrop(padding=1)] if kind == "image" else [],
        ),
        student=lambda: model(kind, "student"),
        teacher=None,
        task=make_task("causal_lm" if kind in LANGUAGE_KINDS else "classification"),
        arms={},
        settings=Settings(
            batch_size=BATCH, precision=precision, channels_last=False, compile=compile
        ),
    )
    context = Context(experiment, make_splits(experiment), world, precision=Precision(precision))
    torch.manual_seed(1)
    teacher = model(kind, "teacher")
    built = Bench(context, context.build_student(0), teacher, stages, {})
    for number in range(len(before)):
        run = built.start(number)
        try:
            go(run)
            built.earlier = run.learnt()
        finally:
            run.close()
    return built


def go(run: StageRun, until: int | None = None) -> list[dict[str, float]]:
    """Train to the end of the stage, or stop after step `until`; return the terms of each step."""
    lines: list[dict[str, float]] = []

    def write(**fields: Any) -> None:
        lines.append({**fields["terms"], "loss": fields["loss"]})

    with contextlib.suppress(Interrupted):
        train(
            run,
            Recorder(write, 1, lambda: "", ALONE),
            save=lambda: None,
            validate=lambda: False,
            stop=lambda: run.step == until,
            checkpoint_every=1000,
        )
    return lines


@contextlib.contextmanager
def started(built: Bench) -> Iterator[StageRun]:
    """Build the tested stage for a block and take it down again."""
    run = built.start()
    try:
        yield run
    finally:
        run.close()


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a module's state."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Tell whether two states are the same to the bit."""
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def through_file(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a state as it comes out of a checkpoint file."""
    torch.save(state, folder / "state.pt")
    loaded: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    return loaded


def trained_with(
    chosen: Sequence[Method | str], kind: str, *, before: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """Return the student's weights after a stage with these methods; `before` as for `bench`."""
    built = bench(chosen, kind, before=before)
    with started(built) as run:
        go(run)
    return snapshot(built.student.module)


def labelled(method: Method) -> list[Method]:
    """Return a method with the labels' loss beside it."""
    return [Supervised(), method]
