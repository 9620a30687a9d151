"""Caches whose layers attend by themselves, and the guard against models that attend past them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from baklava.cache.attention.dense import check_attention
from baklava.decoder.config import Decoder
from baklava.errors import UserError


class AttendingLayer(CacheLayerMixin):
    """What our cache layers share: they see all tokens, `seen` so far, and attend by themselves.

    `waiting` is true from the time that keys are put in until the attention has come for them.
    """

    is_sliding = False
    is_compileable = False
    supports_early_init = False

    seen: int = 0
    waiting: bool = False

    def took(self) -> None:
        """Keys were put in. Raises `UserError` where the attention has not come for those before."""
        self.check_attended()
        self.waiting = True

    def attends(self) -> None:
        """The attention comes for the keys. Raises `UserError` where none were put in since it last did."""
        if not self.waiting:
            raise UserError("the model attends to one KV cache from more than one layer, which is not supported")
        self.waiting = False

    def check_attended(self) -> None:
        """Raises `UserError` where the model attends in code of its own, to keys that were to be compressed."""
        if self.waiting:
            raise UserError("the model did not hand its keys and values to the baklava attention; it is not supported")

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen, so that positions stay true; not the number of entries kept."""
        return self.seen

    def get_max_length(self) -> int:
        return -1


class AttendedCache(Cache):
    """What our caches share: the model must come for their layers' keys through the attention `baklava`."""

    def __init__(self, config: PreTrainedConfig, decoder: Decoder, layers: list[Any]):
        super().__init__(layers)
        self._config = config
        self._decoder = decoder
        self._latest: Any = None  # the layer that was put into last

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        check_attention(self._config)
        if isinstance(self._latest, AttendingLayer):
            self._latest.check_attended()
        layers: list[Any] = self.layers
        if layer_idx >= len(layers):
            raise UserError(f"the cache is for {len(layers)} layers, the model has more; use its own config")
        self._latest = layers[layer_idx]
        if isinstance(self._latest, AttendingLayer):
            self._check_shape(layer_idx, key_states, value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def _check_shape(self, layer: int, *tensors: Tensor) -> None:
        expected = [self._decoder.n_kv_heads, self._decoder.head_dim]
        for tensor in tensors:
            if (found := [tensor.shape[1], tensor.shape[3]]) != expected:
                raise UserError(
                    f"layer {layer} has [KV heads, dimension] {found}, its config says {expected}; it is not supported"
                )

    def check_attended(self) -> None:
        """Raises `UserError` where the model attended in code of its own."""
        for layer in self.layers:
            if isinstance(layer, AttendingLayer):
                layer.check_attended()

    def check_read(self, n_tokens: int) -> None:
        """Raises `UserError` where the model did not put so many tokens into every layer, and attend to them."""
        self.check_attended()
        layers: list[Any] = self.layers
        if any(layer.get_seq_length() != n_tokens for layer in layers):
            raise UserError("the model does not use the cache that it is given; it is not supported")
