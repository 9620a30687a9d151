"""The base of our caches, whose layers compute their own attention; refuses models that bypass it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedConfig

from baklava.cache.attention.dense import attach, check_attention
from baklava.decoder.config import Decoder
from baklava.decoder.releases import UnlimitedLayer, count_queries, reset_layer
from baklava.errors import UserError


class AttendingLayer(UnlimitedLayer):
    """The base of our cache layers: they have seen `seen` tokens and compute their own attention.

    `awaits_attention` is true from an `update` until the attention function has used its keys.
    """

    is_sliding = False
    is_compileable = False
    supports_early_init = False

    seen: int = 0
    awaits_attention: bool = False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Count new tokens and pass on their keys and values alone; layers that keep them override this."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.mark_updated()
        self.seen += key_states.shape[2]
        return attach(key_states, self), attach(value_states, self)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """Compute the attention `[B, Hq, Q, D]` of the tokens just added."""
        raise NotImplementedError

    def mark_updated(self) -> None:
        """Note that keys were put in. Raises `UserError` if the attention function never used those before."""
        self.check_attended()
        self.awaits_attention = True

    def mark_attended(self) -> None:
        """Note that the attention function uses the keys. Raises `UserError` if it has used them already."""
        if not self.awaits_attention:
            raise UserError("the model attends to one KV cache from more than one layer, which is not supported")
        self.awaits_attention = False

    def check_attended(self) -> None:
        """Raises `UserError` if the model attended to the latest keys in code of its own."""
        if self.awaits_attention:
            raise UserError("the model did not hand its keys and values to the baklava attention; it is not supported")

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        return self.seen + count_queries(query_length), 0

    def get_seq_length(self) -> int:
        """Return the number of tokens seen, not of entries kept, so that positions stay true."""
        return self.seen


class AttendedCache(Cache):
    """The base of our caches: the model must use their layers' keys through the attention `baklava`."""

    def __init__(self, config: PreTrainedConfig, decoder: Decoder, layers: list[Any]):
        super().__init__(layers)
        self._config = config
        self._decoder = decoder
        self._latest: Any = None  # the layer that was updated last

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

    def reset(self) -> None:
        for layer in self.layers:
            reset_layer(layer)

    def _check_shape(self, layer: int, *tensors: Tensor) -> None:
        expected = [self._decoder.n_kv_heads, self._decoder.head_dim]
        for tensor in tensors:
            if (actual := [tensor.shape[1], tensor.shape[3]]) != expected:
                raise UserError(
                    f"layer {layer} has [KV heads, dimension] {actual}, its config says {expected}; it is not supported"
                )

    def check_attended(self) -> None:
        """Raises `UserError` if the model attended in code of its own."""
        for layer in self.layers:
            if isinstance(layer, AttendingLayer):
                layer.check_attended()

    def check_read(self, n_tokens: int) -> None:
        """Raises `UserError` unless the model put `n_tokens` tokens into every layer and attended to them."""
        self.check_attended()
        layers: list[Any] = self.layers
        if any(layer.get_seq_length() != n_tokens for layer in layers):
            raise UserError("the model does not use the cache that it is given; it is not supported")
