"""All KV caches of a model compete for one budget."""

from __future__ import annotations

import torch
from competition import INNER, naive_winners
from hypothesis import given
from hypothesis import strategies as st
from layer_contexts import random_layer, scores_and_order_of, scores_of
from tiny_models import random_model, random_tokens

from baklava.budgets import Budgets
from baklava.cache.budgeted import BudgetedCache
from baklava.cache.prefill import ContextCache
from baklava.eviction import Defensive, LayerAda, SnapKV, policy_named
from baklava.eviction.base import LayerContext

BUDGETS = st.lists(st.lists(st.integers(0, 12), min_size=3, max_size=3), min_size=1, max_size=3)


@given(st.sampled_from(INNER), st.sampled_from([0.0, 0.2, 1.0]), BUDGETS, st.integers(0, 100))
def test_the_model_is_one_layer_of_many_heads(inner, floor: float, budgets: list[list[int]], seed: int) -> None:
    scores = [scores_of(inner, *random_layer(12, seed=seed + layer))[0] for layer in range(len(budgets))]
    counts = LayerAda(inner=inner, floor=floor).distribute_over_layers(scores, scores, torch.tensor(budgets))
    flat = [budget for layer in budgets for budget in layer]
    assert counts.flatten().tolist() == naive_winners(torch.cat(scores), flat, inner, floor)


@given(st.lists(st.integers(0, 60), min_size=6, max_size=6), st.integers(0, 100))
def test_budgets_are_a_prior_of_which_most_is_sure_and_the_rest_is_won(budgets: list[int], seed: int) -> None:
    policy, own = policy_named("prior_snapkv"), torch.tensor(budgets).view(2, 3)
    scores = [scores_of(policy, *random_layer(60, seed=seed + layer))[0] for layer in range(2)]
    counts = policy.distribute_over_layers(scores, scores, own)
    assert int(counts.sum()) == sum(budgets)
    assert bool((counts >= (0.8 * own).long()).all())
    assert torch.equal(LayerAda(inner=SnapKV(), floor=1.0).distribute_over_layers(scores, scores, own), own)


def test_a_layer_of_higher_scores_takes_the_budget_of_another() -> None:
    policy = LayerAda(inner=SnapKV(window_size=4), floor=0.25)
    scores = [scores_of(policy, *random_layer(60, seed=layer))[0] for layer in range(2)]
    scores[1] *= 1e-6
    counts = policy.distribute_over_layers(scores, scores, torch.full((2, 3), 20))
    assert counts[1].tolist() == [5, 5, 5]
    assert int(counts.sum()) == 120


def test_the_competition_and_the_ranks_of_each_layer_share_one_scoring() -> None:
    scored = []

    class Counted(SnapKV):
        family = "counted"

        def score(self, context: LayerContext, state: torch.Tensor) -> torch.Tensor:
            scored.append(context.layer_index)
            return super().score(context, state)

    policy = LayerAda(inner=Counted(window_size=4))
    model = random_model("llama")
    cache = ContextCache(model.config, [policy])
    with torch.inference_mode():
        model(random_tokens(40), past_key_values=cache)
    budgets = [Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=ratio) for ratio in (0.5, 0.8)]
    kept = BudgetedCache.from_context(model.config, cache, budgets, [policy] * 2, compress_above=0).kept_entries()
    assert kept.sum((0, 2)).tolist() == [80, 32]
    assert scored == [0, 1]


def test_layers_on_one_scale_share_what_they_would_share_in_one() -> None:
    policy = LayerAda(inner=Defensive(window_size=4), floor=0.0)
    scores, order = scores_and_order_of(policy, *random_layer(60, rows=2))
    even = torch.full((2, 3), 20)
    swapped = policy.distribute_over_layers(list(scores.flip(0)), list(order.flip(0)), even)
    assert torch.equal(swapped.flip(0), policy.distribute_over_layers(list(scores), list(order), even))
