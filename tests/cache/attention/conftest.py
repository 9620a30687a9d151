"""Kernels run on the GPU where there is one, else in Triton's interpreter (see `tests/conftest.py`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def poisoned() -> Iterator[None]:
    """New tensors are full of NaN, so that what a kernel leaves out shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all() and torch.zeros(1).new_empty(3, dtype=torch.float16).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
