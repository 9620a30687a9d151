"""Agreement between rankings of the same KV caches."""

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
        correlations = [float(spearmanr(*pair).statistic) for pair in combinations(flat, 2)]
    return float(np.nanmean(correlations)) if correlations and not np.isnan(correlations).all() else np.nan


def top_overlap(rankings: NDArray[np.floating], *, top: float) -> float:
    """Mean fraction of the `top` largest that two of `[P, ...]` have in common, over all pairs; NaN where P is 1."""
    flat = rankings.reshape(len(rankings), -1)
    k = max(1, round(top * flat.shape[1]))
    best = [set(np.argsort(-ranking, kind="stable")[:k].tolist()) for ranking in flat]
    overlaps = [len(first & second) / k for first, second in combinations(best, 2)]
    return float(np.mean(overlaps)) if overlaps else np.nan
