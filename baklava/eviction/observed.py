"""Attention that entries receive from the queries that a policy observes, in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from baklava.eviction.base import LayerContext

# Attention weights that are held at a time (256 MiB in float32); they limit a block of queries.
BLOCK_WEIGHTS = 2**26


def received_attention(queries: Tensor, context: LayerContext) -> Tensor:
    """Sum the attention weights of the queries `[B, Hq, Q, D]` of the last `Q` entries.

    Returns `[B, Hkv, group, S]`: what each entry gets from each query head that shares its KV head. Attention is causal
    and computed in blocks of queries, so that memory grows with `S` and not with `Q * S`.
    """
    batch, n_heads, n_queries, _ = queries.shape
    n_kv_heads, n_entries = context.keys.shape[1:3]
    exact = torch.promote_types(queries.dtype, torch.float32)
    keys = context.keys.to(exact)
    received = keys.new_zeros(batch, n_kv_heads, n_heads // n_kv_heads, n_entries)
    end = n_entries - n_queries
    for block in queries.split(max(1, BLOCK_WEIGHTS // (batch * n_heads * n_entries)), dim=2):
        end += block.shape[2]
        weights = _causal_weights(block.to(exact) * context.scaling, keys[:, :, :end], context.softcap)
        received[..., :end] += weights.sum(-2)
    return received


def weights_of_head(queries: Tensor, context: LayerContext, head: int) -> Tensor:
    """Weights `[B, group, Q, S]` of the queries `[B, Hq, Q, D]` of the last `Q` entries that share one KV head.

    For few queries: the weights of one KV head are held at a time.
    """
    exact = torch.promote_types(queries.dtype, torch.float32)
    group = queries.shape[1] // context.keys.shape[1]
    own = queries[:, head * group : (head + 1) * group].to(exact) * context.scaling
    return _causal_weights(own, context.keys[:, head : head + 1].to(exact), context.softcap)[:, 0]


def _causal_weights(queries: Tensor, keys: Tensor, softcap: float | None) -> Tensor:
    """Compute weights `[B, Hkv, group, Q, S]` of scaled queries `[B, Hq, Q, D]` at the last `Q` of `S` entries."""
    n_queries, n_entries = queries.shape[2], keys.shape[2]
    grouped = queries.unflatten(1, (keys.shape[1], -1))  # [B, Hkv, group, Q, D]
    packed = grouped.flatten(2, 3)  # heads of a group become rows of one product, so that KV heads are not repeated
    logits = torch.matmul(packed, keys.transpose(-1, -2)).unflatten(2, grouped.shape[2:4])
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if n_queries > 1:
        position = torch.arange(n_entries, device=keys.device)
        logits.masked_fill_(position > position[n_entries - n_queries :, None], float("-inf"))
    return logits.softmax(-1)


def last_queries(state: Tensor | None, queries: Tensor, n: int) -> Tensor:
    """Keep the last `n` queries so far, `[B, Hq, <= n, D]`: those of `state`, then those of a new chunk."""
    latest = queries[:, :, -n:].clone()  # a view would keep the whole chunk's queries alive
    return latest if state is None else torch.cat([state, latest], dim=2)[:, :, -n:]
