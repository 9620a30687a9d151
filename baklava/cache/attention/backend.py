"""Chooses what computes attention to a compressed context; the kernels are imported where they are used."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import torch

Backend = Literal["triton", "varlen", "torch"]

HALVES = (torch.bfloat16, torch.float16)


@lru_cache
def choose_backend(device: torch.device, dtype: torch.dtype, dims: tuple[int, int], softcap: float | None) -> Backend:
    """Choose by the queries' device and dtype, the head dimensions `dims` of keys and values, and soft-capping.

    The Triton kernel where it runs; PyTorch's variable-length FlashAttention where Triton is missing; else plain
    PyTorch: on the CPU, on GPUs before Ampere, in float64, for head dimensions above 256.
    """
    if device.type != "cuda" or max(dims) > 256 or torch.cuda.get_device_capability(device) < (8, 0):
        return "torch"
    if dtype in (torch.float32, *HALVES) and _has_triton():
        return "triton"
    if dtype in HALVES and softcap is None and dims[0] == dims[1] and dims[0] % 8 == 0 and _has_varlen():
        return "varlen"
    return "torch"


def _has_triton() -> bool:
    return find_spec("triton") is not None


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import AuxRequest  # noqa: F401  its first versions return no log-sum-exp
    except ImportError:
        return False
    return True
