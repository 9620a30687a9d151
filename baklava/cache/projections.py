"""The output projections that some eviction policies weigh values by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from baklava.cache.attention.dense import check_attention
from baklava.decoder.attention_path import AttentionPath
from baklava.decoder.config import decoder_of
from baklava.decoder.trace_attention import trace_attention_paths
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy

Paths = Mapping[int, AttentionPath]  # by layer

# The paths of models that were traced, so that a cache for each prompt costs no pass each, and what they hold for.
_TRACED: WeakKeyDictionary[PreTrainedModel, tuple[tuple[Any, ...], Paths]] = WeakKeyDictionary()


def find_paths(model: PreTrainedModel, policies: Iterable[EvictionPolicy]) -> Paths | None:
    """Trace the layers that have budgets through a pass over two tokens, if a policy needs their output projections.

    A model is traced once, and again when its modules have changed or been moved. Raises `UserError` for a model whose
    projections cannot be found.
    """
    if (family := _needing(policies)) is None:
        return None
    check_attention(model.config)
    made_of = (*map(id, model.modules()), *((weight.device, weight.dtype) for weight in model.parameters()))
    traced = _TRACED.get(model)
    if traced is not None and traced[0] == made_of:
        return traced[1]
    try:
        paths = trace_attention_paths(model, decoder_of(model.config).budgeted_layers)
        _TRACED[model] = made_of, paths
        return paths
    except UserError as error:
        raise UserError(f"eviction policy {family!r} needs the output projection, but {error}") from None


def check_paths(policies: Iterable[EvictionPolicy], paths: Paths | None) -> None:
    """Raises `UserError` if a policy needs output projections that were not found, as the model was not there."""
    if paths is None and (family := _needing(policies)) is not None:
        raise UserError(
            f"eviction policy {family!r} weighs values by the output projection: make the cache with the model, "
            "BudgetedCache(model, ...), instead of its config"
        )


def _needing(policies: Iterable[EvictionPolicy]) -> str | None:
    return next((policy.family for policy in policies if policy.needs_projection), None)
