"""What a few queries would see if their KV cache held only the sinks and a recent window."""

from __future__ import annotations

import torch
from torch import Tensor

from baklava.cache.attention.dense import MAX_SCORES, soft_cap


def simulated_eviction(
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
    """Attention outputs `[Hq, N, D]` under eviction, and the attention `[Hq, N]` that falls on what is evicted.

    `query` `[Hq, N, D]` are the queries at `positions` `[N]`, `key` and `value` `[Hkv, T, D]` those of all tokens. A
    query sees the first `sinks` entries and the `window` last ones up to its own. No more than `MAX_SCORES` scores
    are held at a time, in float32, of one KV head.
    """
    n_heads, n_queries, _ = query.shape
    n_kv_heads, length, _ = key.shape
    group = n_heads // n_kv_heads
    evicted = query.new_empty(n_heads, n_queries, value.shape[-1], dtype=torch.float32)
    far_mass = query.new_empty(n_heads, n_queries, dtype=torch.float32)
    step = max(1, MAX_SCORES // (group * length))
    for start in range(0, n_queries, step):
        some = slice(start, start + step)
        asking = positions[some, None]  # [n, 1]
        columns = _seen_by_any(asking, sinks=sinks, window=window)  # few beside T, and so is all work but one sum
        gone = (columns > asking) | ((columns >= sinks) & (asking - columns >= window))
        first = int(asking.min()) + 1  # what comes before is the future of none of them
        future = torch.arange(first, length, device=key.device) > asking
        for kv_head in range(n_kv_heads):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            scores = query[heads, some].float() * scaling @ key[kv_head].float().T  # [group, n, T]
            if softcap is not None:
                scores = soft_cap(scores, softcap)
            kept = scores[..., columns].masked_fill_(gone, float("-inf"))
            evicted[heads, some] = kept.softmax(-1) @ value[kv_head, columns].float()
            scores[..., first:].masked_fill_(future, float("-inf"))
            far_mass[heads, some] = (1.0 - (kept.logsumexp(-1) - scores.logsumexp(-1)).exp()).clamp(min=0.0)
    return evicted, far_mass


def _seen_by_any(asking: Tensor, *, sinks: int, window: int) -> Tensor:
    """The entries that some query at `asking` `[n, 1]` may see under eviction, in order; maybe a few more."""
    first, last = int(asking.min()) - window + 1, int(asking.max()) + 1
    n_sinks = min(sinks, last)
    recent = torch.arange(max(first, n_sinks), last, device=asking.device)
    return torch.cat([torch.arange(n_sinks, device=asking.device), recent])
