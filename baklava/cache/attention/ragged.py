"""Attention of new tokens to a compressed context and to the tokens since it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from baklava.cache.attention.backend import Backend, backend
from baklava.cache.attention.dense import soft_cap
from baklava.cache.attention.precision import converted_at_once, exact, product
from baklava.cache.ragged import RaggedEntries

# So many scores `[C, group * q, n]` are held at a time; longer questions are split.
MAX_SCORES = 2**25


@dataclass
class _Partial:
    """Softmax attention of `R` queries over some of the entries: weighted values, sum of weights, highest score."""

    weighted: Tensor  # [P, R, D]
    total: Tensor  # [P, R, 1]
    highest: Tensor  # [P, R, 1]

    @classmethod
    def of(cls, query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None, softcap: float | None) -> _Partial:
        """Scaled queries `[P, R, D]`, in float32 at least, and entries `[P, n, D]`; `hidden` where one may not look."""
        scores = product(query, keys.transpose(-1, -2))  # [P, R, n]
        if softcap is not None:
            scores = soft_cap(scores, softcap)
        if hidden is not None:
            scores = scores.masked_fill_(hidden, float("-inf"))
        # A query that may look at nothing here keeps a finite maximum, so that its weights are 0 and not NaN.
        highest = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
        weights = scores.sub_(highest).exp_()
        return cls(product(weights, values), weights.sum(-1, keepdim=True), highest)

    @classmethod
    def cat(cls, parts: Sequence[_Partial]) -> _Partial:
        """All of them, one after another."""
        return cls(*(torch.cat([getattr(one, each.name) for one in parts]) for each in fields(cls)))

    def unflatten(self, n: int) -> _Partial:
        """`[1, P * n, D]` as `[P, n, D]`."""
        return _Partial(*(one[0].unflatten(0, (-1, n)) for one in (self.weighted, self.total, self.highest)))


def ragged_attention(
    query: Tensor,
    entries: RaggedEntries,
    suffix_keys: Tensor,
    suffix_values: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention `[B, Hq, Q, D]` of the last `Q` tokens of the suffix `[B, Hkv, M, D]` to the context and the suffix.

    Every query sees the whole compressed context (KV cache `row * Hkv + head` of `entries`) and, of the suffix, itself
    and what is before it, unless `mask` `[B, 1, Q, M]` (true: visible) says otherwise. Scores, weights and sums are in
    float32 at least.
    """
    dims = (query.shape[-1], suffix_values.shape[-1])
    how: Backend = "torch" if entries.shared else backend(query.device, query.dtype, dims, softcap)
    if how == "triton":
        from baklava.cache.attention.triton_decode import ragged_decode

        return ragged_decode(query, entries, suffix_keys, suffix_values, scaling=scaling, mask=mask, softcap=softcap)
    batch, n_heads, n_queries, _ = query.shape
    n_kv_heads, n_suffix = suffix_keys.shape[1:3]
    group = n_heads // n_kv_heads
    if mask is None and n_queries > 1:
        position = torch.arange(n_suffix, device=query.device)
        mask = (position <= position[n_suffix - n_queries :, None])[None, None]  # [1, 1, Q, M]
    grouped = query.unflatten(1, (n_kv_heads, group))  # [B, Hkv, group, Q, D]
    longest = max([n_suffix, *(one.length for one in entries.layout.pieces())])
    n_entries = entries.layout.n_entries + sum(len(one.owners) * len(one.keys) for one in entries.shared)
    step = max(1, MAX_SCORES // (batch * n_heads * longest + max(1, n_heads // n_kv_heads) * n_entries))
    blocks = []
    for start in range(0, n_queries, step):
        block = grouped[..., start : start + step, :]
        packed = block.flatten(2, 3).flatten(0, 1)  # [B * Hkv, group * q, D]
        hidden = None
        if mask is not None:
            part = ~mask[:, :, None, start : start + step]  # [B or 1, 1, 1, q, M]
            hidden = part.expand(batch, n_kv_heads, group, -1, -1).flatten(2, 3).flatten(0, 1)
        scaled = exact(packed) * scaling
        suffix = _Partial.of(scaled, suffix_keys.flatten(0, 1), suffix_values.flatten(0, 1), hidden, softcap)
        if how == "varlen":
            from baklava.cache.attention.varlen import attend

            owners, outputs, log_sums = attend(packed, entries, scaling)
            context = iter([(owners, _Partial(outputs, torch.ones_like(log_sums), log_sums))])
        else:
            context = _of_context(scaled, entries, softcap)
        output = _merged(suffix, context)  # [B * Hkv, group * q, D]
        blocks.append(output.unflatten(0, (batch, n_kv_heads)).unflatten(2, (group, -1)))
    return torch.cat(blocks, -2).flatten(1, 2).to(query.dtype)


def _merged(suffix: _Partial, context: Iterator[tuple[Tensor, _Partial]]) -> Tensor:
    """The suffix's part and those of the context, by log-sum-exp."""
    own = (torch.arange(len(suffix.total), device=suffix.total.device), suffix)
    owners, parts = zip(own, *context, strict=True)
    owner, part = torch.cat(owners), _Partial.cat(parts)
    highest = suffix.highest.clone()
    highest.scatter_reduce_(0, owner[:, None, None].expand_as(part.highest), part.highest, "amax")
    weight = part.highest.sub_(highest.index_select(0, owner)).exp_()
    weighted = torch.zeros_like(suffix.weighted).index_add_(0, owner, part.weighted.mul_(weight))
    total = torch.zeros_like(suffix.total).index_add_(0, owner, part.total.mul_(weight))
    return weighted / total.clamp_(min=torch.finfo(total.dtype).tiny)  # 0 for a query that may look at nothing


def _of_context(query: Tensor, entries: RaggedEntries, softcap: float | None) -> Iterator[tuple[Tensor, _Partial]]:
    """KV caches `[P]` and attention to `P` pieces of them, for scaled queries `[C, R, D]`."""
    for one in entries.shared:  # all queries of all its owners at once
        packed = query.index_select(0, one.owners).flatten(0, 1)[None]  # [1, P * R, D]
        at_once = converted_at_once(one.keys)
        n = len(one.keys) if at_once is None else max(1, at_once // one.keys.shape[-1])
        for keys, values in zip(one.keys.split(n), one.values.split(n), strict=True):
            part = _Partial.of(packed, keys[None], values[None], None, softcap)
            yield one.owners, part.unflatten(query.shape[1])
    for pieces in entries.layout.pieces():
        yield pieces.owners, _Partial.of(query.index_select(0, pieces.owners), *entries.of(pieces), None, softcap)
    if (rest := entries.layout.rest) is not None:
        keys, values = entries.gathered(rest)
        yield rest.owners, _Partial.of(query.index_select(0, rest.owners), keys, values, rest.hidden, softcap)
