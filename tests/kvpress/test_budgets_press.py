"""A press with our budgets keeps as many entries of every KV head as our cache would, and the same ones."""

from __future__ import annotations

from typing import Any

import kvpress
import numpy as np
import pytest
import torch
from tiny_models import random_model, random_tokens
from transformers import DynamicCache

from baklava.allocation.formats.kvpress_press import BudgetsPress
from baklava.budgets import Budgets
from baklava.errors import UserError

LENGTH = 200
SHARES = [[0.9, 0.1, 0.35], [0.5, 1.0, 0.055]]


def masked_by(press: Any) -> torch.Tensor:
    """Entries `[2, 3, LENGTH]` that a press masks in the two layers of a small model."""
    model = random_model(n_heads=6, n_kv_heads=3)
    model.set_attn_implementation("sdpa")
    with torch.inference_mode(), press(model):
        model(random_tokens(LENGTH), past_key_values=DynamicCache())
    masked = torch.zeros(2, 3, LENGTH, dtype=torch.bool)
    for layer, decoder_layer in enumerate(model.model.layers):
        _, heads, entries = decoder_layer.self_attn.masked_key_indices
        masked[layer, heads, entries] = True
    return masked


@pytest.mark.parametrize(
    "press", [kvpress.KnormPress(), kvpress.KeyDiffPress(), kvpress.SnapKVPress(window_size=8)], ids=str
)
def test_every_head_keeps_its_budget_and_the_best_by_the_score_of_the_press(press: Any) -> None:
    budgets = Budgets.from_shares(SHARES)
    kept = (~masked_by(BudgetsPress(budgets, press))).sum(-1)
    np.testing.assert_array_equal(kept.numpy(), budgets.entries(LENGTH))
    few, many = (
        ~masked_by(BudgetsPress(Budgets.uniform(n_layers=2, n_kv_heads=3, ratio=ratio), press)) for ratio in (0.8, 0.4)
    )
    assert (few <= many)[0].all()  # of the first layer, which sees the same whatever is masked


def test_a_window_is_as_long_as_the_budget_of_its_head() -> None:
    budgets = Budgets.from_shares(SHARES)
    masked = masked_by(BudgetsPress(budgets, kvpress.StreamingLLMPress(n_sink=4)))
    for kept, count in zip((~masked).flatten(0, 1), budgets.entries(LENGTH).ravel().tolist(), strict=True):
        assert kept.nonzero().flatten().tolist() == [*range(min(4, count)), *range(LENGTH - count + 4, LENGTH)]


def test_budgets_of_another_model_are_refused() -> None:
    with pytest.raises(UserError, match=r"budgets are \[layers, KV heads\] \[1, 2\], the model is \[2, 3\]"):
        masked_by(BudgetsPress(Budgets.from_shares([[0.5, 0.5]]), kvpress.KnormPress()))
