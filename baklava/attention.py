"""The `baklava` attention: dense over the prompt, ragged over a budgeted cache.

Importing this module registers it with transformers' attention and mask registries; a model uses it after
`model.set_attn_implementation("baklava")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from baklava.errors import UserError

NAME = "baklava"

# Called with (attention module, query [B, Hq, T, D], key [B, Hkv, T, D], value, output [B, Hq, T, D]).
Observer = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Run:
    """KV caches of one layer that keep equally many entries, stored without a gap.

    `caches` `[P]` says which: row * n_kv_heads + head. `keys` and `values` are `[P, n, D]`.
    """

    caches: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class RaggedEntries:
    """All entries of one layer: the compressed context as runs, and the dense tokens after it `[B, Hkv, M, D]`."""

    runs: Sequence[Run]
    tail_keys: Tensor
    tail_values: Tensor


def attach_entries(keys: Tensor, entries: RaggedEntries) -> Tensor:
    """Let `keys` carry a layer's entries to the attention function: a cache's only way to hand it more than tensors."""
    carrier = keys.view(keys.shape)
    carrier.baklava_entries = entries  # type: ignore[attr-defined]
    return carrier


@dataclass
class _Partial:
    """Softmax attention over some of the entries, to be merged with the rest: `[N, Q, D]`, `[N, Q, 1]`, `[N, Q, 1]`."""

    weighted: Tensor
    total: Tensor
    highest: Tensor

    @classmethod
    def of(cls, query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None = None) -> _Partial:
        """`query` `[N, Q, D]` is scaled; `hidden` `[Q, n]` is true where a query may not look."""
        exact = torch.promote_types(query.dtype, torch.float32)
        scores = torch.matmul(query, keys.transpose(-1, -2)).to(exact)  # [N, Q, n]
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        highest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(highest).exp_()
        return cls(torch.matmul(weights.to(values.dtype), values).to(exact), weights.sum(-1, keepdim=True), highest)

    def merge(self, where: Tensor, other: _Partial) -> None:
        """Add `other`, which belongs to the rows `where` `[P]` of this one."""
        highest = torch.maximum(self.highest[where], other.highest)
        keep, add = (self.highest[where] - highest).exp_(), (other.highest - highest).exp_()
        self.weighted[where] = self.weighted[where] * keep + other.weighted * add
        self.total[where] = self.total[where] * keep + other.total * add
        self.highest[where] = highest


def ragged_attention(query: Tensor, entries: RaggedEntries, *, scaling: float) -> Tensor:
    """Attention of the last `Q` tokens to a compressed context and to the tokens since it.

    `query` is `[B, Hq, Q, D]` and belongs to the last `Q` positions of the tail. Every query sees the whole context
    and, of the tail, itself and what is before it. Returns `[B, Hq, Q, D]`. Sums are kept in float32 at least.
    """
    batch, n_heads, n_queries, head_dim = query.shape
    n_kv_heads, n_tail = entries.tail_keys.shape[1:3]
    group = n_heads // n_kv_heads
    # Query heads that share a KV head become rows of one product: [B * Hkv, group * Q, D]
    packed = (query * scaling).reshape(batch * n_kv_heads, group * n_queries, head_dim)
    hidden = None
    if n_queries > 1:
        last = torch.arange(n_tail - n_queries, n_tail, device=query.device)
        hidden = torch.arange(n_tail, device=query.device) > last[:, None]  # [Q, M]
        hidden = hidden.repeat(group, 1)
    merged = _Partial.of(packed, entries.tail_keys.flatten(0, 1), entries.tail_values.flatten(0, 1), hidden)
    for run in entries.runs:
        merged.merge(run.caches, _Partial.of(packed[run.caches], run.keys, run.values))
    return (merged.weighted / merged.total).to(query.dtype).view(batch, n_heads, n_queries, head_dim)


def dense_attention(query: Tensor, key: Tensor, value: Tensor, *, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Causal attention `[B, Hq, Q, D]` of the last `Q` of `T` positions, KV heads not repeated."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    if mask is None and 1 < n_queries < n_keys:
        position = torch.arange(n_keys, device=query.device)
        mask = position <= position[n_keys - n_queries :, None]
    return nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and n_queries > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def baklava_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    observer: Observer | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers' registry.

    `observer`, passed to the model's forward, sees the tensors of every layer as they go by.
    """
    if dropout:
        raise UserError("the baklava attention is for inference and knows no dropout; call model.eval()")
    if kwargs.get("sliding_window") is not None or kwargs.get("softcap") is not None:
        raise UserError("the baklava attention does not support sliding windows or soft-capped scores yet")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    entries = getattr(key, "baklava_entries", None)
    if entries is None:
        output = dense_attention(query, key, value, scaling=scaling, mask=attention_mask)
    else:
        output = ragged_attention(query, entries, scaling=scaling)
    if observer is not None:
        observer(module, query, key, value, output)
    return output.transpose(1, 2).contiguous(), None  # [B, Q, Hq, D]


def baklava_mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """No mask is ever built: causality is the attention's own business. Padding is refused, not ignored."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise UserError(
            "the baklava attention does not support padded batches yet; pass prompts of equal length, or one at a time"
        )


AttentionInterface.register(NAME, baklava_attention)
AttentionMaskInterface.register(NAME, baklava_mask)
