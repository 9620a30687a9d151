"""Our policies keep what kvpress 0.5.5 keeps, at equal budgets.

`make test-kvpress` runs this in an environment of its own.
kvpress compresses in hooks after each layer's attention. One prefill gives both its outcome and the queries, keys and
values from which our policies decide. In float64, so that no two scores tie.
"""

from __future__ import annotations

from typing import Any

import kvpress
import pytest
import torch
from layer_contexts import kept, order_of, scores_and_order_of
from recorded_attention import RECORDER, path_of, positions_of
from tiny_models import random_model, random_tokens
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from baklava.eviction import (
    TOVA,
    AdaKV,
    Critical,
    EvictionPolicy,
    ExpectedAttention,
    KeyDiff,
    Knorm,
    SnapKV,
    StreamingLLM,
)
from baklava.eviction.base import LayerContext

LENGTH = 400
PAIRS: list[tuple[EvictionPolicy, Any]] = [
    (StreamingLLM(n_sink=4), kvpress.StreamingLLMPress(n_sink=4)),
    (SnapKV(), kvpress.SnapKVPress()),
    (SnapKV(window_size=16, kernel_size=7), kvpress.SnapKVPress(window_size=16, kernel_size=7)),
    (TOVA(), kvpress.TOVAPress()),
    (Knorm(), kvpress.KnormPress()),
    (KeyDiff(), kvpress.KeyDiffPress()),
    (ExpectedAttention(), kvpress.ExpectedAttentionPress(epsilon=1e-2)),  # as in its leaderboard
    (ExpectedAttention(epsilon=0.0), kvpress.ExpectedAttentionPress()),  # the class as it is
    (
        ExpectedAttention(n_future_positions=64, n_sink=2, epsilon=0.01),
        kvpress.ExpectedAttentionPress(n_future_positions=64, n_sink=2, epsilon=0.01),
    ),
    (
        ExpectedAttention(use_covariance=False, use_vnorm=False),
        kvpress.ExpectedAttentionPress(use_covariance=False, use_vnorm=False),
    ),
    # A window that fits into the first half of every budget here.
    (Critical(inner=SnapKV(window_size=16)), kvpress.CriticalKVPress(kvpress.SnapKVPress(window_size=16))),
    (
        Critical(inner=ExpectedAttention(use_vnorm=False), epsilon=0.01, first=0.25),
        kvpress.CriticalKVPress(kvpress.ExpectedAttentionPress(use_vnorm=False), epsilon=0.01, first_stage_ratio=0.25),
    ),
    (
        Critical(inner=ExpectedAttention(use_vnorm=False)),
        kvpress.CriticalKVPress(kvpress.ExpectedAttentionPress(use_vnorm=False)),
    ),
]
ADAPTIVE: list[tuple[AdaKV, Any]] = [
    (AdaKV(inner=SnapKV()), kvpress.AdaKVPress(kvpress.SnapKVPress())),
    (AdaKV(inner=SnapKV(), floor=0.0), kvpress.AdaKVPress(kvpress.SnapKVPress(), alpha_safeguard=0.0)),
    (AdaKV(inner=SnapKV(), floor=0.9), kvpress.AdaKVPress(kvpress.SnapKVPress(), alpha_safeguard=0.9)),
    (AdaKV(inner=ExpectedAttention()), kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(epsilon=1e-2))),
    (AdaKV(inner=ExpectedAttention(epsilon=0.0)), kvpress.AdaKVPress(kvpress.ExpectedAttentionPress())),
    (
        AdaKV(inner=Critical(inner=SnapKV(window_size=16))),
        kvpress.CriticalAdaKVPress(kvpress.SnapKVPress(window_size=16)),
    ),
    (
        AdaKV(inner=Critical(inner=ExpectedAttention(use_vnorm=False), first=0.75), floor=0.1),
        kvpress.CriticalAdaKVPress(
            kvpress.ExpectedAttentionPress(use_vnorm=False), alpha_safeguard=0.1, first_stage_ratio=0.75
        ),
    ),
]


def name(one: Any) -> str:
    return str(one) if isinstance(one, EvictionPolicy) else ""


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    model = random_model(request.param, n_heads=6, n_kv_heads=3, attention="recording")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "bias" in name or "_norm" in name:  # else Qwen2's biases are 0 and Qwen3's norms 1
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def prefill(model: PreTrainedModel, press: Any, ratio: float) -> tuple[DynamicCache, list[tuple[Tensor, LayerContext]]]:
    """kvpress' cache after one prefill, and each layer's queries and full context."""
    press.compression_ratio = ratio
    RECORDER.layers = []
    cache = DynamicCache()
    with torch.inference_mode(), press(model):
        model(random_tokens(LENGTH), past_key_values=cache)
    layers = [
        (query, LayerContext(key, value, scaling, None, index, model.config, path=path_of(model, index)))
        for index, (query, key, value, scaling) in enumerate(RECORDER.layers)
    ]
    assert len(layers) == 2
    return cache, layers


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(
    ("policy", "press"), PAIRS, ids=lambda one: str(one) if isinstance(one, EvictionPolicy) else ""
)
def test_kept_positions_are_those_of_kvpress(
    policy: EvictionPolicy, press: Any, ratio: float, model: PreTrainedModel
) -> None:
    cache, layers = prefill(model, press, ratio)
    budget = int(LENGTH * (1 - ratio))
    for compressed, (queries, context) in zip(cache.layers, layers, strict=True):
        ours = [set(row) for row in kept(policy, order_of(policy, queries, context), budget)[0].tolist()]
        assert compressed.keys is not None
        assert ours == positions_of(compressed.keys, context.keys)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(("policy", "press"), ADAPTIVE, ids=name)
def test_adaptive_budgets_and_positions_are_those_of_kvpress(
    policy: AdaKV, press: Any, ratio: float, model: PreTrainedModel
) -> None:
    _, layers = prefill(model, press, ratio)
    budgets = torch.full((1, 3), int(LENGTH * (1 - ratio)))
    counts = []
    for index, (queries, context) in enumerate(layers):
        _, heads, entries = model.model.layers[index].self_attn.masked_key_indices
        masked = torch.zeros(3, LENGTH, dtype=torch.bool)
        masked[heads, entries] = True
        scores, order = scores_and_order_of(policy, queries, context)
        counts.append(policy.distribute(scores, order, budgets)[0].tolist())
        for head, n in enumerate(counts[-1]):
            assert kept(policy, order[0, head], n).tolist() == (~masked[head]).nonzero().flatten().tolist()
    assert any(len(set(layer)) > 1 for layer in counts)  # heads did win and lose
