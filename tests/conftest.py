"""Shared by all tests: no network, one thread per process, and where the repository is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch or a Hugging Face library; jobs that tests start inherit both.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Without a GPU, Triton's kernels run in its interpreter. It asks when it is imported, which Transformers does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository: `Snakefile`, `conf/`, `baklava/`."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def compress_short_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts of tests are short. By default a `BudgetedCache` would keep them whole; here it compresses them all."""
    monkeypatch.setattr("baklava.cache.row_settings.COMPRESS_ABOVE", 0)
