"""Random layers for the tests of eviction policies, and what a policy keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from baklava.decoder.attention_path import AttentionPath
from baklava.eviction import EvictionPolicy
from baklava.eviction.base import LayerContext, raise_protected

N_HEADS, N_KV_HEADS, HEAD_DIM = 6, 3, 8
CONFIG = LlamaConfig(
    hidden_size=N_HEADS * HEAD_DIM, num_attention_heads=N_HEADS, num_key_value_heads=N_KV_HEADS, head_dim=HEAD_DIM
)


def random_path(seed: int = 0) -> AttentionPath:
    """A path whose output projection is random."""
    size = N_HEADS * HEAD_DIM
    projection = nn.Linear(size, size, bias=False).requires_grad_(False)
    projection.weight.copy_(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))
    return AttentionPath(nn.Identity(), nn.Identity(), projection, torch.zeros(1, 1, size))


PATH = random_path()


def random_layer(
    n_entries: int,
    *,
    rows: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    softcap: float | None = None,
    layer_index: int = 0,
) -> tuple[Tensor, LayerContext]:
    """Queries `[rows, 6, n, 8]` of a whole context and the context, with attention that is far from flat."""
    generator = torch.Generator().manual_seed(seed)

    def normal(n_heads: int) -> Tensor:
        return torch.randn(rows, n_heads, n_entries, HEAD_DIM, generator=generator, dtype=torch.float64).to(dtype)

    context = LayerContext(
        keys=normal(N_KV_HEADS),
        values=normal(N_KV_HEADS),
        scaling=HEAD_DIM**-0.5,
        softcap=softcap,
        layer_index=layer_index,
        config=CONFIG,
        path=PATH,
    )
    return 2 * normal(N_HEADS), context


def first_entries(context: LayerContext, n: int) -> LayerContext:
    return replace(context, keys=context.keys[:, :, :n], values=context.values[:, :, :n])


def rows_of(context: LayerContext, rows: slice) -> LayerContext:
    return replace(context, keys=context.keys[rows], values=context.values[rows])


def scores_of(
    policy: EvictionPolicy, queries: Tensor, context: LayerContext, *, chunks: Sequence[int] | None = None
) -> Tensor:
    """Scores `[B, Hkv, S]`, the context read in chunks of these lengths (default: in one pass)."""
    return scores_and_order_of(policy, queries, context, chunks=chunks)[0]


def order_of(
    policy: EvictionPolicy, queries: Tensor, context: LayerContext, *, chunks: Sequence[int] | None = None
) -> Tensor:
    """Scores `[B, Hkv, S]` by which each KV cache ranks its entries."""
    return scores_and_order_of(policy, queries, context, chunks=chunks)[1]


def scores_and_order_of(
    policy: EvictionPolicy, queries: Tensor, context: LayerContext, *, chunks: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Both at once, `[B, Hkv, S]`."""
    state: Any = None
    end = 0
    for length in chunks or [queries.shape[2]]:
        start, end = end, end + length
        state = policy.observe(state, queries[:, :, start:end], first_entries(context, end))
    assert end == queries.shape[2]
    return policy.score_and_order(context, state)


def kept(policy: EvictionPolicy, scores: Tensor, budget: int) -> Tensor:
    """Positions `[..., budget]` that a KV cache keeps, ascending."""
    return raise_protected(scores, policy, budget).topk(budget, dim=-1).indices.sort(dim=-1).values


def naive_attention(queries: Tensor, context: LayerContext) -> Tensor:
    """Causal weights `[B, Hq, S, S]`, one query at a time, KV heads repeated."""
    keys = context.keys.repeat_interleave(queries.shape[1] // context.keys.shape[1], dim=1)
    n_entries = keys.shape[2]
    weights = queries.new_zeros(*queries.shape[:2], n_entries, n_entries)
    for t in range(n_entries):
        logits = torch.einsum("bhd,bhsd->bhs", queries[:, :, t], keys[:, :, : t + 1]) * context.scaling
        if context.softcap is not None:
            logits = torch.tanh(logits / context.softcap) * context.softcap
        weights[:, :, t, : t + 1] = logits.softmax(-1)
    return weights
