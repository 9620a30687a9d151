"""How far a profile can be relied on: would other prompts have ranked the KV caches alike?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import ConstantInputWarning, spearmanr

from baklava.profile import Profile

TOP = 0.3

COLUMNS = {
    "model": "string",
    "estimator": "string",
    "between": "string",
    "n_prompts": "int64",
    "spearman": "float64",
    "top_overlap": "float64",
}


def consistency(profiles: Sequence[Profile], *, top: float = TOP) -> pd.DataFrame:
    """Agreement of the rankings of KV caches: two rows per model and estimator.

    `between` is "prompts" (every prompt with every other, the mean over pairs) or "halves" (the mean of the first half
    of the prompts with that of the second). `spearman` is the rank correlation in [-1, 1], `top_overlap` the part of
    the `top` most important KV caches that two rankings share, by chance `top`. Both are NaN where there is a single
    prompt, and `spearman` where an estimator gives every KV cache the same. An importance that no prompt changes, like
    that of the control, agrees with itself perfectly: consistency is not quality.
    """
    rows = [row for profile in profiles for row in _rows(profile, top)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _rows(profile: Profile, top: float) -> Iterator[dict[str, Any]]:
    for estimator in profile.head_importance:
        prompts = profile.kv_importance_of_prompts(estimator)  # [P, L, Hkv]
        n = len(prompts)
        halves = np.stack([prompts[: n // 2].mean(0), prompts[n // 2 :].mean(0)]) if n > 1 else prompts
        for between, rankings in (("prompts", prompts), ("halves", halves)):
            yield {
                "model": profile.model,
                "estimator": estimator,
                "between": between,
                "n_prompts": n,
                "spearman": rank_agreement(rankings),
                "top_overlap": top_overlap(rankings, top=top),
            }


def rank_agreement(rankings: NDArray[np.floating]) -> float:
    """Mean Spearman correlation over all pairs of `[P, ...]`; NaN where no pair has one."""
    flat = rankings.reshape(len(rankings), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        found = [float(spearmanr(one, other).statistic) for one, other in combinations(flat, 2)]
    return float(np.nanmean(found)) if found and not np.isnan(found).all() else np.nan


def top_overlap(rankings: NDArray[np.floating], *, top: float) -> float:
    """Mean part of the `top` largest that two of `[P, ...]` share, over all pairs; NaN where there is one."""
    flat = rankings.reshape(len(rankings), -1)
    k = max(1, round(top * flat.shape[1]))
    best = [set(np.argsort(-one, kind="stable")[:k].tolist()) for one in flat]
    found = [len(one & other) / k for one, other in combinations(best, 2)]
    return float(np.mean(found)) if found else np.nan
