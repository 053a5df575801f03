"""What becomes of the memory that a step on a processor frees."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of the two parameters in the C library's `malloc.h`."""
LARGEST = 2**31 - 1
IN_HEAP = (2**30, 2**25)
"""Blocks below this size come from the heap, where they can be used again; older C libraries allow the smaller only."""
CHOSEN_OUTSIDE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which a user decides this."""


@cache
def keep_freed_memory() -> bool:
    """Have the process keep the memory that a step frees, for the next step, and return whether it does.

    glibc gives the memory of the activations back to the system in every backward pass. In the next step the system has
    to find and clear its pages again, tens of thousands of them: 5 to 7 per cent of a step of a ResNet on CIFAR images.
    What a process needs at most stays the same; it only stays that large until it ends.

    Nothing is done where the C library is another, or where the user has set one of `CHOSEN_OUTSIDE`.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in CHOSEN_OUTSIDE):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # The order counts: either parameter ends the adapting of both, and a low limit alone would make all slower.
    return any(mallopt(MMAP_THRESHOLD, size) for size in IN_HEAP) and bool(
        mallopt(TRIM_THRESHOLD, LARGEST)
    )
