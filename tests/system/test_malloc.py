"""Freed memory that stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FREED = """
import sys, torch, psutil
from baklava.system.malloc import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
before = psutil.Process().memory_info().rss
torch.ones(2**26)  # 256 MiB
print(psutil.Process().memory_info().rss - before)
"""


def still_held(how: str) -> int:
    found = subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept():
    assert still_held("keep") > 200 * 2**20
    assert still_held("as usual") < 50 * 2**20
