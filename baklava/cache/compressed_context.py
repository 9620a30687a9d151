"""What one layer keeps of a context, and the order in which later tokens overwrite it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baklava.cache.ragged_layout import before_each, slots_of, writable
from baklava.cache.ragged_storage import RaggedEntries
from baklava.cache.rescoring import Rescoring


@dataclass
class CompressedContext:
    """What one layer keeps of its context: `counts` `[B, Hkv]` entries, and the order in which to overwrite them.

    `lengths` `[B]` counts the tokens of each row's context. `ring` lists, cache by cache, the slots that later tokens
    may overwrite, least important first; sinks are not in it. `written` tokens were written to every ring so far, of
    these `ordered_at` `[B * Hkv]` when a ring was last put in order. `rescoring` does that, if a policy wants it.
    """

    counts: Tensor
    lengths: Tensor
    entries: RaggedEntries
    ring: Tensor  # [sum of ring_counts]
    ring_counts: Tensor  # [B * Hkv]
    written: int = 0
    rescoring: Rescoring | None = None
    ordered_at: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))

    def __post_init__(self) -> None:
        self.ordered_at = self.ordered_at.expand(len(self.ring_counts))

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
            None if self.rescoring is None else self.rescoring.select_rows(rows),
            self.ordered_at[caches],
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
        turn = before[caches] + (self.written - self.ordered_at[caches] + token) % self.ring_counts[caches].clamp(min=1)
        position = self.lengths[caches // self.counts.shape[1]] + self.written + token
        device = keys.device
        caches, token = caches.to(device), token.to(device)
        slots = self.ring[turn.to(device)]
        if self.rescoring is not None:
            self.rescoring.write(caches, slots, position.to(device))
        self.entries.write(caches, slots, keys.flatten(0, 1)[caches, token], values.flatten(0, 1)[caches, token])
        self.written += n_new

    def rescore(self, queries: Tensor, *, scaling: float, softcap: float | None) -> None:
        """Put rings in a new order where it is a policy's turn, after the tokens of `queries` `[B, Hq, Q, D]`."""
        if self.rescoring is None:
            return
        last = self.lengths + self.written - 1
        for policy in self.rescoring.observe(queries):
            caches, ranks = self.rescoring.rank(policy, self.entries, last, scaling=scaling, softcap=softcap)
            self._reorder(caches, ranks)

    def _reorder(self, caches: Tensor, ranks: Tensor) -> None:
        """Order the rings of KV caches `[P]` by the ranks `[P, N]` of their slots."""
        device, own = self.ring.device, caches.cpu()
        slots = torch.arange(ranks.shape[1], device=device).expand_as(ranks)
        turn = self.counts.flatten()[own].to(device)[:, None] - 1 - ranks
        free = (turn >= 0) & (turn < self.ring_counts[own].to(device)[:, None])
        where = before_each(self.ring_counts)[own].to(device)[:, None] + turn
        self.ring = writable(self.ring)
        self.ring[where[free]] = slots[free]
        self.ordered_at = self.ordered_at.clone()
        self.ordered_at[own] = self.written


def build_ring(rank: Tensor, counts: Tensor, ring_counts: Tensor) -> Tensor:
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
