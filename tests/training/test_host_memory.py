"""Memory that steps free is used again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from understudy.training.host_memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None

def step():
    blocks = [torch.empty(2**20).fill_(1.0) for _ in range(30)]
    del blocks

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, **environment: str) -> tuple[str, int]:
    """Run steps of 120 MB in a process of their own; return what the function said and the pages asked for again."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.splitlines()[-1].split()
    return kept, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_kept_unless_the_user_decides_otherwise() -> None:
    kept, few = faults("keep")
    if kept == "False":
        pytest.skip("the C library is another, or the environment decides")
    # Left alone, glibc gives memory back or not as its heap happens to lie; told to map every block, it always does.
    given_back = {"MALLOC_MMAP_THRESHOLD_": "131072"}
    assert few < 100 < faults("leave", **given_back)[1]
    assert faults("keep", **given_back)[0] == "False"
