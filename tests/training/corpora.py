"""Small corpora of three domains, and recipes of tiny language models for them.

As a program: `python corpora.py DIRECTORY fresh|resume RECIPE.json`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.recipe import from_values
from understudy.training.run import run

FILE = Path(__file__)
WORDS = {
    "tales": ["the", "king", "saw", "a", "cat", "and", "the", "old", "sea"],
    "sums": ["one", "two", "three", "four", "plus", "minus", "is", "equal"],
}
LETTERS = "bcdfghjklmnpqrstvwxz0123456789"


def write_corpus(folder: Path, counts: Mapping[str, int] | None = None) -> dict[str, str]:
    """Write a file for each domain, a document a line; return domain -> path. `noise` is letters at random."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for domain, count in (counts or {"tales": 60, "sums": 30, "noise": 30}).items():
        words = WORDS.get(domain)
        lines = [
            " ".join(draw.choices(words, k=draw.randint(3, 6)))
            if words
            else "".join(draw.choices(LETTERS, k=draw.randint(12, 24)))
            for _ in range(count)
        ]
        paths[domain] = str(folder / f"{domain}.txt")
        Path(paths[domain]).write_text("\n".join(lines) + "\n")
    return paths


def model(width: int = 16, layers: int = 1, **tokenizer: Any) -> dict[str, Any]:
    """Return a tiny language model."""
    config = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    return {"name": "hf:llama", "config": config, "tokenizer": tokenizer or {"kind": "bytes"}}


def recipe(folder: Path, arms: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the values of a recipe on a corpus in a folder."""
    paths = write_corpus(folder / "corpus")
    optimizer = {"name": "adamw", "lr": 0.01}
    values = {
        "name": "corpus",
        "task": "causal_lm",
        "data": {"source": {"name": "text", "path": paths, "unit": "line", "test": 0.1}},
        "teacher": {"model": model(24), "train": {"steps": 40}},
        "student": {"model": model(12)},
        "optimizer": optimizer,
        "steps": 6,
        "batch_size": 8,
        "evaluation_batch_size": 16,
        "precision": "float32",
        "workers": 0,
        "log_every": 1,
        "baseline": False,
        "arms": dict(arms),
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def reference(steps: int = 10, share: float = 0.1) -> dict[str, Any]:
    """Return a reference model that is trained on a share of the documents."""
    return {"model": model(8), "train": {"steps": steps}, "share": share}


def go(values: Mapping[str, Any], directory: Path, *, resume: bool = False) -> None:
    """Run a recipe."""
    run(from_values(dict(values)).build(directory), directory, resume=resume)


def lines(directory: Path, event: str) -> list[dict[str, Any]]:
    """Return the lines of one event that are complete."""
    path = directory / "metrics.jsonl"
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(text) for text in texts if text.endswith("\n")]
    return [line for line in found if line["event"] == event]


if __name__ == "__main__":
    go(
        json.loads(Path(sys.argv[3]).read_text()),
        Path(sys.argv[1]),
        resume=sys.argv[2] == "resume",
    )
