"""What entries write into the residual stream when they get all attention."""

from __future__ import annotations

import torch
from torch import Tensor

from baklava.eviction.base import LayerContext

# Numbers that are written at a time; they limit a block of entries. On a CPU they then stay in its cache (2 MiB in
# float32), on other devices a call costs more than the memory does (128 MiB).
BLOCK_NUMBERS_CPU, BLOCK_NUMBERS = 2**19, 2**25


def written_lengths(context: LayerContext) -> Tensor:
    """The L1 norms `||W_o v||_1` of the projected values, averaged over each GQA group, `[B, Hkv, S]`.

    In float32 at least. The group's projections of a value are one product, in blocks of entries.
    """
    batch, n_kv_heads, n_entries, _ = context.values.shape
    exact = torch.promote_types(context.values.dtype, torch.float32)
    weight = context.output_weight().to(exact).unflatten(0, (n_kv_heads, -1))  # [Hkv, group, hidden, D]
    group = weight.shape[1]
    lengths = context.values.new_empty(batch, n_kv_heads, n_entries, dtype=exact)
    numbers = BLOCK_NUMBERS_CPU if weight.device.type == "cpu" else BLOCK_NUMBERS
    step = max(1, numbers // (batch * weight.shape[1] * weight.shape[2]))
    for head in range(n_kv_heads):
        columns = weight[head].flatten(0, 1).T.contiguous()  # [D, group * hidden]
        for start in range(0, n_entries, step):
            block = slice(start, start + step)
            written = context.values[:, head, block].to(exact) @ columns
            lengths[:, head, block] = written.abs_().sum(-1) / group
    return lengths
