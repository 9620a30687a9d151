"""Regret: the loss of following one estimator's ranking, less that of the best budgets of the experiment."""

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
FLOOR = 0.02  # share that even the lowest-ranked KV cache keeps


def greedy_budgets(importance: NDArray[np.float64], ratio: float) -> Budgets:
    """Keep KV caches fully, one after another in order of importance `[L, Hkv]`, above a small floor."""
    return Budgets.from_shares(greedy_shares(importance, ratio, floor=FLOOR), ratio=ratio)


def measure_regret(
    rankings: Mapping[str, NDArray[np.float64]],
    methods: Mapping[float, Mapping[str, Budgets]],
    source: LossSource,
    prompts: Sequence[Prompt],
    *,
    model: str,
    eviction: str,
) -> Iterator[dict[str, Any]]:
    """Yield a row per ratio and estimator; losses are in nats per answer token, means over the prompts.

    `rankings` hold the importance `[L, Hkv]` by estimator, `methods` the budgets by ratio and allocator; `best` names
    the allocator with the lowest loss at that ratio. A regret below 0 means that following the ranking beats all of
    them. Raises `UserError` where a loss is NaN or infinite.
    """
    if not methods:
        return
    greedy = {
        ratio: {name: greedy_budgets(importance, ratio) for name, importance in rankings.items()} for ratio in methods
    }
    n_layers, n_kv_heads = next(iter(rankings.values())).shape
    budgets = [Budgets.uniform(n_layers=n_layers, n_kv_heads=n_kv_heads, ratio=0.0)]
    for ratio, by_allocator in methods.items():
        budgets += [*greedy[ratio].values(), *by_allocator.values()]
    mean_losses = np.mean([source.losses(prompt, budgets) for prompt in prompts], axis=0)
    check_losses(mean_losses, model=model)
    loss_full, *others = mean_losses.tolist()
    remaining = iter(others)
    for ratio, by_allocator in methods.items():
        by_estimator = {name: next(remaining) for name in greedy[ratio]}
        of_methods = {name: next(remaining) for name in by_allocator}
        best = min(of_methods, key=lambda name: of_methods[name])
        for estimator, loss in by_estimator.items():
            yield {
                "model": model,
                "estimator": estimator,
                "eviction": eviction,
                "ratio": ratio,
                "loss": loss,
                "best": best,
                "loss_best": of_methods[best],
                "loss_full": loss_full,
                "regret": loss - of_methods[best],
                "n_prompts": len(prompts),
            }
