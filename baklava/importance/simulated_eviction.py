"""What a few queries would see if their KV cache held only the sinks and a recent window."""

from __future__ import annotations

import torch
from torch import Tensor

from baklava.cache.attention.dense import MAX_SCORES, soft_cap


def simulate_eviction(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    *,
    sinks: int,
    window: int,
    scaling: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention outputs `[Hq, N, D]` under eviction, and the attention `[Hq, N]` that falls on evicted entries.

    `query` `[Hq, N, D]` are the queries at `positions` `[N]`, `key` and `value` `[Hkv, T, D]` those of all tokens. A
    query sees the first `sinks` entries and the last `window` entries up to its own. At most `MAX_SCORES` scores are
    held at a time, in float32, for one KV head.
    """
    n_heads, n_queries, _ = query.shape
    n_kv_heads, length, _ = key.shape
    group = n_heads // n_kv_heads
    evicted = query.new_empty(n_heads, n_queries, value.shape[-1], dtype=torch.float32)
    far_mass = query.new_empty(n_heads, n_queries, dtype=torch.float32)
    step = max(1, MAX_SCORES // (group * length))
    for start in range(0, n_queries, step):
        block = slice(start, start + step)
        at = positions[block, None]  # [n, 1]
        # Far fewer than T columns, so that all work but one sum over T is small.
        columns = _find_columns(at, sinks=sinks, window=window)
        hidden = (columns > at) | ((columns >= sinks) & (at - columns >= window))
        first = int(at.min()) + 1  # all queries of the block see what comes before
        future = torch.arange(first, length, device=key.device) > at
        for kv_head in range(n_kv_heads):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            scores = query[heads, block].float() * scaling @ key[kv_head].float().T  # [group, n, T]
            if softcap is not None:
                scores = soft_cap(scores, softcap)
            kept = scores[..., columns].masked_fill_(hidden, float("-inf"))
            evicted[heads, block] = kept.softmax(-1) @ value[kv_head, columns].float()
            scores[..., first:].masked_fill_(future, float("-inf"))
            far_mass[heads, block] = (1.0 - (kept.logsumexp(-1) - scores.logsumexp(-1)).exp()).clamp(min=0.0)
    return evicted, far_mass


def _find_columns(at: Tensor, *, sinks: int, window: int) -> Tensor:
    """The entries that any query at `at` `[n, 1]` may see under eviction, in order; possibly a few more."""
    first, last = int(at.min()) - window + 1, int(at.max()) + 1
    n_sinks = min(sinks, last)
    recent = torch.arange(max(first, n_sinks), last, device=at.device)
    return torch.cat([torch.arange(n_sinks, device=at.device), recent])
