"""Makes glibc keep freed memory: asking the system for it again takes longer than the work that is done with it."""

from __future__ import annotations

import ctypes
import sys

# Options of glibc's mallopt(3), and the largest value of both: they are C ints.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MAX_KEPT_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep up to 2 GiB of freed memory, and allocate tensors of up to 2 GiB from it.

    By default glibc returns large tensors to the system as soon as they are freed, and the system zeroes the next ones
    page by page. In continuous batching that takes a quarter of an evaluation on the CPU. Does nothing with another C
    library; GPU memory is kept by torch.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, MAX_KEPT_BYTES)
        mallopt(TRIM_THRESHOLD, MAX_KEPT_BYTES)
