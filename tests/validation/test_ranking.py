"""Ranking quality against curves whose order is known."""

from __future__ import annotations

import numpy as np
import pytest

from baklava.importance.loss_curves import LossCurves
from baklava.importance.profile import Profile
from baklava.validation.ranking import COLUMNS, compare_with_measured

L, HKV, GROUP = 5, 4, 2
MEASURED = np.random.default_rng(0).permutation(L * HKV).reshape(L, HKV).astype(np.float32)


def test_estimators_are_ranked_against_the_mean_rise_of_the_loss() -> None:
    noise = np.random.default_rng(1).normal(0, 1, (3, 2, L, HKV)).astype(np.float32)
    noise -= noise.mean((0, 1))
    curves = LossCurves("m", "snapkv", (0.0, 0.5), MEASURED + noise, np.zeros(3, np.float32))
    heads = {
        "same": MEASURED**3,
        "reversed": -MEASURED,
        "half": np.where(np.sort(MEASURED.ravel())[-3].repeat(L * HKV).reshape(L, HKV) <= MEASURED, -1, MEASURED),
    }
    profile = Profile(
        "m",
        HKV,
        {name: np.repeat(values, GROUP, -1)[None].astype(np.float32) for name, values in heads.items()},
        np.zeros((1, L), np.float32),
    )
    rows = {row["estimator"]: row for row in compare_with_measured(profile, curves, top=0.3)}
    assert all(list(row) == COLUMNS.names for row in rows.values())
    assert {row["eviction"] for row in rows.values()} == {"snapkv"}
    assert (rows["same"]["spearman"], rows["same"]["top_overlap"]) == (pytest.approx(1.0), 1.0)
    assert (rows["reversed"]["spearman"], rows["reversed"]["top_overlap"]) == (pytest.approx(-1.0), 0.0)
    assert rows["half"]["top_overlap"] == pytest.approx(3 / 6)  # the best three of six are its worst
