"""The kernel is one that GPUs run, not just Triton's interpreter, which lets more pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# Shared memory that a program may have: the smallest of the GPUs since Ampere (8.6, 8.9), and Hopper's.
MAX_SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024}


def test_compiles_and_fits_into_shared_memory(tmp_path: Path, repository: Path) -> None:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(repository),
    }
    script = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    taken = json.loads(done.stdout.splitlines()[-1])
    assert taken
    assert not [(variant, shared) for variant, capability, shared in taken if shared > MAX_SHARED_BYTES[capability]]
