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
    held at a time, in float32; on a CPU those of one KV head, elsewhere of as many as fit, since every call costs.
    """
    n_heads, n_queries, _ = query.shape
    n_kv_heads, length, _ = key.shape
    group = n_heads // n_kv_heads
    grouped = query.unflatten(0, (n_kv_heads, group))
    evicted = query.new_empty(n_kv_heads, group, n_queries, value.shape[-1], dtype=torch.float32)
    far_mass = query.new_empty(n_kv_heads, group, n_queries, dtype=torch.float32)
    step = max(1, MAX_SCORES // (group * length))
    together = _n_together(key.device, group * min(step, n_queries) * length)
    for start in range(0, n_queries, step):
        block = slice(start, start + step)
        at = positions[block, None]  # [n, 1]
        # Far fewer than T columns, so that all work but one sum over T is small.
        columns = _find_columns(at, sinks=sinks, window=window)
        hidden = (columns > at) | ((columns >= sinks) & (at - columns >= window))
        first = int(at.min()) + 1  # all queries of the block see what comes before
        future = torch.arange(first, length, device=key.device) > at
        for kv_head in range(0, n_kv_heads, together):
            heads = slice(kv_head, kv_head + together)
            keys = key[heads, None].float().transpose(-1, -2)  # [h, 1, D, T]
            scores = grouped[heads, :, block].float() * scaling @ keys  # [h, group, n, T]
            if softcap is not None:
                scores = soft_cap(scores, softcap)
            kept = scores[..., columns].masked_fill_(hidden, float("-inf"))
            evicted[heads, :, block] = kept.softmax(-1) @ value[heads, None, columns].float()
            scores[..., first:].masked_fill_(future, float("-inf"))
            far = 1.0 - (kept.logsumexp(-1) - scores.logsumexp(-1)).exp()
            far_mass[heads, :, block] = far.clamp(min=0.0)
    return evicted.flatten(0, 1), far_mass.flatten(0, 1)


def _n_together(device: torch.device, n_scores: int) -> int:
    """KV heads of `n_scores` scores each that one call takes."""
    return 1 if device.type == "cpu" else max(1, MAX_SCORES // n_scores)


def _find_columns(at: Tensor, *, sinks: int, window: int) -> Tensor:
    """The entries that any query at `at` `[n, 1]` may see under eviction, in order; possibly a few more."""
    first, last = int(at.min()) - window + 1, int(at.max()) + 1
    n_sinks = min(sinks, last)
    recent = torch.arange(max(first, n_sinks), last, device=at.device)
    return torch.cat([torch.arange(n_sinks, device=at.device), recent])
