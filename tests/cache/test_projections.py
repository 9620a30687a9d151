"""Output projections of a model are traced once."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from tiny_models import random_model

from baklava.cache import projections
from baklava.cache.projections import find_paths
from baklava.eviction import policy_named

WEIGHING = [policy_named("critical_snapkv")]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that were traced, as they are."""
    models: list[Any] = []
    trace = projections.trace_attention_paths

    def counting(model: Any, layers: Any) -> Any:
        models.append(model)
        return trace(model, layers)

    monkeypatch.setattr(projections, "trace_attention_paths", counting)
    return models


def test_a_model_is_traced_once_and_each_has_its_own_paths(traced: list[Any]) -> None:
    one, other = random_model("llama"), random_model("llama")
    paths = find_paths(one, WEIGHING)
    assert find_paths(one, WEIGHING) is paths
    assert traced == [one]
    others = find_paths(other, WEIGHING)
    assert paths is not None and others is not None
    assert paths[0].projection is one.model.layers[0].self_attn.o_proj
    assert others[0].projection is other.model.layers[0].self_attn.o_proj


def test_a_model_that_has_changed_is_traced_again(traced: list[Any]) -> None:
    model = random_model("llama")
    find_paths(model, WEIGHING)
    attention = model.model.layers[1].self_attn
    old = attention.o_proj
    attention.o_proj = torch.nn.Linear(old.in_features, old.out_features, bias=False, dtype=old.weight.dtype)
    paths = find_paths(model, WEIGHING)
    assert paths is not None
    assert paths[1].projection is attention.o_proj
    model.to(torch.bfloat16)
    paths = find_paths(model, WEIGHING)
    assert paths is not None
    assert paths[0].example.dtype == torch.bfloat16
    assert len(traced) == 3


def test_what_was_traced_keeps_no_model_alive() -> None:
    model = random_model("llama")
    find_paths(model, WEIGHING)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
