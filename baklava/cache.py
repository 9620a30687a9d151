"""`BudgetedCache`: a KV cache in which every (layer, KV head) keeps its own number of entries."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from baklava.attention import check_attention
from baklava.budgeted_layer import BudgetedLayer, Decoding, bytes_of
from baklava.budgets import Budgets
from baklava.compression import RowSettings
from baklava.context import ContextCache, ContextLayer, cache_layers
from baklava.errors import UserError
from baklava.eviction import POLICIES, EvictionPolicy


class BudgetedCache(Cache):
    """A `transformers` cache that keeps, of the context, as many entries of each KV cache as its budget says.

    The first tokens that it is given are the context (`prefill` reads one in chunks): each layer's are compressed
    before the next layer runs, so that the peak is the compressed cache and one full layer. Entries that are evicted
    are gone: storage is ragged. `get_seq_length()` is the number of tokens seen, so that positions stay true. What
    comes after the context (question, answer) is appended (`decoding` "grow") or overwrites the least wanted entries,
    so that no KV cache ever exceeds its budget ("fixed"; a step still sees all of itself).

    The model must use the attention `baklava`: `model.set_attn_implementation("baklava")`. `budgets` is one set for
    all batch rows, or one per row; its layers are those that see all tokens (sliding windows are small already and
    stay whole). `eviction` is the name of a policy, a policy, or one per row. Batches are padded on the left.

    Raises `UserError` (a `ValueError`) for budgets of another shape, an unknown policy, or a model whose attention
    is not set.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        budgets: Budgets | Sequence[Budgets],
        eviction: str | EvictionPolicy | Sequence[EvictionPolicy] = "streaming_llm",
        decoding: Decoding = "grow",
    ):
        config = config.get_text_config(decoder=True)
        if decoding not in get_args(Decoding):
            raise UserError(f"unknown decoding {decoding!r}; known: {', '.join(get_args(Decoding))}")
        settings = RowSettings([budgets] if isinstance(budgets, Budgets) else list(budgets), _policies(eviction))
        self._config = config
        layers = cache_layers(config, lambda place, i: BudgetedLayer(place, i, config, settings, decoding))
        settings.check_shape((sum(isinstance(one, BudgetedLayer) for one in layers), config.num_key_value_heads))
        super().__init__(layers)

    @classmethod
    def from_context(
        cls,
        config: PreTrainedConfig,
        context: ContextCache,
        budgets: Budgets | Sequence[Budgets],
        eviction: str | EvictionPolicy | Sequence[EvictionPolicy] = "streaming_llm",
        decoding: Decoding = "grow",
        *,
        contexts: Tensor | None = None,
        share: bool = False,
    ) -> BudgetedCache:
        """A cache compressed from contexts that were read before, one row per element of `budgets`.

        Row `b` comes from row `contexts[b]` of the context, from the only one where there is one, else from row `b`.
        The context stays as it is, and can be compressed again. It must have been watched by the same policies. With
        `share`, KV caches that a row keeps whole are not copied, and the context stays alive as long as the rows;
        decoding must be "grow".
        """
        if share and decoding != "grow":
            raise UserError(f'decoding {decoding!r} overwrites entries, which a shared context forbids; use "grow"')
        cache = cls(config, budgets, eviction, decoding)
        n_contexts = context.n_rows
        n_rows = n_contexts if isinstance(budgets, Budgets) else len(budgets)
        if contexts is None:
            contexts = torch.zeros(n_rows, dtype=torch.int64) if n_contexts == 1 else torch.arange(n_rows)
        if len(contexts) != n_rows or int(contexts.max()) >= n_contexts:
            raise UserError(f"{n_rows} rows cannot be made of the context rows {contexts.tolist()} of {n_contexts}")
        layers: list[Any] = cache.layers
        shared: list[Any] = context.layers
        for i, full in enumerate(shared):
            layer = layers[i]
            if isinstance(layer, BudgetedLayer):
                assert isinstance(full, ContextLayer)
                layer.compress(full, contexts, share=share)
            else:  # a sliding window
                layers[i] = layer = copy.copy(full)
                layer.batch_select_indices(contexts.to(layer.keys.device))
        return cache

    @property
    def budgeted_layers(self) -> list[BudgetedLayer]:
        """The layers that see all tokens; `budgets` and `kept_entries` count only these."""
        return [layer for layer in self.layers if isinstance(layer, BudgetedLayer)]

    @torch.no_grad()
    def prefill(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None, *, chunk: int = 1024
    ) -> Tensor:
        """Read a context `[B, T]` in chunks and compress it; returns the logits of the last token `[B, vocabulary]`.

        Attention takes memory for `chunk * T` scores at most. Layers are compressed during the last chunk, so that
        every token of the context saw all before it: the entries kept are those of a single pass.
        """
        if self.get_seq_length():
            raise UserError("the cache holds a context already; call reset() or make a new one")
        if chunk < 1 or input_ids.shape[1] < 1:
            raise UserError(f"chunk and context must be at least one token, got {chunk} and {input_ids.shape[1]}")
        length = input_ids.shape[1]
        padding = None if attention_mask is None else (attention_mask.long().cumsum(-1) == 0).sum(-1).cpu()
        for layer in self.budgeted_layers:
            layer.expect(length, padding)
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            positions = torch.arange(length, device=input_ids.device)[None, part]
            if padding is not None:
                positions = (positions - padding[:, None].to(positions.device)).clamp(min=0)
            logits = model(
                input_ids[:, part],
                attention_mask=None if attention_mask is None else attention_mask[:, : part.stop],
                position_ids=positions,
                past_key_values=self,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        return logits[:, -1]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        check_attention(self._config)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def kept_entries(self) -> Tensor:
        """Entries of the context that each KV cache keeps, int64 `[n_layers, batch, n_kv_heads]`."""
        return torch.stack([layer.compressed.counts for layer in self.budgeted_layers if layer.compressed is not None])

    def row_bytes(self) -> Tensor:
        """Bytes that the compressed context takes, per batch row, int64 `[batch]`."""
        compressed = [layer.compressed for layer in self.budgeted_layers if layer.compressed is not None]
        return torch.stack([one.counts.sum(-1) * one.entries.entry_bytes for one in compressed]).sum(0)

    def kv_bytes(self) -> int:
        """Bytes really allocated for keys and values: context, later tokens, their room for growth, sliding windows."""
        layers: list[Any] = self.layers
        return sum(
            layer.allocated_bytes() if isinstance(layer, BudgetedLayer) else bytes_of([layer.keys, layer.values])
            for layer in layers
        )

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.reorder_cache(rows)

    def append_rows(self, other: BudgetedCache) -> None:
        """Take in the rows of another cache after the own ones: from now on they are decoded together.

        Both have read on after their contexts, whose lengths may differ, with decoding "grow". A row that has seen
        fewer tokens has padding before it, which the attention mask must say.
        """
        layers: list[Any] = self.layers
        others: list[Any] = other.layers
        for layer, theirs in zip(layers, others, strict=True):
            if isinstance(layer, BudgetedLayer):
                layer.append_rows(theirs)
            else:
                _append_window(layer, theirs)


def _append_window(layer: Any, other: Any) -> None:
    """Sliding windows `[B, Hkv, n, D]` of different length end together."""
    n = max(layer.keys.shape[2], other.keys.shape[2])
    for name in ("keys", "values"):
        windows = (getattr(one, name) for one in (layer, other))
        padded = [torch.nn.functional.pad(one, (0, 0, n - one.shape[2], 0)) for one in windows]
        setattr(layer, name, torch.cat(padded))
    layer.cumulative_length = max(layer.cumulative_length, other.cumulative_length)


def _policies(eviction: str | EvictionPolicy | Sequence[EvictionPolicy]) -> list[EvictionPolicy]:
    if isinstance(eviction, str):
        if eviction not in POLICIES:
            raise UserError(f"unknown eviction policy {eviction!r}; known: {', '.join(sorted(POLICIES))}")
        return [POLICIES[eviction]()]
    return [eviction] if isinstance(eviction, EvictionPolicy) else list(eviction)
