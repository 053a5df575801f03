"""The cosine schedule beside the one that MiniPLM trains with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from understudy.training.schedules import Cosine

GOLDEN = Path(__file__).parent.parent / "golden" / "miniplm" / "lr_schedule.npz"


def test_cosine_is_that_of_miniplm_but_for_the_first_step() -> None:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        expected = arrays["lr"]
    schedule = Cosine(warmup_epochs=10, final=0.1)
    found = [6e-4 * schedule.factor(step, 100, 1) for step in range(101)]
    assert found[10:] == pytest.approx(list(expected[10:]), rel=1e-9, abs=1e-15)
    # Their warm-up begins at 0, so that the first step does nothing; ours is one step ahead.
    assert found[:9] == pytest.approx(list(expected[1:10]), rel=1e-9, abs=1e-15)
    assert expected[0] == 0
