"""Consistency: would other prompts, other calibration sets or other lengths rank the KV caches alike?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from baklava.analysis.agreement import rank_agreement, top_overlap
from baklava.importance.profile import Profile

SCHEMA = 1
COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("estimator", pa.string()),
        ("between", pa.string()),
        ("pair", pa.string()),
        ("n_prompts", pa.int64()),
        ("spearman", pa.float64()),
        ("top_overlap", pa.float64()),
    ]
)

Row = dict[str, Any]


def compare_prompts(profile: Profile, *, top: float) -> Iterator[Row]:
    """Compare the rankings of KV caches within a profile: two rows per estimator.

    `between` is "prompts" (every prompt with every other, the mean over pairs) or "halves" (the mean of the first half
    of the prompts with that of the second). `spearman` is the rank correlation in [-1, 1], `top_overlap` the fraction
    of the `top` most important KV caches that two rankings have in common (by chance: `top`). Both are NaN where there
    is a single prompt; `spearman` also where an estimator gives every KV cache the same importance. An importance that
    no prompt changes, like the control's, agrees with itself perfectly: consistency is not quality.
    """
    for estimator in profile.head_importance:
        prompts = profile.kv_importance_of_prompts(estimator)  # [P, L, Hkv]
        n = len(prompts)
        halves = np.stack([prompts[: n // 2].mean(0), prompts[n // 2 :].mean(0)]) if n > 1 else prompts
        for between, rankings in (("prompts", prompts), ("halves", halves)):
            yield {
                "model": profile.model,
                "estimator": estimator,
                "between": between,
                "pair": "",
                "n_prompts": n,
                "spearman": rank_agreement(rankings),
                "top_overlap": top_overlap(rankings, top=top),
            }


def compare_profiles(profiles: Mapping[str, Profile], *, between: str, top: float) -> Iterator[Row]:
    """Compare every pair of profiles of one model, each the mean over its prompts; `pair` names both."""
    for (first_name, first), (second_name, second) in combinations(profiles.items(), 2):
        for estimator in first.head_importance:
            rankings = np.stack([first.kv_importance(estimator), second.kv_importance(estimator)])
            yield {
                "model": first.model,
                "estimator": estimator,
                "between": between,
                "pair": f"{first_name} - {second_name}",
                "n_prompts": min(len(first.layer_importance), len(second.layer_importance)),
                "spearman": rank_agreement(rankings),
                "top_overlap": top_overlap(rankings, top=top),
            }
