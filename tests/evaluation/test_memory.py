"""The peak of memory, by each way of measuring it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from understudy.evaluation import PeakMemory, memory

MEGABYTE = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def hold(megabytes: int) -> None:
    """Touch that many megabytes for a moment and give them back."""
    block = bytearray(megabytes * MEGABYTE)
    block[::4096] = b"\1" * len(block[::4096])
    time.sleep(0.06)
    del block


@linux
@pytest.mark.parametrize("way", ["reset", "sampled"])
def test_a_peak_is_seen_and_an_earlier_one_is_not(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "sampled":
        monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    elif not memory._reset_high_water_mark():
        pytest.skip("/proc/self/clear_refs cannot be written here")
    hold(300)
    with PeakMemory() as idle:
        pass
    with PeakMemory() as busy:
        hold(120)
    assert way in busy.method
    assert idle.bytes is not None and busy.bytes is not None
    assert 90 * MEGABYTE < busy.bytes - idle.bytes < 200 * MEGABYTE


@linux
def test_the_mark_is_read_after_an_error_too() -> None:
    peak = PeakMemory()
    with pytest.raises(RuntimeError, match="on purpose"), peak:
        raise RuntimeError("on purpose")
    assert peak.bytes is not None and peak.bytes > MEGABYTE


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_without_proc_the_mark_since_the_beginning_is_all_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    with PeakMemory() as peak:
        pass
    assert peak.method == "peak resident set since the process began"
    assert peak.bytes is not None and 10 * MEGABYTE < peak.bytes < 2**40


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_allocator_is_asked() -> None:
    block = torch.zeros(64 * MEGABYTE, dtype=torch.uint8, device="cuda")
    del block
    with PeakMemory("cuda") as peak:
        torch.zeros(8 * MEGABYTE, dtype=torch.uint8, device="cuda")
    assert peak.bytes is not None and 8 * MEGABYTE <= peak.bytes < 32 * MEGABYTE
