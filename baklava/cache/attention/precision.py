"""Scores in float32 for models in half precision, as PyTorch's fused attention computes them.

In bfloat16 a score of 1,000 is exact only to within 4, so that its softmax weight is wrong by a factor; float16 has no
scores above 65,504.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Elements that are converted to float32 at a time. On a CPU the copies then stay in its cache, where they cost little
# compared with reading the originals; on other devices a call costs more than the memory does.
MAX_CONVERTED_CPU, MAX_CONVERTED = 2**19, 2**25


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def max_converted(tensor: Tensor) -> int | None:
    """How many elements of a stored tensor to convert to float32 at a time; None where none need it."""
    if at_least_float32(tensor[:0]).dtype == tensor.dtype:
        return None
    return MAX_CONVERTED_CPU if tensor.device.type == "cpu" else MAX_CONVERTED


def multiply(rows: Tensor, stored: Tensor) -> Tensor:
    """Multiply `[P, R, K]`, in float32 at least, by `[P, K, N]` as it is stored; sums in the precision of `rows`."""
    n_elements = max_converted(stored)
    if n_elements is None or not stored.numel():
        return torch.bmm(rows, at_least_float32(stored))
    n = max(1, n_elements // stored[0].numel())
    pairs = zip(rows.split(n), stored.split(n), strict=True)
    products = [torch.bmm(some_rows, at_least_float32(some_stored)) for some_rows, some_stored in pairs]
    return products[0] if len(products) == 1 else torch.cat(products)
