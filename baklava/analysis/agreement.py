"""How far rankings of the same KV caches agree."""

from __future__ import annotations

import warnings
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ConstantInputWarning, spearmanr


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
