"""Compression: where budgets become the entries of a context that each KV cache keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baklava.cache.prefill import ContextLayer, ScoredGroup
from baklava.cache.ragged_layout import before_each, slots_of
from baklava.cache.ragged_storage import RaggedEntries
from baklava.cache.row_settings import RowSettings
from baklava.eviction import EvictionPolicy
from baklava.eviction.base import raise_protected


@dataclass
class CompressedContext:
    """What one layer keeps of its context: `counts` `[B, Hkv]` entries, and the order in which to overwrite them.

    `lengths` `[B]` counts the tokens of each row's context. `ring` lists, cache by cache, the slots that later tokens
    may overwrite, least important first; sinks are not in it. `written` tokens were written to every ring so far.
    """

    counts: Tensor
    lengths: Tensor
    entries: RaggedEntries
    ring: Tensor  # [sum of ring_counts]
    ring_counts: Tensor  # [B * Hkv]
    written: int = 0

    @classmethod
    def concatenate(cls, contexts: Sequence[CompressedContext]) -> CompressedContext:
        """Put the rows of several contexts one after another; equally many tokens were written to all of them."""
        return cls(
            torch.cat([context.counts for context in contexts]),
            torch.cat([context.lengths for context in contexts]),
            RaggedEntries.concatenate([context.entries for context in contexts]),
            torch.cat([context.ring for context in contexts]),
            torch.cat([context.ring_counts for context in contexts]),
            contexts[0].written,
        )

    def select_rows(self, rows: Tensor) -> CompressedContext:
        """Copy these batch rows, in this order; a row may occur more than once."""
        n_kv_heads = self.counts.shape[1]
        caches = (rows.cpu()[:, None] * n_kv_heads + torch.arange(n_kv_heads)).flatten()
        new, slots = slots_of(self.ring_counts[caches])
        before = before_each(self.ring_counts)
        ring = self.ring[(before[caches][new] + slots).to(self.ring.device)]
        rows = rows.cpu()
        return CompressedContext(
            self.counts[rows],
            self.lengths[rows],
            self.entries.select(caches),
            ring,
            self.ring_counts[caches],
            self.written,
        )

    def row_bytes(self) -> Tensor:
        """Bytes `[B]` of the entries of each row."""
        return self.entries.cache_bytes(self.counts.flatten()).view_as(self.counts).sum(-1)

    def overwrite(self, keys: Tensor, values: Tensor) -> None:
        """Overwrite the entries that are next in each ring with new tokens `[B, Hkv, Q, D]`."""
        n_new = keys.shape[2]
        n_written = self.ring_counts.clamp(max=n_new)  # of a step longer than the ring, only the last tokens stay
        caches, nth = slots_of(n_written)
        token = n_new - n_written[caches] + nth
        before = before_each(self.ring_counts)
        turn = before[caches] + (self.written + token) % self.ring_counts[caches].clamp(min=1)
        device = keys.device
        caches, token = caches.to(device), token.to(device)
        slots = self.ring[turn.to(device)]
        self.entries.write(caches, slots, keys.flatten(0, 1)[caches, token], values.flatten(0, 1)[caches, token])
        self.written += n_new


def counts_of_layers(settings: RowSettings, contexts: Sequence[ContextLayer], source: Tensor) -> list[Tensor]:
    """What `settings.counts` says for every layer, after the competition of policies that need all of them.

    Row `b` comes from row `source[b]` of the contexts.
    """
    lengths = _lengths(contexts[0], source).tolist()
    counts = torch.stack([settings.counts(index, lengths) for index in range(len(contexts))])
    policies = [settings.policy(row, len(source)) for row in range(len(source))]
    return list(compete_over_layers(contexts, policies, counts, source))


def compete_over_layers(
    contexts: Sequence[ContextLayer], policies: Sequence[EvictionPolicy], counts: Tensor, source: Tensor
) -> Tensor:
    """Counts `[L, B, Hkv]` of all layers as distributed by those of the rows' policies that need all layers."""
    counts = counts.clone()
    for policy in dict.fromkeys(policies):
        if not policy.needs_all_layers:
            continue
        rows = torch.tensor([row for row, own in enumerate(policies) if own == policy])
        for layers in zip(*(context.scores(policy) for context in contexts), strict=True):
            members = layers[0].group.indices_of(source[rows])
            for row, member in zip(rows.tolist(), members.tolist(), strict=True):
                if member >= 0:
                    scores = [layer.scores[member] for layer in layers]
                    counts[:, row] = policy.distribute_over_layers(scores, counts[:, row])
    return counts


