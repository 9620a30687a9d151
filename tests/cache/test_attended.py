"""Caches find out when a model's attention goes past them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import random_model, random_tokens
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from baklava import BudgetedCache, Budgets
from baklava.cache.attention.dense import NAME, baklava_attention
from baklava.cache.prefill import ContextCache
from baklava.errors import UserError
from baklava.eviction import StreamingLLM

BUDGETS = Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=0.5)


@pytest.fixture
def attend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], PreTrainedModel]:
    """A model whose attention is `change`, which may hand on to ours."""

    def make(change: Callable[..., Any]) -> PreTrainedModel:
        monkeypatch.setitem(AttentionInterface._global_mapping, NAME, change)
        return random_model()

    return make


def own_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
    """As families do whose attention is code of its own."""
    key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    scores = (query @ key.transpose(-1, -2) * settings["scaling"]).masked_fill(~causal, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def read(model: PreTrainedModel, cache: Any, n: int = 10) -> None:
    with torch.inference_mode():
        model(random_tokens(n), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("kind", ["budgeted", "context"])
def test_attention_that_is_code_of_its_own(kind: str, attend: Callable[..., PreTrainedModel]) -> None:
    model = attend(own_attention)
    cache = BudgetedCache(model.config, BUDGETS) if kind == "budgeted" else ContextCache(model.config, [StreamingLLM()])
    with pytest.raises(UserError, match="did not hand its keys and values to the baklava attention"):
        read(model, cache)


def test_in_the_last_layer_too(attend: Callable[..., PreTrainedModel]) -> None:
    def change(module: Any, *args: Any, **settings: Any) -> Any:
        return (own_attention if module.layer_idx == 1 else baklava_attention)(module, *args, **settings)

    model = attend(change)
    cache = BudgetedCache(model.config, BUDGETS)
    read(model, cache)
    for look in (cache.kept_entries, cache.row_bytes, lambda: read(model, cache, 1)):
        with pytest.raises(UserError, match="did not hand its keys and values to the baklava attention"):
            look()
    context = ContextCache(model.config, [StreamingLLM()])
    read(model, context)
    with pytest.raises(UserError, match="did not hand its keys and values"):
        BudgetedCache.from_context(model.config, context, BUDGETS)


@pytest.mark.parametrize("which", ["keys", "values"])
def test_keys_or_values_that_change_behind_the_cache(which: str, attend: Callable[..., PreTrainedModel]) -> None:
    def change(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
        key, value = (key * 2, value) if which == "keys" else (key, value.flip(1))
        return baklava_attention(module, query, key, value, mask, **settings)

    model = attend(change)
    with pytest.raises(UserError, match="changes keys or values between its cache and its attention"):
        read(model, BudgetedCache(model.config, BUDGETS))


def test_two_layers_that_attend_to_one_cache(attend: Callable[..., PreTrainedModel]) -> None:
    def change(*args: Any, **settings: Any) -> Any:
        baklava_attention(*args, **settings)
        return baklava_attention(*args, **settings)

    model = attend(change)
    with pytest.raises(UserError, match="from more than one layer"):
        read(model, BudgetedCache(model.config, BUDGETS))


@pytest.mark.parametrize("name", ["s_aux", "sinks", "position_bias", "indices", "block_indices"])
def test_attention_that_is_more_than_keys_and_queries(name: str, attend: Callable[..., PreTrainedModel]) -> None:
    model = attend(lambda *args, **settings: baklava_attention(*args, **settings, **{name: torch.zeros(4)}))
    with pytest.raises(UserError, match="does not support models with"):
        read(model, BudgetedCache(model.config, BUDGETS))


def test_a_window_that_the_config_does_not_tell_of(attend: Callable[..., PreTrainedModel]) -> None:
    model = attend(lambda *args, **settings: baklava_attention(*args, **settings, sliding_window=12))
    cache = BudgetedCache(model.config, BUDGETS)
    read(model, cache, 12)
    with pytest.raises(UserError, match="13 tokens are more than the sliding window of 12 tokens"):
        read(model, cache, 1)


def test_a_model_that_looks_ahead(attend: Callable[..., PreTrainedModel]) -> None:
    model = attend(lambda *args, **settings: baklava_attention(*args, **{**settings, "is_causal": False}))
    with pytest.raises(UserError, match="looks ahead"):
        read(model, BudgetedCache(model.config, BUDGETS))


def test_other_heads_than_the_config_says() -> None:
    model = random_model(n_kv_heads=4)
    config = random_model(n_kv_heads=2).config
    config._attn_implementation = NAME
    with pytest.raises(UserError, match=r"layer 0 has \[KV heads, dimension\] \[4, 8\], its config says \[2, 8\]"):
        read(model, BudgetedCache(config, BUDGETS))


def test_a_cache_that_nothing_was_read_into() -> None:
    with pytest.raises(UserError, match="no compressed context"):
        BudgetedCache(random_model().config, BUDGETS).kept_entries()
