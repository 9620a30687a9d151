"""Scores in float32 for models in half precision, as PyTorch's fused attention has them.

In bfloat16 a score of 1,000 is right to 4 only, and its weight in a softmax wrong by a factor; in float16 there are no
scores above 65,504.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Numbers that are turned into float32 at a time. On a CPU so few that the copies stay in its cache, where they cost
# little beside the reading of the originals; elsewhere a call costs more than memory does.
ON_CPU, ELSEWHERE = 2**19, 2**25


def exact(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def converted_at_once(tensor: Tensor) -> int | None:
    """How many numbers of a stored tensor `product` turns into float32 at a time; None where it need not."""
    if exact(tensor[:0]).dtype == tensor.dtype:
        return None
    return ON_CPU if tensor.device.type == "cpu" else ELSEWHERE


def product(rows: Tensor, stored: Tensor) -> Tensor:
    """`[P, R, K]` in float32 at least times `[P, K, N]` as it is stored, summed and returned in that precision."""
    at_once = converted_at_once(stored)
    if at_once is None or not stored.numel():
        return torch.bmm(rows, exact(stored))
    n = max(1, at_once // stored[0].numel())
    blocks = [torch.bmm(some, exact(block)) for some, block in zip(rows.split(n), stored.split(n), strict=True)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
