"""What an estimator sees of one attention layer during the profiling pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadView:
    """One layer, one prompt of `T` tokens, `Hq` query heads of dimension `D`; all in float32.

    `values` and `outputs` `[Hq, T, D]`: the value vector that a head's KV cache stores for each token (shared by
    the query heads of a group) and the head's attention output there, before `o_proj`; positions at the very start
    left out. `look_back` `[Hq, N, D]` and `evicted` `[Hq, N, D]`: outputs at the positions that must look back, with
    all entries and with only the sinks and a recent window. `output_weight` `[Hq, hidden, D]`: each head's part of
    `o_proj`.
    """

    values: Tensor
    outputs: Tensor
    look_back: Tensor
    evicted: Tensor
    output_weight: Tensor


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """`1 - cos(a, b)` over the last dimension, averaged over the one before: `[..., N, D]` to `[...]`."""
    return 1.0 - torch.cosine_similarity(a, b, dim=-1).mean(-1)
