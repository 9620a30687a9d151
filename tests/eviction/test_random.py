"""Random entries: others for another seed, layer or KV head, the same for anything else."""

from __future__ import annotations

import torch
from layer_contexts import random_layer, scores_of

from baklava.eviction import Random


def test_scores_depend_on_seed_layer_and_head() -> None:
    layers = [(Random(seed=seed), random_layer(50, layer_index=layer)) for seed in (0, 1) for layer in (0, 1)]
    rows = torch.cat([scores_of(policy, *layer)[0] for policy, layer in layers])  # 4 layers x 3 heads
    assert rows.unique(dim=0).shape[0] == 12


def test_scores_do_not_depend_on_keys_queries_rows_or_precision() -> None:
    expected = scores_of(Random(seed=3), *random_layer(50))[0]
    for dtype in (torch.bfloat16, torch.float64):
        scores = scores_of(Random(seed=3), *random_layer(50, rows=2, seed=1, dtype=dtype))
        assert torch.equal(scores, expected.expand(2, -1, -1))


def test_entries_are_kept_evenly_over_the_context() -> None:
    drawn = torch.cat([scores_of(Random(seed=seed), *random_layer(100))[0] for seed in range(100)])  # [300, 100]
    kept = torch.zeros_like(drawn).scatter_(1, drawn.topk(30, dim=-1).indices, 1.0).mean(0)
    assert 0.15 < float(kept.min()) < float(kept.max()) < 0.45  # five standard deviations around 0.3
