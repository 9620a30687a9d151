"""Attention that entries receive from the queries that a policy observes, in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from baklava.eviction.base import LayerContext

# Attention weights that are held at a time. On a CPU they then stay in its cache, where each pass over them costs
# little; on other devices a call costs more than the memory does (256 MiB in float32).
MAX_WEIGHTS_CPU, MAX_WEIGHTS = 2**18, 2**26


@torch.no_grad()  # ranks have no gradients
def received_attention(queries: Tensor, context: LayerContext) -> Tensor:
    """Sum the attention weights of the queries `[B, Hq, Q, D]` of the last `Q` entries.

    Returns `[B, Hkv, group, S]`: what each entry gets from each query head that shares its KV head. Attention is causal
    and computed in blocks, so that memory grows with `S` and not with `Q * S`.
    """
    n_rows, n_kv_heads, n_entries, _ = context.keys.shape
    exact = torch.promote_types(queries.dtype, torch.float32)
    grouped = queries.unflatten(1, (n_kv_heads, -1)).flatten(0, 1)  # [C, group, Q, D] of C = B * Hkv KV caches
    keys = context.keys.flatten(0, 1)
    received = keys.new_zeros(*grouped.shape[:2], n_entries, dtype=exact)
    step = max(1, (MAX_WEIGHTS_CPU if keys.device.type == "cpu" else MAX_WEIGHTS) // received[0].numel())  # queries
    n_caches = max(1, step // grouped.shape[2])
    for some, their_keys, total in zip(*(tensor.split(n_caches) for tensor in (grouped, keys, received)), strict=True):
        their_keys = their_keys.to(exact)
        end = n_entries - grouped.shape[2]
        for block in some.split(step, dim=2):
            end += block.shape[2]
            weights = _causal_weights(block.to(exact) * context.scaling, their_keys[:, :end], context.softcap)
            total[..., :end] += weights.sum(-2)
    return received.unflatten(0, (n_rows, n_kv_heads))


def weights_of_head(queries: Tensor, context: LayerContext, head: int) -> Tensor:
    """Weights `[B, group, Q, S]` of the queries `[B, Hq, Q, D]` of the last `Q` entries that share one KV head.

    For few queries: the weights of one KV head are held at a time.
    """
    exact = torch.promote_types(queries.dtype, torch.float32)
    group = queries.shape[1] // context.keys.shape[1]
    own = queries[:, head * group : (head + 1) * group].to(exact) * context.scaling
    return _causal_weights(own, context.keys[:, head].to(exact), context.softcap)


def _causal_weights(queries: Tensor, keys: Tensor, softcap: float | None) -> Tensor:
    """Compute weights `[C, group, Q, S]` of scaled queries `[C, group, Q, D]` at the last `Q` of `S` entries."""
    n_queries = queries.shape[2]
    packed = queries.flatten(1, 2)  # heads of a group become rows of one product, so that KV heads are not repeated
    logits = torch.bmm(packed, keys.transpose(-1, -2)).unflatten(1, queries.shape[1:3])
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    later = torch.ones(n_queries, n_queries, dtype=torch.bool, device=keys.device).triu(1)
    logits[..., keys.shape[1] - n_queries :].masked_fill_(later, float("-inf"))
    return logits.softmax(-1)


def last_queries(state: Tensor | None, queries: Tensor, n: int) -> Tensor:
    """Keep the last `n` queries so far, `[B, Hq, <= n, D]`: those of `state`, then those of a new chunk."""
    latest = queries[:, :, -n:].clone()  # a view would keep the whole chunk's queries alive
    return latest if state is None else torch.cat([state, latest], dim=2)[:, :, -n:]
