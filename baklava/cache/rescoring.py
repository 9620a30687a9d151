"""Entries are scored anew while tokens overwrite others (decoding "fixed"), for policies that ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baklava.cache.ragged_storage import RaggedEntries
from baklava.eviction import EvictionPolicy
from baklava.eviction.held import HeldEntries

MAX_WEIGHTS = 2**25  # attention weights, or numbers in keys and values, that are copied at a time


@dataclass
class Rescoring:
    """What one layer remembers of its entries and queries, for rows of which some have policies that score anew.

    `positions` and `scores` `[C, N]` belong to slots of the `C = B * Hkv` KV caches; `queries` `[B, Hq, Q, D]` are the
    latest, and `n_new` how many came since a policy scored.
    """

    policies: Sequence[EvictionPolicy]  # one per row
    positions: Tensor
    scores: Tensor
    queries: Tensor | None = None
    n_new: dict[EvictionPolicy, int] = field(default_factory=dict)

    @classmethod
    def of(cls, policies: Sequence[EvictionPolicy], kept: Tensor, padding: Tensor, scores: Tensor) -> Rescoring | None:
        """Begin with the entries `kept` `[B, Hkv, T]` of a context and their scores; None if no policy scores anew.

        `padding` `[B]` comes before each row's first token.
        """
        if all(policy.rescores_every is None for policy in policies):
            return None
        flat = kept.flatten(0, 1)  # [C, T]
        n = int(flat.sum(-1).max())
        first = (~flat).int().argsort(dim=-1, stable=True)[:, :n]  # kept positions, in the order of the text
        own = padding.to(kept.device).repeat_interleave(kept.shape[1])[:, None]
        missing = ~flat.gather(1, first)
        positions = (first - own).masked_fill_(missing, -1)
        return cls(policies, positions, scores.flatten(0, 1).gather(1, first).masked_fill_(missing, 0.0))

    def select_rows(self, rows: Tensor) -> Rescoring:
        """Copy these batch rows, in this order."""
        rows = rows.cpu()
        n_kv_heads = len(self.positions) // len(self.policies)
        caches = (rows[:, None] * n_kv_heads + torch.arange(n_kv_heads)).flatten().to(self.positions.device)
        queries = None if self.queries is None else self.queries[rows.to(self.queries.device)]
        policies = [self.policies[row] for row in rows.tolist()]
        return Rescoring(policies, self.positions[caches], self.scores[caches], queries, dict(self.n_new))

    def write(self, caches: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Note that new tokens at `positions` `[M]` overwrote slots `[M]` of KV caches `[M]`."""
        self.positions[caches, slots] = positions
        self.scores[caches, slots] = 0.0

    def observe(self, queries: Tensor) -> list[EvictionPolicy]:
        """Remember the queries `[B, Hq, Q, D]` of new tokens; returns the policies whose turn it is to score."""
        self.queries = queries if self.queries is None else torch.cat([self.queries, queries], 2)
        due = []
        for policy in dict.fromkeys(self.policies):
            if policy.rescores_every is not None:
                self.n_new[policy] = self.n_new.get(policy, 0) + queries.shape[2]
                if self.n_new[policy] >= policy.rescores_every:
                    due.append(policy)
        return due

    def rank(
        self,
        policy: EvictionPolicy,
        entries: RaggedEntries,
        last_positions: Tensor,
        *,
        scaling: float,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor]:
        """Let a policy score what its rows hold: their KV caches `[P]`, and the rank of each slot `[P, N]`, best first.

        `last_positions` `[B]` are those of the rows' latest tokens.
        """
        assert self.queries is not None
        device = self.positions.device
        n_kv_heads = len(self.positions) // len(self.policies)
        rows = torch.tensor([row for row, own in enumerate(self.policies) if own == policy], device=device)
        caches = (rows[:, None] * n_kv_heads + torch.arange(n_kv_heads, device=device)).flatten()
        n_queries = min(policy.n_queries(self.n_new[policy]), self.queries.shape[2])
        queries = self.queries[rows, :, -n_queries:].unflatten(1, (n_kv_heads, -1)).flatten(0, 1)  # [P, group, q, D]
        back = torch.arange(n_queries, device=device).flip(0)
        query_positions = (last_positions.to(device)[rows, None] - back).repeat_interleave(n_kv_heads, 0)
        n = int(entries.layout.counts[caches.cpu()].max())
        step = max(1, MAX_WEIGHTS // max(1, n * max(queries.shape[1] * n_queries, 2 * queries.shape[-1])))
        ranks = torch.empty(len(caches), n, dtype=torch.int64, device=device)
        for block in torch.arange(len(caches) if n else 0, device=device).split(step):
            ranks[block] = self._rank_block(
                policy, entries, caches[block], n, queries[block], query_positions[block], scaling, softcap
            )
        self.n_new[policy] = 0
        self._forget()
        return caches, ranks

    def _rank_block(
        self,
        policy: EvictionPolicy,
        entries: RaggedEntries,
        caches: Tensor,
        n: int,
        queries: Tensor,
        query_positions: Tensor,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        positions = self.positions[caches, :n]
        last = torch.iinfo(positions.dtype).max
        slots = positions.masked_fill(positions < 0, last).argsort(dim=-1, stable=True)  # in the order of the text
        positions = positions.gather(1, slots)
        missing = positions < 0
        where = entries.layout.positions(caches[:, None].expand_as(slots).flatten(), slots.flatten())
        where = where.masked_fill(missing.flatten(), 0)
        held = HeldEntries(
            entries.keys[where].unflatten(0, slots.shape),
            entries.values[where].unflatten(0, slots.shape),
            positions,
            self.scores[caches[:, None], slots],
            scaling,
            softcap,
        )
        scores = policy.rescore(held, queries, query_positions)
        self.scores[caches[:, None], slots] = scores.masked_fill(missing, 0.0).to(self.scores.dtype)
        raised = _raise_protected(scores, policy, positions).masked_fill(missing, float("-inf"))
        order = slots.gather(1, raised.argsort(dim=-1, descending=True, stable=True))
        rank = torch.arange(n, device=order.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, rank)

    def _forget(self) -> None:
        """Drop queries that no policy will ask for."""
        assert self.queries is not None
        most = max(policy.n_queries(n) for policy, n in self.n_new.items())
        self.queries = self.queries[:, :, max(0, self.queries.shape[2] - most) :].clone()


def _raise_protected(scores: Tensor, policy: EvictionPolicy, positions: Tensor) -> Tensor:
    """Raise the scores `[C, N]` of protected entries above all others; entries are in the order of the text."""
    counts = (positions >= 0).sum(-1)
    raised = scores.to(torch.promote_types(scores.dtype, torch.float32), copy=True)
    index = torch.arange(scores.shape[1], device=scores.device)
    highest = raised.masked_fill(positions < 0, float("-inf")).amax(-1, keepdim=True).nan_to_num(neginf=0.0) + 1.0
    first = torch.tensor([policy.protected_first(n) for n in counts.tolist()], device=scores.device)[:, None]
    last = torch.tensor([policy.protected_last(n) for n in counts.tolist()], device=scores.device)[:, None]
    raised = torch.where(index >= counts[:, None] - last, highest + index, raised)
    return torch.where(positions < first, highest + (2 * len(index) - index), raised)
