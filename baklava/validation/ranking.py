"""Ranking quality: does an estimator rank KV caches as measured losses do?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from baklava.analysis.agreement import rank_agreement, top_overlap
from baklava.importance.loss_curves import LossCurves
from baklava.importance.profile import Profile

SCHEMA = 1
COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("estimator", pa.string()),
        ("eviction", pa.string()),
        ("spearman", pa.float64()),
        ("top_overlap", pa.float64()),
    ]
)


def compare_with_measured(profile: Profile, curves: LossCurves, *, top: float) -> Iterator[dict[str, Any]]:
    """Yield a row per estimator: rank correlation with the measured importance, and overlap of the `top` largest."""
    for estimator in profile.head_importance:
        rankings = np.stack([profile.kv_importance(estimator), curves.importance()])  # [2, L, Hkv]
        yield {
            "model": profile.model,
            "estimator": estimator,
            "eviction": curves.eviction,
            "spearman": rank_agreement(rankings),
            "top_overlap": top_overlap(rankings, top=top),
        }
