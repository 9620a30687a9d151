"""The layers of our caches: ours where a model's layer sees all tokens, transformers' own for sliding windows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from baklava.decoder.config import Decoder


def build_layers(decoder: Decoder, build_budgeted: Callable[[int, int], CacheLayerMixin]) -> list[Any]:
    """Build a cache layer for every layer of the model.

    Layers that see all tokens get `build_budgeted(budget_index, layer_index)`, where `budget_index` counts only them.
    Layers with a sliding window get transformers' own.
    """
    budget_indices = {layer: budget_index for budget_index, layer in enumerate(decoder.budgeted_layers)}
    return [
        build_budgeted(budget_indices[i], i) if window is None else DynamicSlidingWindowLayer(sliding_window=window)
        for i, window in enumerate(decoder.windows)
    ]


def copy_window(layer: Any, rows: Tensor) -> Any:
    """Return a new sliding window with batch rows `rows` of `layer`."""
    copied = copy.copy(layer)
    copied.batch_select_indices(rows.to(layer.keys.device))
    return copied


def append_window_rows(layer: Any, other: Any) -> None:
    """Append the batch rows of another sliding window; windows `[B, Hkv, n, D]` of different length end together."""
    n = max(layer.keys.shape[2], other.keys.shape[2])
    for name in ("keys", "values"):
        tensors = (getattr(window, name) for window in (layer, other))
        padded = [torch.nn.functional.pad(tensor, (0, 0, n - tensor.shape[2], 0)) for tensor in tensors]
        setattr(layer, name, torch.cat(padded))
    layer.cumulative_length = max(layer.cumulative_length, other.cumulative_length)
