"""Freed memory stays with the process: asking the system for it again takes longer than what is done with it."""

from __future__ import annotations

import ctypes
import sys

# Options of glibc's mallopt(3), and the most bytes they are set to: a C int holds no more.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MAX_KEPT_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep up to 2 GiB of freed memory, and take tensors up to 2 GiB from it.

    By default glibc returns large tensors to the system as soon as they are freed, and the next ones are zeroed page by
    page. Where rows come and go, that is a quarter of an evaluation on the CPU. Does nothing where the C library is
    another one; memory of GPUs is torch's to keep.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, MAX_KEPT_BYTES)
        mallopt(TRIM_THRESHOLD, MAX_KEPT_BYTES)
