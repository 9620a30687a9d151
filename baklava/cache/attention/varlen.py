"""Attention to ragged entries by PyTorch's variable-length FlashAttention, for GPUs without Triton.

Not yet tested on a GPU: tests check inputs and outputs with a stand-in for FlashAttention.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import varlen

from baklava.cache.ragged_storage import RaggedEntries

# FlashAttention runs one program per sequence, so that a long KV cache is split into several sequences.
MAX_STRETCH = 1024


def attend(query: Tensor, entries: RaggedEntries, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    """Attend with queries `[C, R, D]` to stretches of the entries of their KV cache: `n` results, to be merged.

    Returns the KV caches `[n]`, outputs `[n, R, D]` and log-sum-exps `[n, R, 1]` in float32.
    """
    items = entries.layout.work_items(MAX_STRETCH)
    n_items, n_rows = len(items), query.shape[1]
    owners = items.table[:, 2].long()
    if not n_items:
        empty = query.new_empty(0, *query.shape[1:], dtype=torch.float32)
        return owners, empty, empty[..., :1]
    begin = torch.cat([items.table[:, 0], items.table.new_tensor([entries.layout.n_entries])])
    output, log_sums = varlen.varlen_attn(
        query[owners].flatten(0, 1)[:, None],  # [n * R, 1, D]
        entries.keys[:, None],  # [N, 1, D]
        entries.values[:, None],
        torch.arange(0, (n_items + 1) * n_rows, n_rows, dtype=torch.int32, device=query.device),
        begin,
        n_rows,
        MAX_STRETCH,
        return_aux=varlen.AuxRequest(lse=True),
        scale=scaling,
    )
    # Documented as [n * R, 1], implemented as [1, n * R]; with one head that is the same.
    return owners, output.float().unflatten(0, (n_items, n_rows)).squeeze(2), log_sums.reshape(n_items, n_rows, 1)
