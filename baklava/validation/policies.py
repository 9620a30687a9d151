"""Agreement between eviction policies: would the importance, or the budgets, of one policy do for another?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from baklava.analysis.agreement import rank_agreement, top_overlap
from baklava.budgets import Budgets
from baklava.importance.loss_curves import LossCurves

SCHEMA = 1
COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("ranking", pa.string()),
        ("pair", pa.string()),
        ("spearman", pa.float64()),
        ("top_overlap", pa.float64()),
    ]
)


def compare_policies(
    curves: Mapping[str, LossCurves], budgets: Mapping[str, Mapping[str, Budgets]], *, model: str, top: float
) -> Iterator[dict[str, Any]]:
    """Compare every pair of eviction policies, by measured importance and by the budgets made for them.

    `curves` are by policy; `budgets` by the name of an allocator at a ratio, then by policy. Uniform budgets rank no KV
    cache above another, so they are left out. `spearman` and `top_overlap` are as in `consistency`.
    """
    rankings: dict[str, dict[str, NDArray[np.floating]]] = {
        "measured importance": {policy: losses.importance() for policy, losses in curves.items()},
        **{name: {policy: own.shares for policy, own in by.items()} for name, by in budgets.items()},
    }
    for name, by_policy in rankings.items():
        for first, second in combinations(by_policy, 2):
            both = np.stack([by_policy[first], by_policy[second]])
            if (np.ptp(both.reshape(2, -1), axis=1) > 0).all():
                yield {
                    "model": model,
                    "ranking": name,
                    "pair": f"{first} - {second}",
                    "spearman": rank_agreement(both),
                    "top_overlap": top_overlap(both, top=top),
                }
