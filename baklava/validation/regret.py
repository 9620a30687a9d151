"""Regret: what it costs to follow one estimator's ranking instead of the best budgets that were found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from baklava.allocation.duo import greedy_shares
from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.inference.continuation_loss import LossSource, check_losses

SCHEMA = 1
COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("estimator", pa.string()),
        ("eviction", pa.string()),
        ("ratio", pa.float64()),
        ("loss", pa.float64()),
        ("best", pa.string()),
        ("loss_best", pa.float64()),
        ("loss_full", pa.float64()),
        ("regret", pa.float64()),
        ("n_prompts", pa.int64()),
    ]
)
FLOOR = 0.02  # share that every KV cache keeps, however it is ranked


def greedy_budgets(importance: NDArray[np.float64], ratio: float) -> Budgets:
    """KV caches fully kept one after another, in order of importance `[L, Hkv]`, above a small floor."""
    return Budgets.from_shares(greedy_shares(importance, ratio, floor=FLOOR), ratio=ratio)


def regrets(
    rankings: Mapping[str, NDArray[np.float64]],
    methods: Mapping[float, Mapping[str, Budgets]],
    replay: LossSource,
    prompts: Sequence[Prompt],
    *,
    model: str,
    eviction: str,
) -> Iterator[dict[str, Any]]:
    """One row per ratio and estimator, losses in nats per answer token, means over the prompts.

    `rankings` hold the importance `[L, Hkv]` by estimator, `methods` the budgets by ratio and allocator; `best` is the
    allocator that loses least there. A regret below 0 says that following the ranking loses less than all of them.
    Raises `UserError` where a loss is no number.
    """
    if not methods:
        return
    greedy = {ratio: {name: greedy_budgets(one, ratio) for name, one in rankings.items()} for ratio in methods}
    n_layers, n_kv_heads = next(iter(rankings.values())).shape
    budgets = [Budgets.uniform(n_layers=n_layers, n_kv_heads=n_kv_heads, ratio=0.0)]
    for ratio, by_allocator in methods.items():
        budgets += [*greedy[ratio].values(), *by_allocator.values()]
    losses_of_all = np.mean([replay.losses(prompt, budgets) for prompt in prompts], axis=0)
    check_losses(losses_of_all, model=model)
    loss_full, *measured = losses_of_all.tolist()
    remaining = iter(measured)
    for ratio, by_allocator in methods.items():
        losses = {name: next(remaining) for name in greedy[ratio]}
        found = {name: next(remaining) for name in by_allocator}
        best = min(found, key=lambda name: found[name])
        for estimator, loss in losses.items():
            yield {
                "model": model,
                "estimator": estimator,
                "eviction": eviction,
                "ratio": ratio,
                "loss": loss,
                "best": best,
                "loss_best": found[best],
                "loss_full": loss_full,
                "regret": loss - found[best],
                "n_prompts": len(prompts),
            }
