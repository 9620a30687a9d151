"""Compression: where budgets become the entries of a context that each KV cache keeps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from baklava.cache.compressed_context import CompressedContext, build_ring
from baklava.cache.prefill import ContextLayer, ScoredGroup
from baklava.cache.ragged_storage import RaggedEntries
from baklava.cache.rescoring import Rescoring
from baklava.cache.row_settings import RowSettings
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy
from baklava.eviction.base import raise_protected


def counts_of_layers(settings: RowSettings, contexts: Sequence[ContextLayer], source: Tensor) -> list[Tensor]:
    """What `settings.counts` says for every layer, after the competition of policies that need all of them.

    Row `b` comes from row `source[b]` of the contexts.
    """
    lengths = _lengths(contexts[0], source).tolist()
    assert contexts[0].keys is not None
    itemsize = contexts[0].keys.element_size()
    counts = torch.stack([settings.counts(index, lengths, itemsize) for index in range(len(contexts))])
    policies = [settings.policy(row, len(source)) for row in range(len(source))]
    return list(settings.within_bytes(compete_over_layers(contexts, policies, counts, source), counts, lengths))


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
                    orders = [layer.order[member] for layer in layers]
                    counts[:, row] = policy.distribute_over_layers(scores, orders, counts[:, row])
    return counts


def compress(
    context: ContextLayer,
    settings: RowSettings,
    budget_index: int,
    counts: Tensor,
    source: Tensor,
    *,
    share: bool = False,
    overwritten: bool = False,
) -> CompressedContext:
    """Keep the best entries of every row and KV head, as its policy ranks them and `counts` `[B, Hkv]` allow.

    Row `b` of the result comes from row `source[b]` of the context. Entries are stored in the bits that the settings
    say for the layer. With `share`, KV caches that are fully kept as they are read the context itself, and cannot be
    overwritten. Where entries will be `overwritten`, policies may score them again.
    """
    assert context.keys is not None and context.values is not None
    n_rows = len(source)
    lengths = _lengths(context, source)
    device = context.keys.device
    policies = [settings.policy(row, n_rows) for row in range(n_rows)]
    n_tokens = lengths.tolist()
    own = settings.counts(budget_index, n_tokens, context.keys.element_size())
    distributed, rank, sinks = rank_entries(context, policies, counts, source, own)
    counts = settings.within_bytes(distributed, counts, n_tokens, budget_index)
    kept = rank < counts.to(device)[:, :, None]  # [B, Hkv, T]
    bits = settings.bits(budget_index, n_tokens)
    entries = RaggedEntries.gather(
        context.keys,
        context.values,
        source.to(device),
        kept.flatten(0, 1),
        share=share,
        bits=bits,
        packing=settings.packing,
    )
    ring_counts = (counts - torch.minimum(counts, sinks)).flatten()
    ring = build_ring(rank[kept], counts.flatten(), ring_counts)
    rescoring = None
    if overwritten and (scoring := [policy for policy in policies if policy.rescores_every is not None]):
        if bits is not None:
            raise UserError(
                f"{scoring[0].family} scores what KV caches hold, which must not be quantised; leave bits out"
            )
        rescoring = Rescoring.of(policies, kept, context.seen - lengths, _first_scores(context, policies, source, rank))
    return CompressedContext(counts, lengths, entries, ring, ring_counts, rescoring=rescoring)


def _first_scores(context: ContextLayer, policies: Sequence[EvictionPolicy], source: Tensor, like: Tensor) -> Tensor:
    """Scores `[B, Hkv, T]` that policies go on adding to, 0 where they begin anew."""
    assert context.keys is not None
    exact = torch.promote_types(context.keys.dtype, torch.float32)
    first = torch.zeros(like.shape, dtype=exact, device=like.device)
    for policy in dict.fromkeys(policy for policy in policies if policy.adds_scores):
        rows = torch.tensor([row for row, own in enumerate(policies) if own == policy])
        for group, scores, _ in context.scores(policy):
            members = group.indices_of(source[rows])
            own = (members >= 0).nonzero().squeeze(-1)
            chosen = scores[members[own].to(scores.device)]
            first[rows[own].to(first.device), :, group.padding :] = chosen.to(exact)
    return first


def _lengths(context: ContextLayer, source: Tensor) -> Tensor:
    return torch.tensor(context.lengths())[source.cpu()]


def rank_entries(
    context: ContextLayer,
    policies: Sequence[EvictionPolicy],
    counts: Tensor,
    source: Tensor,
    own: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the entries of a context for rows with a policy and `counts` `[B, Hkv]` each.

    `own` `[B, Hkv]` are the budgets before KV caches of all layers competed for `counts`, if they did. Returns the
    counts as the policies distribute them, the rank of every entry `[B, Hkv, T]` (0: best; `T`: padding), and the
    number of sinks `[B, Hkv]`. Those with a rank below its count stay in a KV cache.
    """
    assert context.keys is not None
    n_kv_heads, length = context.keys.shape[1:3]
    rank = torch.full((len(source), n_kv_heads, length), length, device=context.keys.device)
    counts, sinks = counts.clone(), torch.zeros_like(counts)
    for policy in dict.fromkeys(policies):
        rows = torch.tensor([row for row, other in enumerate(policies) if other == policy])
        for scored in context.scores(policy):
            _rank(policy, scored, rows, source, counts, own, rank, sinks)
    return counts, rank, sinks


def _rank(
    policy: EvictionPolicy,
    scored: ScoredGroup,
    rows: Tensor,
    source: Tensor,
    counts: Tensor,
    own: Tensor,
    rank: Tensor,
    sinks: Tensor,
) -> None:
    """Fill in `counts`, `sinks` and `rank` for the rows of one policy and group, which had the budgets `own`."""
    group, scores, order_scores = scored
    members = group.indices_of(source[rows])  # index in the group's scores, -1 for rows of other groups
    rows, members = rows[members >= 0], members[members >= 0]
    if not len(rows):
        return
    at = members.to(scores.device)
    counts[rows] = policy.distribute(scores[at], order_scores[at], counts[rows].to(scores.device)).cpu()
    n_kv_heads, n = scores.shape[1:]
    protected = {
        count: (policy.protected_first(count), policy.protected_last(count)) for count in counts[rows].unique().tolist()
    }
    budgets = own[rows].unique().tolist() if policy.ranks_by_bids else [None]
    for (first, last), budget in product(dict.fromkeys(protected.values()), budgets):
        same = [count for count, pair in protected.items() if pair == (first, last)]
        chosen = torch.isin(counts[rows], torch.tensor(same))
        row, head = (chosen if budget is None else chosen & (own[rows] == budget)).nonzero(as_tuple=True)
        caches, back = (members[row] * n_kv_heads + head).unique(return_inverse=True)
        caches = caches.to(scores.device)
        ranked = order_scores.flatten(0, 1)[caches]
        if budget is not None:
            ranked = policy.bids(scores.flatten(0, 1)[caches], ranked, budget)
        raised = raise_protected(ranked, policy, same[0])  # [P, n]
        order = raised.argsort(dim=-1, descending=True, stable=True)
        ranks = torch.empty_like(order).scatter_(-1, order, torch.arange(n, device=order.device).expand_as(order))
        rank[rows[row].to(rank.device), head.to(rank.device), group.padding :] = ranks[back.to(order.device)]
        sinks[rows[row], head] = min(first, n)