def compress(
    context: ContextLayer,
    settings: RowSettings,
    budget_index: int,
    counts: Tensor,
    source: Tensor,
    *,
    share: bool = False,
) -> CompressedContext:
    """Keep the best entries of every row and KV head, as its policy ranks them and `counts` `[B, Hkv]` allow.

    Row `b` of the result comes from row `source[b]` of the context. Entries are stored in the bits that the settings
    say for the layer. With `share`, KV caches that are fully kept as they are read the context itself, and cannot be
    overwritten.
    """
    assert context.keys is not None and context.values is not None
    n_rows = len(source)
    lengths = _lengths(context, source)
    device = context.keys.device
    policies = [settings.policy(row, n_rows) for row in range(n_rows)]
    counts, rank, sinks = rank_entries(context, policies, counts, source)
    kept = rank < counts.to(device)[:, :, None]  # [B, Hkv, T]
    entries = RaggedEntries.gather(
        context.keys,
        context.values,
        source.to(device),
        kept.flatten(0, 1),
        share=share,
        bits=settings.bits(budget_index, lengths.tolist()),
        packing=settings.packing,
    )
    ring_counts = (counts - torch.minimum(counts, sinks)).flatten()
    ring = _build_ring(rank[kept], counts.flatten(), ring_counts)
    return CompressedContext(counts, lengths, entries, ring, ring_counts)


def _lengths(context: ContextLayer, source: Tensor) -> Tensor:
    return torch.tensor(context.lengths())[source.cpu()]


def rank_entries(
    context: ContextLayer, policies: Sequence[EvictionPolicy], counts: Tensor, source: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the entries of a context for rows with a policy and `counts` `[B, Hkv]` each.

    Returns the counts as the policies distribute them, the rank of every entry `[B, Hkv, T]` (0: best; `T`: padding),
    and the number of sinks `[B, Hkv]`. Those with a rank below its count stay in a KV cache.
    """
    assert context.keys is not None
    n_kv_heads, length = context.keys.shape[1:3]
    rank = torch.full((len(source), n_kv_heads, length), length, device=context.keys.device)
    counts, sinks = counts.clone(), torch.zeros_like(counts)
    for policy in dict.fromkeys(policies):
        rows = torch.tensor([row for row, own in enumerate(policies) if own == policy])
        for scored in context.scores(policy):
            _rank(policy, scored, rows, source, counts, rank, sinks)
    return counts, rank, sinks


def _rank(
    policy: EvictionPolicy,
    scored: ScoredGroup,
    rows: Tensor,
    source: Tensor,
    counts: Tensor,
    rank: Tensor,
    sinks: Tensor,
) -> None:
    """Fill in `counts`, `sinks` and `rank` for the rows of one policy and group."""
    group, scores, order_scores = scored
    members = group.indices_of(source[rows])  # index in the group's scores, -1 for rows of other groups
    rows, members = rows[members >= 0], members[members >= 0]
    if not len(rows):
        return
    counts[rows] = policy.distribute(scores[members.to(scores.device)], counts[rows].to(scores.device)).cpu()
    n_kv_heads, n = scores.shape[1:]
    protected = {
        count: (policy.protected_first(count), policy.protected_last(count)) for count in counts[rows].unique().tolist()
    }
    for first, last in dict.fromkeys(protected.values()):
        same = [count for count, pair in protected.items() if pair == (first, last)]
        row, head = torch.isin(counts[rows], torch.tensor(same)).nonzero(as_tuple=True)
        caches, back = (members[row] * n_kv_heads + head).unique(return_inverse=True)
        raised = raise_protected(order_scores.flatten(0, 1)[caches.to(scores.device)], policy, same[0])  # [P, n]
        order = raised.argsort(dim=-1, descending=True, stable=True)
        ranks = torch.empty_like(order).scatter_(-1, order, torch.arange(n, device=order.device).expand_as(order))
        rank[rows[row].to(rank.device), head.to(rank.device), group.padding :] = ranks[back.to(order.device)]
        sinks[rows[row], head] = min(first, n)


def _build_ring(rank: Tensor, counts: Tensor, ring_counts: Tensor) -> Tensor:
    """List the slots to overwrite, cache by cache, least important first.

    `rank` `[N]` is that of every kept entry, slot by slot; the highest is the least important.
    """
    device = rank.device
    caches, slots = slots_of(counts.to(device))
    turn = counts.to(device)[caches] - 1 - rank
    free = turn < ring_counts.to(device)[caches]
    before = before_each(ring_counts).to(device)
    ring = torch.empty(int(ring_counts.sum()), dtype=torch.int64, device=device)
    ring[before[caches[free]] + turn[free]] = slots[free]
    return ring
