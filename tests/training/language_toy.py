"""A small language model experiment, for tests in this process and in others.

As a program: `python language_toy.py OPTIONS as JSON` fills the store of the options.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from understudy.data.source import Source
from understudy.data.sources.python import from_tensors
from understudy.methods import KD, FitNet, Method, Supervised
from understudy.methods.token_kd import TokenKD
from understudy.models import Model, build
from understudy.tasks import make_task
from understudy.teachers.store.settings import StoreSettings
from understudy.training.experiment import Experiment, ExperimentData, ExperimentTeacher
from understudy.training.labelling import label
from understudy.training.optimizers import Optimizer
from understudy.training.settings import Settings
from understudy.training.stage import Stage

LANGUAGE_TOY_FILE = Path(__file__)
WORDS = ("the cat", "a dog", "sat", "on", "the mat", "and", "slept", "all day", "under", "a tree")
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "causal_lm": (
        "llama",
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        },
    ),
    "masked_lm": (
        "bert",
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 66,
        },
    ),
    "seq2seq": ("t5", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}),
}
METHODS: dict[str, Any] = {
    "token_kd": TokenKD,
    "kd": KD,
    "fitnet": FitNet,
    "supervised": Supervised,
}


def documents(count: int, task: str, seed: int = 0) -> list[Any]:
    """Return documents of very different lengths; the first one is empty, one is longer than a row."""
    generator = torch.Generator().manual_seed(seed)

    def text(words: int) -> str:
        return " ".join(
            WORDS[int(torch.randint(10, (), generator=generator))] for _ in range(words)
        )

    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    lengths[1] = 30
    if task == "seq2seq":
        return [(text(2), text(number)) for number in lengths]
    texts: list[Any] = [text(number) for number in lengths]
    texts[0] = ""
    return texts


def source(task: str = "causal_lm", count: int = 24) -> Source:
    """Return documents in two domains."""
    train, test = documents(count, task), documents(10, task, seed=1)
    return from_tensors(
        train,
        torch.arange(count) % 2,
        test_inputs=test,
        test_labels=torch.arange(10) % 2,
        classes=["one", "other"],
    )


def model(
    task: str = "causal_lm", seed: int = 0, tokenizer: str | None = None, **preprocess: Any
) -> Model:
    """Return a tiny model with one token for each byte, or with the tokenizer in a folder."""
    family, config = FAMILIES[task]
    torch.manual_seed(seed)
    return build(
        f"hf:{family}",
        classes=2,
        kind="text",
        task=task,
        config=config,
        tokenizer=tokenizer or {"kind": "bytes"},
        preprocess={"max_length": 32 if task != "seq2seq" else 48, **preprocess},
    )


def teacher_model(task: str = "causal_lm", **preprocess: Any) -> Model:
    """Return a teacher with an opinion: its logits are far from each other, though it was never trained."""
    made = model(task, 7, **preprocess)
    if task == "causal_lm":
        with torch.no_grad():
            made.module.get_output_embeddings().weight.mul_(20)  # type: ignore[operator]
    return made


def experiment(
    task: str = "causal_lm",
    *,
    store: dict[str, Any] | None = None,
    live: bool = True,
    methods: tuple[Any, ...] = ("token_kd", "supervised"),
    steps: int = 6,
    student_rows: dict[str, Any] | None = None,
    teacher_rows: dict[str, Any] | None = None,
    count: int = 24,
    **settings: Any,
) -> Experiment:
    """Return an experiment.

    Args:
        task: the task.
        store: settings of the teacher's store; None for none.
        live: whether the teacher's model is there.
        methods: names, or methods.
        steps: optimiser steps.
        student_rows: changes of the student's preprocessing, or its `tokenizer`.
        teacher_rows: of the teacher's.
        count: training documents.
        settings: of the run.
    """
    settings = {
        "batch_size": 4,
        "precision": "float32",
        "channels_last": False,
        "preflight": "warn",
        "answer_tokens": 0,
        "seeds": (0,),
        **settings,
    }

    def stages() -> list[Stage]:
        made = [each if isinstance(each, Method) else METHODS[each]() for each in methods]
        return [Stage(made, steps=steps, epochs=None, optimizer=Optimizer("sgd", lr=0.1))]

    return Experiment(
        name="language toy",
        data=ExperimentData(source(task, count), validation=0.25),
        student=lambda: model(task, **(student_rows or {})),
        teacher=ExperimentTeacher(
            (lambda: teacher_model(task, **(teacher_rows or {}))) if live else None,
            store=None if store is None else StoreSettings(**store),
        ),
        arms={"kd": stages},
        settings=Settings(**settings),
        task=make_task(task),
        recipe={"toy": True},
    )


if __name__ == "__main__":
    label(experiment(**json.loads(sys.argv[1])))
