"""What all tests share.

- Nothing is fetched: the Hugging Face libraries are told that there is no network, before they are imported.
- Arithmetic runs in one thread, here and in the processes that tests start. The models are tiny: more threads only
  fight for the cores that the test processes share, which made the suite many times slower.
- Every test starts from the same global random state (Python, NumPy, torch).
- Hypothesis has no deadline, since a first call may compile or import; in CI it draws the same examples every time.

Fixtures:
    repository: the root of the repository, for tests about its files.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def _same_random_state() -> None:
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the repository."""
    return Path(__file__).parent.parent
