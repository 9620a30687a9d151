"""Agreement between eviction policies, against rankings whose agreement is known."""

from __future__ import annotations

import numpy as np
import pytest

from baklava.budgets import Budgets
from baklava.importance.loss_curves import LossCurves
from baklava.validation.policies import compare_policies

UP = np.arange(8.0).reshape(4, 2) / 10  # shares and rises in the order of the KV caches


def curves(rises: np.ndarray) -> LossCurves:
    return LossCurves("m", "policy", (0.0,), rises[None, None].astype(np.float32), np.ones(1, np.float32), {})


def test_every_two_policies_by_importance_and_by_budgets() -> None:
    measured = {"snapkv": curves(UP), "h2o": curves(2 * UP), "tova": curves(UP[::-1, ::-1])}
    budgets = {
        "uniform, r = 0.5": {name: Budgets.uniform(n_layers=4, n_kv_heads=2, ratio=0.5) for name in measured},
        "baklava, r = 0.7": {"snapkv": Budgets.from_shares(UP), "h2o": Budgets.from_shares(0.7 - UP)},
    }
    rows = list(compare_policies(measured, budgets, model="m", top=0.25))
    assert [(row["ranking"], row["pair"], row["spearman"], row["top_overlap"]) for row in rows] == [
        ("measured importance", "snapkv - h2o", pytest.approx(1.0), 1.0),
        ("measured importance", "snapkv - tova", pytest.approx(-1.0), 0.0),
        ("measured importance", "h2o - tova", pytest.approx(-1.0), 0.0),
        ("baklava, r = 0.7", "snapkv - h2o", pytest.approx(-1.0), 0.0),
    ]
