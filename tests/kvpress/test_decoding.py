"""While a model writes, our `snapkv_d` keeps what kvpress' `DecodingPress` over SnapKV keeps of the same entries.

With a window of one query: kvpress rotates all queries of a longer one as the last.
"""

from __future__ import annotations

from typing import Any

import kvpress
import pytest
import torch
from recorded_attention import RECORDER, positions_of
from tiny_models import random_model, random_tokens
from torch import Tensor
from transformers import DynamicCache

from baklava.eviction import SnapKVDecoding
from baklava.eviction.base import raise_protected
from baklava.eviction.held import HeldEntries

TARGET, INTERVAL = 30, 6


class Watched(kvpress.DecodingPress):
    """Keeps the entries of every compression, before and after, and the query that they are scored by."""

    def compress(self, module: Any, hidden_states: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> Any:
        kept = super().compress(module, hidden_states, keys, values, *rest)
        query, _, _, scaling = RECORDER.layers[-1]
        SEEN.append((query, keys.clone(), values.clone(), kept[0], scaling))
        return kept


SEEN: list[tuple[Tensor, Tensor, Tensor, Tensor, float]] = []


@pytest.mark.parametrize("kernel_size", [1, 5])
def test_kept_positions_are_those_of_kvpress(kernel_size: int) -> None:
    SEEN.clear()
    model = random_model(n_heads=6, n_kv_heads=3, attention="recording")
    base = kvpress.SnapKVPress(window_size=1, kernel_size=kernel_size)
    press = Watched(base_press=base, compression_interval=INTERVAL, target_size=TARGET)
    ids, cache = random_tokens(40 + 3 * INTERVAL), DynamicCache()
    with torch.inference_mode(), press(model):
        model(ids[:, :40], past_key_values=cache)
        for step in range(40, ids.shape[1]):
            model(ids[:, step : step + 1], past_key_values=cache)
    assert len(SEEN) == 2 * 3  # layers, compressions
    policy = SnapKVDecoding(window_size=1, kernel_size=kernel_size)
    for query, keys, values, kept, scaling in SEEN:
        n = keys.shape[2]
        position = torch.arange(n).expand(3, -1)
        held = HeldEntries(keys[0], values[0], position, torch.zeros(3, n), scaling, None)
        scores = policy.rescore(held, query[0].unflatten(0, (3, 2))[:, :, -1:], position[:, -1:])
        best = raise_protected(scores, policy, TARGET).topk(TARGET, dim=-1).indices
        assert [set(row) for row in best.tolist()] == positions_of(kept, keys)
