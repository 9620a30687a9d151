"""Importance of every KV cache of a model: a map per estimator, and one of whole layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baklava.analysis.agreement import rank_agreement
from baklava.importance import ESTIMATORS
from baklava.importance.profile import Profile

LAYERS = "layer_cosine"  # the estimator that has one value per layer, which every profile holds anyway


@dataclass(frozen=True, eq=False)
class ImportanceMap:
    """One estimator's importance `[L, columns]`, the mean over the prompts; one column where it scores whole layers.

    `agreement` is the rank agreement between prompts, NaN where there is none; `number` formats the values.
    """

    estimator: str
    values: NDArray[np.float64]
    agreement: float
    number: str


def map_importance(profile: Profile) -> list[ImportanceMap]:
    """A map per estimator, those that BaKlaVa knows first; the last map is that of whole layers.

    Query heads are pooled by their mean over each KV head's group.
    """
    known = [name for name in ESTIMATORS if name in profile.head_importance]
    names = [name for name in dict.fromkeys([*known, *profile.head_importance]) if name != LAYERS]
    of_layers = profile.layer_importance.astype(np.float64)[:, :, None]  # [P, L, 1]
    return [
        *(_map(name, profile.kv_importance(name), profile.kv_importance_of_prompts(name)) for name in names),
        _map(LAYERS, of_layers.mean(0), of_layers),
    ]


def _map(estimator: str, values: NDArray[np.float64], of_prompts: NDArray[np.float64]) -> ImportanceMap:
    return ImportanceMap(estimator, values, rank_agreement(of_prompts), _number_format(values))


def describe_prompts(profile: Profile) -> str:
    """What the values are means of."""
    n_prompts = len(profile.layer_importance)
    return f"mean over {n_prompts} prompts" if n_prompts > 1 else "one prompt"


def _number_format(values: NDArray[np.float64]) -> str:
    """A format with two or three digits for the largest value."""
    largest = max(float(np.abs(values).max()), 1e-4)
    return f".{max(0, 1 - math.floor(math.log10(largest)) + (largest >= 1))}f"
