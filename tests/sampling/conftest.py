"""What the tests of samplers share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))
from small_writers import SIZE

from understudy.models.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Return a byte-level tokenizer of fewer than 280 tokens."""
    found = train_tokenizer(["12+35=47", "the cat sat on the mat"], size=SIZE, kind="bpe")
    found.eos_token = "[SEP]"
    return found
