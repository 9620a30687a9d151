"""Attention of new tokens to a compressed context and to the suffix, the tokens after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from baklava.cache.attention import packed_products
from baklava.cache.attention.backend import Backend, choose_backend
from baklava.cache.attention.dense import soft_cap
from baklava.cache.attention.precision import at_least_float32, max_converted, multiply
from baklava.cache.quantised import Quantised
from baklava.cache.ragged_storage import RaggedEntries

# Scores `[C, group * q, n]` that are held at a time; longer questions are split.
MAX_SCORES = 2**25


@dataclass
class _Partial:
    """Softmax attention of `R` queries over some of the entries, before it is normalised."""

    weighted: Tensor  # [P, R, D], sum of weighted values
    total: Tensor  # [P, R, 1], sum of weights
    highest: Tensor  # [P, R, 1], highest score

    @classmethod
    def of(cls, query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None, softcap: float | None) -> _Partial:
        """Attend with scaled queries `[P, R, D]`, in float32 at least, to entries `[P, n, D]` that are not `hidden`."""
        scores = multiply(query, keys.transpose(-1, -2))  # [P, R, n]
        weights, highest = _softmax_weights(scores, hidden, softcap)
        return cls(multiply(weights, values), weights.sum(-1, keepdim=True), highest)

    @classmethod
    def of_packed(cls, query: Tensor, keys: Quantised, values: Quantised, softcap: float | None) -> _Partial:
        """Attend with scaled queries `[P, R, D]`, in float32 at least, to a block of groups of each KV cache."""
        weights, highest = _softmax_weights(packed_products.scores(query, keys), None, softcap)
        return cls(packed_products.weigh(weights, values), weights.sum(-1, keepdim=True), highest)

    @classmethod
    def of_output(cls, output: Tensor, log_sums: Tensor) -> _Partial:
        """What a kernel returns: outputs `[P, R, D]`, which are normalised, and log-sum-exps `[P, R, 1]`."""
        return cls(output, torch.ones_like(log_sums), log_sums)

    @classmethod
    def concatenate(cls, partials: Sequence[_Partial]) -> _Partial:
        return cls(*(torch.cat([getattr(partial, field.name) for partial in partials]) for field in fields(cls)))

    def unflatten(self, n: int) -> _Partial:
        """Reshape `[1, P * n, D]` to `[P, n, D]`."""
        return _Partial(*(tensor[0].unflatten(0, (-1, n)) for tensor in (self.weighted, self.total, self.highest)))


def _softmax_weights(scores: Tensor, hidden: Tensor | None, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Turn scores `[P, R, n]` into weights, in place, and find the highest score `[P, R, 1]`."""
    if softcap is not None:
        scores = soft_cap(scores, softcap)
    if hidden is not None:
        scores = scores.masked_fill_(hidden, float("-inf"))
    # A query that sees nothing here keeps a finite maximum, so that its weights are 0 and not NaN.
    highest = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    return scores.sub_(highest).exp_(), highest


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

    Every query sees the entire compressed context (KV cache `row * Hkv + head` of `entries`). Of the suffix it sees
    itself and what is before it, unless `mask` `[B, 1, Q, M]` (true: visible) says otherwise. Scores, weights and sums
    are in float32 at least.
    """
    dims = (query.shape[-1], suffix_values.shape[-1])
    backend: Backend = "torch" if entries.shared else choose_backend(query.device, query.dtype, dims, softcap)
    if backend == "triton":
        from baklava.cache.attention import triton_packed
        from baklava.cache.attention.triton_decode import ragged_decode

        if all(map(triton_packed.reads, entries.packed)):
            earlier = triton_packed.attend(query, entries.packed, scaling=scaling, softcap=softcap)
            return ragged_decode(
                query,
                entries,
                suffix_keys,
                suffix_values,
                scaling=scaling,
                mask=mask,
                softcap=softcap,
                earlier=earlier,
            )
    batch, n_heads, n_queries, _ = query.shape
    n_kv_heads, n_suffix = suffix_keys.shape[1:3]
    group = n_heads // n_kv_heads
    if mask is None and n_queries > 1:
        position = torch.arange(n_suffix, device=query.device)
        mask = (position <= position[n_suffix - n_queries :, None])[None, None]  # [1, 1, Q, M]
    grouped = query.unflatten(1, (n_kv_heads, group))  # [B, Hkv, group, Q, D]
    longest = max([n_suffix, *(blocks.length for blocks in entries.layout.blocks())])
    n_shared = sum(len(shared.owners) * len(shared.keys) for shared in entries.shared)
    n_entries = entries.layout.n_entries + n_shared + sum(int(packed.counts.sum()) for packed in entries.packed)
    step = max(1, MAX_SCORES // (batch * n_heads * longest + group * n_entries))
    outputs = []
    for start in range(0, n_queries, step):
        packed = grouped[..., start : start + step, :].flatten(2, 3).flatten(0, 1)  # [B * Hkv, group * q, D]
        hidden = None
        if mask is not None:
            hidden = ~mask[:, :, None, start : start + step]  # [B or 1, 1, 1, q, M]
            hidden = hidden.expand(batch, n_kv_heads, group, -1, -1).flatten(2, 3).flatten(0, 1)
        scaled = at_least_float32(packed) * scaling
        suffix = _Partial.of(scaled, suffix_keys.flatten(0, 1), suffix_values.flatten(0, 1), hidden, softcap)
        if backend == "varlen" and not entries.packed:
            from baklava.cache.attention.varlen import attend

            owners, results, log_sums = attend(packed, entries, scaling)
            context = iter([(owners, _Partial.of_output(results, log_sums))])
        else:
            context = _attend_to_context(scaled, entries, softcap)
        output = _merge(suffix, context)  # [B * Hkv, group * q, D]
        outputs.append(output.unflatten(0, (batch, n_kv_heads)).unflatten(2, (group, -1)))
    return torch.cat(outputs, -2).flatten(1, 2).to(query.dtype)


def _merge(suffix: _Partial, context: Iterator[tuple[Tensor, _Partial]]) -> Tensor:
    """Merge attention to the suffix with that to stretches of the context, by log-sum-exp."""
    own = (torch.arange(len(suffix.total), device=suffix.total.device), suffix)
    owners, partials = zip(own, *context, strict=True)
    owner, partial = torch.cat(owners), _Partial.concatenate(partials)
    highest = suffix.highest.clone()
    highest.scatter_reduce_(0, owner[:, None, None].expand_as(partial.highest), partial.highest, "amax")
    weight = partial.highest.sub_(highest.index_select(0, owner)).exp_()
    weighted = torch.zeros_like(suffix.weighted).index_add_(0, owner, partial.weighted.mul_(weight))
    total = torch.zeros_like(suffix.total).index_add_(0, owner, partial.total.mul_(weight))
    return weighted / total.clamp_(min=torch.finfo(total.dtype).tiny)  # 0 for a query that sees nothing


def _attend_to_context(
    query: Tensor, entries: RaggedEntries, softcap: float | None
) -> Iterator[tuple[Tensor, _Partial]]:
    """Yield KV caches `[P]` and their attention to `P` stretches of the context, for scaled queries `[C, R, D]`."""
    for shared in entries.shared:  # all queries of all its owners at once
        packed = query.index_select(0, shared.owners).flatten(0, 1)[None]  # [1, P * R, D]
        n_elements = max_converted(shared.keys)
        n = len(shared.keys) if n_elements is None else max(1, n_elements // shared.keys.shape[-1])
        for keys, values in zip(shared.keys.split(n), shared.values.split(n), strict=True):
            partial = _Partial.of(packed, keys[None], values[None], None, softcap)
            yield shared.owners, partial.unflatten(query.shape[1])
    for stored in entries.packed:  # one block after another, never all of them in full
        for owners, keys, values in stored.blocks():
            yield owners, _Partial.of_packed(query.index_select(0, owners), keys, values, softcap)
    for blocks in entries.layout.blocks():
        queries = query.index_select(0, blocks.owners)
        yield blocks.owners, _Partial.of(queries, *entries.view_blocks(blocks), None, softcap)
    if (remainder := entries.layout.remainder) is not None:
        queries = query.index_select(0, remainder.owners)
        keys, values = entries.gather_remainder(remainder)
        yield remainder.owners, _Partial.of(queries, keys, values, remainder.hidden, softcap)
