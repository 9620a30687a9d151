"""Policies that score while tokens overwrite entries hold what a naive simulation holds, entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from kept_entries import uniform
from tiny_models import random_model, random_tokens
from torch import Tensor

from baklava import BudgetedCache, Budgets
from baklava.cache import budgeted_layer
from baklava.errors import UserError
from baklava.eviction import RKV, AdaKV, Critical, EvictionPolicy, H2ODecoding, SnapKVDecoding, StreamingLLM

N_CONTEXT, N_HEADS, N_KV_HEADS = 40, 4, 2
GROUP = N_HEADS // N_KV_HEADS
STEPS = (7, 1, 1, 1, 1, 1, 4, 1, 1, 1, 1, 1, 1)
POLICIES: list[EvictionPolicy] = [
    SnapKVDecoding(window_size=4, kernel_size=3, every=3),
    SnapKVDecoding(window_size=64, every=1),
    H2ODecoding(),
    H2ODecoding(recent=0.25, every=4),
    RKV(window_size=3, kernel_size=3, weight=0.4, threshold=0.2, every=5),
    AdaKV(inner=RKV(every=2), floor=0.5),
]


@dataclass
class Cache:
    """One KV cache of the simulation: its entries by position, and which of them are overwritten next."""

    held: dict[int, Tensor]  # keys
    scores: dict[int, float]
    order: list[int]  # positions, least important first
    turn: int = 0
    since: int = 0

    def read(self, keys: Tensor, first: int) -> None:
        """Overwrite with the keys `[Q, D]` of tokens from a position on."""
        n = len(self.order)
        for token in range(len(keys)):
            if n and token >= len(keys) - n:
                slot = (self.turn + token) % n
                old = self.order[slot]
                del self.held[old]
                self.scores.pop(old)
                self.order[slot] = first + token
                self.held[first + token], self.scores[first + token] = keys[token], 0.0
        self.turn += len(keys)

    def rescore(self, policy: EvictionPolicy, queries: dict[int, Tensor]) -> None:
        """Put what may be overwritten in a new order; queries `[group, D]` by position."""
        inner = policy.inner if isinstance(policy, AdaKV) else policy
        at = sorted(self.held)
        scores = {SnapKVDecoding: snapkv, H2ODecoding: h2o, RKV: r_kv}[type(inner)](self, inner, at, queries)
        self.scores = dict(scores)
        n_last = min(policy.protected_last(len(at)), len(at))
        late = at[len(at) - n_last :]
        self.order = [*sorted(set(at) - set(late), key=lambda position: (scores[position], -position)), *late]
        self.turn = self.since = 0


def weights(cache: Cache, at: Sequence[int], query: Tensor, position: int) -> list[float]:
    """Attention of one query of one head over the entries."""
    scale = len(query) ** -0.5
    seen = [float(cache.held[p] @ query) * scale if p <= position else float("-inf") for p in at]
    return torch.tensor(seen, dtype=torch.float64).softmax(0).nan_to_num(0.0).tolist()


def snapkv(cache: Cache, policy: SnapKVDecoding, at: list[int], queries: dict[int, Tensor]) -> dict[int, float]:
    window = sorted(queries)[-policy.window_size :]
    received = [0.0] * len(at)
    for position in window:
        for head in range(GROUP):
            for i, weight in enumerate(weights(cache, at, queries[position][head], position)):
                received[i] += (at[i] < window[0]) * weight / len(window) / GROUP
    half = policy.kernel_size // 2
    return {p: sum(received[max(0, i - half) : i + half + 1]) / policy.kernel_size for i, p in enumerate(at)}


def h2o(cache: Cache, policy: H2ODecoding, at: list[int], queries: dict[int, Tensor]) -> dict[int, float]:
    scores = dict(cache.scores)
    for position in sorted(queries)[-cache.since :]:
        for head in range(GROUP):
            for p, weight in zip(at, weights(cache, at, queries[position][head], position), strict=True):
                scores[p] += weight / GROUP
    return scores


def r_kv(cache: Cache, policy: RKV, at: list[int], queries: dict[int, Tensor]) -> dict[int, float]:
    window = sorted(queries)[-policy.window_size :]
    before = [i for i, p in enumerate(at) if p < window[0]]
    keys = torch.stack([cache.held[p] for p in at])
    received = torch.zeros(len(at), dtype=torch.float64)
    for position in window:
        logits = torch.stack([keys @ queries[position][head] for head in range(GROUP)]).amax(0) * keys.shape[1] ** -0.5
        received[before] += logits[before].softmax(0) / len(window)
    half, n = policy.kernel_size // 2, len(at)
    similar = torch.nn.functional.cosine_similarity(keys[:, None], keys[None], dim=-1)
    redundancy = [0.0] * n
    for i in range(n):
        above = [j for j in range(n) if j != i and similar[i, j] > policy.threshold]
        for j in range(n):
            redundancy[j] += 0.0 if j == i or j == max(above, default=-1) else float(similar[i, j]) / n
    soft = torch.tensor(redundancy, dtype=torch.float64).softmax(0)
    importance = [float(received[max(0, i - half) : i + half + 1].max()) if i in before else 0.0 for i in range(n)]
    return {p: policy.weight * importance[i] - (1 - policy.weight) * float(soft[i]) for i, p in enumerate(at)}


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("ratio", [0.6, 0.85])
def test_entries_are_those_of_a_naive_simulation_and_bytes_never_grow(
    policy: EvictionPolicy, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, padding = random_model(), 5
    budgets = Budgets.from_shares([[2 * (1 - ratio) * 0.8, 2 * (1 - ratio) * 0.2], [1 - ratio, 1 - ratio]])
    policies = [policy, StreamingLLM(n_sink=2), policy]
    ids = random_tokens(N_CONTEXT + sum(STEPS), rows=3)
    mask = torch.ones_like(ids)
    mask[2, :padding] = 0
    cache = BudgetedCache(model.config, [budgets] * 3, policies, decoding="fixed", compress_above=0)
    seen: list[tuple[Tensor, Tensor]] = []
    attention = budgeted_layer.ragged_attention

    def recorded(query: Tensor, entries: Any, keys: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append((query, keys))
        return attention(query, entries, keys, *rest, **more)

    monkeypatch.setattr(budgeted_layer, "ragged_attention", recorded)
    simulated: dict[tuple[int, int, int], Cache] = {}
    queries: list[dict[int, dict[int, Tensor]]] = [{0: {}, 2: {}} for _ in range(2)]
    read = 0
    with torch.inference_mode():
        for n in (N_CONTEXT, *STEPS):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, read : read + n]
            model(
                ids[:, read : read + n],
                attention_mask=mask[:, : read + n],
                position_ids=positions,
                past_key_values=cache,
            )
            read += n
            if read == N_CONTEXT:
                n_bytes = cache.kv_bytes()
                simulated = {
                    key: begin(cache, *key) for key in ((i, r, h) for i in (0, 1) for r in (0, 2) for h in (0, 1))
                }
                continue
            for layer, (query, keys) in enumerate(seen[-2:]):
                for row in (0, 2):
                    first = int(positions[row, 0])
                    for token in range(n):
                        queries[layer][row][first + token] = query[row, :, token].unflatten(0, (N_KV_HEADS, -1))
                    for head in range(N_KV_HEADS):
                        own = simulated[layer, row, head]
                        own.read(keys[row, head], first)
                        own.since += n
                        if own.since >= policy.rescores_every:  # type: ignore[operator]
                            own.rescore(policy, {p: some[head] for p, some in queries[layer][row].items()})
                        assert held_by(cache, layer, row, head).keys() == own.held.keys()
                        for position, key in held_by(cache, layer, row, head).items():
                            assert torch.equal(key, own.held[position])
            assert cache.kv_bytes() == n_bytes
    plain = BudgetedCache(model.config, budgets, StreamingLLM(n_sink=2), decoding="fixed", compress_above=0)
    with torch.inference_mode():
        model(ids[1:2, :N_CONTEXT], past_key_values=plain)
        for start in (N_CONTEXT, N_CONTEXT + 7):
            model(ids[1:2, start : start + 7], past_key_values=plain)
    # the row of a policy that scores once is that of a cache by itself
    once = BudgetedCache(model.config, [budgets] * 2, policies[:2], decoding="fixed", compress_above=0)
    with torch.inference_mode():
        model(ids[:2, :N_CONTEXT], past_key_values=once)
        for start in (N_CONTEXT, N_CONTEXT + 7):
            model(ids[:2, start : start + 7], past_key_values=once)
    once.select_rows(torch.tensor([1]))
    for one, other in zip(once.budgeted_layers, plain.budgeted_layers, strict=True):
        torch.testing.assert_close(one.compressed.entries.keys, other.compressed.entries.keys)  # type: ignore[union-attr]


def begin(cache: BudgetedCache, layer: int, row: int, head: int) -> Cache:
    """A simulated KV cache with the entries, scores and order that the context left."""
    compressed: Any = cache.budgeted_layers[layer].compressed
    index = row * N_KV_HEADS + head
    n, at = int(compressed.counts[row, head]), compressed.rescoring.positions[index]
    start = int(compressed.ring_counts[:index].sum())
    order = [int(at[slot]) for slot in compressed.ring[start : start + int(compressed.ring_counts[index])]]
    scores = compressed.rescoring.scores[index]
    return Cache(held_by(cache, layer, row, head), {int(at[i]): float(scores[i]) for i in range(n)}, order)


def held_by(cache: BudgetedCache, layer: int, row: int, head: int) -> dict[int, Tensor]:
    """Keys by position that a KV cache holds."""
    compressed: Any = cache.budgeted_layers[layer].compressed
    index = row * N_KV_HEADS + head
    n = int(compressed.counts[row, head])
    where = compressed.entries.layout.positions(torch.full((n,), index), torch.arange(n))
    at = compressed.rescoring.positions[index, :n].tolist()
    return dict(zip(at, compressed.entries.keys[where], strict=True))


def test_the_first_order_and_scores_are_those_of_the_context() -> None:
    model, ids = random_model(), random_tokens(N_CONTEXT)
    for policy in (H2ODecoding(recent=0.25), SnapKVDecoding(window_size=4), RKV()):
        cache = BudgetedCache(model.config, uniform(0.5), policy, decoding="fixed", compress_above=0)
        with torch.inference_mode():
            model(ids, past_key_values=cache)
        kept = begin(cache, 0, 0, 0)
        late = N_CONTEXT - policy.protected_last(20)
        assert set(range(late, N_CONTEXT)) <= set(kept.held)
        if policy.adds_scores:
            early = [position for position in kept.order if position < late]
            assert early == sorted(early, key=lambda position: kept.scores[position]) and min(kept.scores.values()) > 0


def test_values_weigh_nothing_while_the_model_writes_so_critical_is_refused() -> None:
    with pytest.raises(UserError, match="critical cannot go over snapkv_d, which scores again without its values"):
        Critical(inner=SnapKVDecoding())


def test_quantised_entries_cannot_be_scored() -> None:
    model = random_model()
    cache = BudgetedCache(model.config, uniform(0.5), RKV(), decoding="fixed", compress_above=0, bits=8)
    with torch.inference_mode(), pytest.raises(UserError, match="r_kv scores what KV caches hold, which must not be"):
        model(random_tokens(N_CONTEXT), past_key_values=cache)
