"""Compression: where budgets become the entries of a context that each KV cache keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from baklava.budgets import COMPRESS_ABOVE, Budgets
from baklava.cache.prefill import ContextLayer, ScoredGroup
from baklava.cache.projections import Paths, check_paths, find_paths
from baklava.cache.ragged_storage import RaggedEntries, before_each, slots_of
from baklava.decoder.attention_path import AttentionPath
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy, policy_named
from baklava.eviction.base import raise_protected
from baklava.eviction.kvzip import NEEDS_REPETITION


class RowSettings:
    """Budgets and eviction policy of every batch row: one for all rows, or one per row.

    A context of at most `compress_above` tokens is kept whole.
    """

    def __init__(self, budgets: Sequence[Budgets], policies: Sequence[EvictionPolicy], compress_above: int):
        if not budgets or len(policies) not in (1, len(budgets)):
            raise UserError(
                f"one eviction policy for all rows or one per row: got {len(policies)} for {len(budgets)} budgets"
            )
        self._budgets = budgets
        self.policies = policies
        self._compress_above = compress_above
        self._paths: Paths | None = None
        self._entries: dict[tuple[int, int], NDArray[np.int64]] = {}

    @classmethod
    def of(
        cls,
        budgets: Budgets | Sequence[Budgets],
        eviction: str | EvictionPolicy | Sequence[str | EvictionPolicy],
        compress_above: int | None,
    ) -> RowSettings:
        """Take what a user gave: one for all rows, or one per row; policies may be names."""
        per_row: list[Any] = list(budgets) if isinstance(budgets, list | tuple) else [budgets]
        if wrong := [value for value in per_row if not isinstance(value, Budgets)]:
            raise UserError(f"budgets must be Budgets, or one per row, got {wrong[0]!r}; Budgets.load reads a file")
        chosen: list[Any] = list(eviction) if isinstance(eviction, list | tuple) else [eviction]
        policies = [policy_named(policy) if isinstance(policy, str) else policy for policy in chosen]
        if wrong := [policy for policy in policies if not isinstance(policy, EvictionPolicy)]:
            raise UserError(f"eviction must be the name of a policy, a policy, or one per row, got {wrong[0]!r}")
        if compress_above is None:
            compress_above = COMPRESS_ABOVE
        elif type(compress_above) is not int or compress_above < 0:
            raise UserError(f"compress_above is a number of tokens, 0 or more, got {compress_above!r}")
        return cls(per_row, policies, compress_above)

    def find_projections(self, model: PreTrainedModel) -> None:
        """Find the output projections of a model, if a policy needs them."""
        self._paths = self._paths or find_paths(model, self.policies)

    def check_reading(self) -> None:
        """Raises `UserError` if a policy needs a repetition, or output projections that were not found."""
        if any(policy.repeats for policy in self.policies):
            raise UserError(NEEDS_REPETITION)
        check_paths(self.policies, self._paths)

    @property
    def needs_all_layers(self) -> bool:
        """Whether a row's policy can cut no layer before all have been read."""
        return any(policy.needs_all_layers for policy in self.policies)

    def path(self, layer_index: int) -> AttentionPath | None:
        return None if self._paths is None else self._paths[layer_index]

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raises `UserError` for budgets of another shape than (layers that see all tokens, KV heads)."""
        for budgets in self._budgets:
            if budgets.shape != shape:
                origin = f" (made for {budgets.model})" if budgets.model else ""
                raise UserError(
                    f"budgets are [layers, KV heads] {list(budgets.shape)}{origin}, the model is {list(shape)}; "
                    "use budgets that were made for this model"
                )

    def check_rows(self, n_rows: int, copies: int = 1) -> None:
        """Raises `UserError` unless there are as many rows as budgets, or `copies` of each, one after another."""
        if len(self._budgets) > 1 and n_rows not in (len(self._budgets), copies * len(self._budgets)):
            raise UserError(f"budgets for {len(self._budgets)} rows, but the batch has {n_rows}")

    def policy(self, row: int, n_rows: int) -> EvictionPolicy:
        """Return the policy of a batch row out of `n_rows`."""
        return self.policies[row * len(self.policies) // n_rows]

    def counts(self, budget_index: int, lengths: Sequence[int]) -> Tensor:
        """Budgets `[B, Hkv]` of a layer in entries, for contexts of `lengths` tokens per row."""
        rows = []
        for row, length in enumerate(lengths):
            index = row * len(self._budgets) // len(lengths)
            if (index, length) not in self._entries:  # all layers ask for the same
                self._entries[index, length] = self._budgets_of(index, length).entries(length)
            rows.append(self._entries[index, length][budget_index])
        return torch.from_numpy(np.stack(rows))

    def counts_of_layers(self, contexts: Sequence[ContextLayer], source: Tensor) -> list[Tensor]:
        """What `counts` says for every layer, after the competition of policies that need all of them.

        Row `b` comes from row `source[b]` of the contexts.
        """
        lengths = _lengths(contexts[0], source).tolist()
        counts = torch.stack([self.counts(index, lengths) for index in range(len(contexts))])
        policies = [self.policy(row, len(source)) for row in range(len(source))]
        return list(compete_over_layers(contexts, policies, counts, source))

    def _budgets_of(self, index: int, length: int) -> Budgets:
        """The budgets for a context of `length` tokens; a short one is kept whole."""
        budgets = self._budgets[index]
        if length > self._compress_above:
            return budgets
        return Budgets.uniform(n_layers=budgets.shape[0], n_kv_heads=budgets.shape[1], ratio=0.0)


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
    context: ContextLayer, settings: RowSettings, counts: Tensor, source: Tensor, *, share: bool = False
) -> CompressedContext:
    """Keep the best entries of every row and KV head, as its policy ranks them and `counts` `[B, Hkv]` allow.

    Row `b` of the result comes from row `source[b]` of the context. With `share`, KV caches that are fully kept read
    the context itself, and cannot be overwritten.
    """
    assert context.keys is not None and context.values is not None
    n_rows = len(source)
    lengths = _lengths(context, source)
    device = context.keys.device
    policies = [settings.policy(row, n_rows) for row in range(n_rows)]
    counts, rank, sinks = rank_entries(context, policies, counts, source)
    kept = rank < counts.to(device)[:, :, None]  # [B, Hkv, T]
    entries = RaggedEntries.gather(context.keys, context.values, source.to(device), kept.flatten(0, 1), share=share)
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
