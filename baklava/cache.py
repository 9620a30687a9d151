"""`BudgetedCache`: a KV cache in which every (layer, KV head) keeps its own number of entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer

from baklava.attention import NAME, RaggedEntries, Run, attach_entries
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.eviction import POLICIES, EvictionPolicy

TAIL_GROWTH = 64


class BudgetedLayer(CacheLayerMixin):
    """One layer's entries: the first tokens it is given are the context, compressed at once; later ones are kept.

    `counts` `[B, Hkv]` is what each KV cache keeps; it is known once the context's length is.
    """

    is_sliding = False
    is_compileable = False
    supports_early_init = False

    def __init__(self, layer_index: int, budgets: Sequence[Budgets], policies: Sequence[EvictionPolicy]):
        super().__init__()
        self._layer_index = layer_index
        self._budgets = budgets
        self._policies = policies
        self._forget()

    def _forget(self) -> None:
        self.is_initialized = False
        self.seen = 0
        self.runs: list[Run] = []
        self.counts: Tensor | None = None
        self._tail_keys: Tensor | None = None
        self._tail_values: Tensor | None = None
        self._tail_length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        empty = key_states[:, :, :0]
        self._tail_keys, self._tail_values = empty.clone(), empty.clone()
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in keys and values `[B, Hkv, T, D]`; returns what the attention needs to see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.compress(key_states, value_states)
            return key_states, value_states
        self._append(key_states, value_states)
        keys, values = self.tail
        return attach_entries(keys, RaggedEntries(self.runs, keys, values)), values

    def compress(self, keys: Tensor, values: Tensor) -> None:
        """Keep of a context `[B or 1, Hkv, T, D]` what each row's policy and budgets say.

        One context row serves all rows of the cache when there is just one.
        """
        if len(self._budgets) > 1 and keys.shape[0] not in (1, len(self._budgets)):
            raise UserError(f"budgets for {len(self._budgets)} rows, but the batch has {keys.shape[0]}")
        n_rows = max(len(self._budgets), keys.shape[0])
        n_entries = keys.shape[2]
        budgets = list(self._budgets) * (n_rows // len(self._budgets))
        counts = torch.stack([torch.from_numpy(one.entries(n_entries)[self._layer_index]) for one in budgets])
        self.counts = counts  # [B, Hkv]
        self.seen = n_entries
        self._resize_tail(n_rows)
        policies = list(self._policies) * (n_rows // len(self._policies))
        for policy in dict.fromkeys(policies):
            rows = torch.tensor([row for row in range(n_rows) if policies[row] == policy])
            scores = policy.score(keys, values)  # [B or 1, Hkv, T]
            for n in counts[rows].unique().tolist():
                row, head = (counts[rows] == n).nonzero(as_tuple=True)
                row = rows[row]
                if n:
                    self.runs.append(_gather(keys, values, scores, row, head, n))

    def _resize_tail(self, n_rows: int) -> None:
        assert self._tail_keys is not None and self._tail_values is not None
        if self._tail_keys.shape[0] != n_rows:
            self._tail_keys = self._tail_keys.new_empty(n_rows, *self._tail_keys.shape[1:])
            self._tail_values = self._tail_values.new_empty(n_rows, *self._tail_values.shape[1:])

    def _append(self, keys: Tensor, values: Tensor) -> None:
        assert self._tail_keys is not None and self._tail_values is not None
        if keys.shape[0] != self._tail_keys.shape[0]:
            raise UserError(
                f"the cache holds {self._tail_keys.shape[0]} rows and was given {keys.shape[0]}; "
                "make a new BudgetedCache for another batch size"
            )
        end = self._tail_length + keys.shape[2]
        if end > self._tail_keys.shape[2]:  # grow in steps: a copy now and then, not one per token
            room = max(end, self._tail_length + TAIL_GROWTH)
            self._tail_keys = _grown(self._tail_keys, self._tail_length, room)
            self._tail_values = _grown(self._tail_values, self._tail_length, room)
        self._tail_keys[:, :, self._tail_length : end] = keys
        self._tail_values[:, :, self._tail_length : end] = values
        self._tail_length = end
        self.seen += keys.shape[2]

    @property
    def tail(self) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, Hkv, M, D]` of the tokens since the context."""
        assert self._tail_keys is not None and self._tail_values is not None
        return self._tail_keys[:, :, : self._tail_length], self._tail_values[:, :, : self._tail_length]

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order; a row may occur more than once."""
        if not self.is_initialized:
            return
        assert self.counts is not None and self._tail_keys is not None and self._tail_values is not None
        n_kv_heads = self.counts.shape[1]
        self.counts = self.counts[rows.cpu()]
        self._tail_keys, self._tail_values = self._tail_keys[rows], self._tail_values[rows]
        runs = []
        for run in self.runs:
            old_row, head = run.caches // n_kv_heads, run.caches % n_kv_heads
            new_row, member = (rows[:, None] == old_row).nonzero(as_tuple=True)
            if len(member):
                runs.append(Run(new_row * n_kv_heads + head[member], run.keys[member], run.values[member]))
        self.runs = runs

    def row_bytes(self) -> Tensor:
        """Bytes of the compressed context's keys and values, per batch row `[B]`."""
        assert self.counts is not None
        sizes = torch.zeros(self.counts.shape[0], dtype=torch.int64)
        for run in self.runs:
            each = (run.keys[0].numel() + run.values[0].numel()) * run.keys.element_size()
            sizes.index_add_(
                0, run.caches.cpu() // self.counts.shape[1], torch.full((len(run.caches),), each, dtype=torch.int64)
            )
        return sizes

    def allocated_bytes(self) -> int:
        """Bytes of every tensor that holds keys or values, room for growth included."""
        tensors = [tensor for run in self.runs for tensor in (run.keys, run.values)]
        tensors += [tensor for tensor in (self._tail_keys, self._tail_values) if tensor is not None]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen, so that positions stay true; not the number of entries kept."""
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self._forget()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens (a negative number, as in transformers); never into the compressed context."""
        n = abs(tokens_to_remove)
        if n > self._tail_length:
            raise UserError(f"cannot crop {n} tokens: only {self._tail_length} came after the compressed context")
        self._tail_length -= n
        self.seen -= n

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.counts is not None:
            rows = torch.arange(self.counts.shape[0], device=self.device)
            self.select_rows(rows.repeat_interleave(repeats))


def _grown(tensor: Tensor, length: int, room: int) -> Tensor:
    grown = tensor.new_empty(*tensor.shape[:2], room, tensor.shape[3])
    grown[:, :, :length] = tensor[:, :, :length]
    return grown


def _gather(keys: Tensor, values: Tensor, scores: Tensor, row: Tensor, head: Tensor, n: int) -> Run:
    """The `n` entries of highest score of each (row, head) `[P]`, in the order of the text."""
    device = keys.device
    caches = (row * keys.shape[1] + head).to(device)
    row, head = (row if keys.shape[0] > 1 else torch.zeros_like(row)).to(device), head.to(device)
    if n == keys.shape[2]:
        return Run(caches, keys[row, head], values[row, head])
    kept = scores[row, head].topk(n, dim=-1).indices.sort(dim=-1).values  # [P, n]
    at = (row[:, None], head[:, None], kept)
    return Run(caches, keys[at], values[at])


class BudgetedCache(Cache):
    """A `transformers` cache that keeps, of the context, as many entries of each KV cache as its budget says.

    The first tokens it sees are the context: each layer's are compressed before the next layer runs, so that the
    peak is the compressed cache and one full layer. Tokens after it (question, answer) are all kept (`decoding`
    "grow"). Entries that are evicted are gone: storage is ragged, and `get_seq_length()` is the number of tokens
    seen, so that positions stay true.

    The model must use the attention `baklava`: `model.set_attn_implementation("baklava")`. `budgets` is one set for
    all batch rows, or one per row. `eviction` is the name of a policy, a policy, or one per row.

    Raises `UserError` (a `ValueError`) for budgets of another shape, an unknown policy, or a model whose attention
    is not set.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        budgets: Budgets | Sequence[Budgets],
        eviction: str | EvictionPolicy | Sequence[EvictionPolicy] = "streaming_llm",
        decoding: str = "grow",
    ):
        config = config.get_text_config(decoder=True)
        per_row = [budgets] if isinstance(budgets, Budgets) else list(budgets)
        policies = _policies(eviction)
        _check(config, per_row, policies, decoding)
        self._config = config
        super().__init__([BudgetedLayer(i, per_row, policies) for i in range(config.num_hidden_layers)])

    @classmethod
    def from_prefill(
        cls,
        config: PreTrainedConfig,
        prefill: DynamicCache,
        budgets: Sequence[Budgets],
        eviction: str | EvictionPolicy | Sequence[EvictionPolicy] = "streaming_llm",
    ) -> BudgetedCache:
        """One row per element of `budgets`, all compressed from the same prefilled context (batch of one)."""
        cache = cls(config, budgets, eviction)
        for layer, full in zip(cache.budgeted_layers, prefill.layers, strict=True):
            assert isinstance(full, DynamicLayer) and full.keys is not None and full.values is not None
            layer.lazy_initialization(full.keys, full.values)
            layer.compress(full.keys, full.values)
        return cache

    @property
    def budgeted_layers(self) -> list[BudgetedLayer]:
        return [layer for layer in self.layers if isinstance(layer, BudgetedLayer)]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self._config._attn_implementation != NAME:
            raise UserError(
                f"a BudgetedCache needs the attention {NAME!r}, the model has {self._config._attn_implementation!r}; "
                f'call model.set_attn_implementation("{NAME}") first'
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def kept_entries(self) -> Tensor:
        """Entries of the context that each KV cache keeps, int64 `[n_layers, batch, n_kv_heads]`."""
        return torch.stack([layer.counts for layer in self.budgeted_layers if layer.counts is not None])

    def row_bytes(self) -> Tensor:
        """Bytes that the compressed context takes, per batch row, int64 `[batch]`."""
        return torch.stack([layer.row_bytes() for layer in self.budgeted_layers]).sum(0)

    def kv_bytes(self) -> int:
        """Bytes really allocated for keys and values: context, later tokens and their room for growth."""
        return sum(layer.allocated_bytes() for layer in self.budgeted_layers)

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order."""
        for layer in self.budgeted_layers:
            layer.select_rows(rows)


def _policies(eviction: str | EvictionPolicy | Sequence[EvictionPolicy]) -> list[EvictionPolicy]:
    if isinstance(eviction, str):
        if eviction not in POLICIES:
            raise UserError(f"unknown eviction policy {eviction!r}; known: {', '.join(sorted(POLICIES))}")
        return [POLICIES[eviction]()]
    return [eviction] if isinstance(eviction, EvictionPolicy) else list(eviction)


def _check(
    config: PreTrainedConfig, budgets: Sequence[Budgets], policies: Sequence[EvictionPolicy], decoding: str
) -> None:
    if decoding != "grow":
        raise UserError(f"unknown decoding {decoding!r}; known: grow")
    if not budgets or len(policies) not in (1, len(budgets)):
        raise UserError(
            f"one eviction policy for all rows or one per row: got {len(policies)} for {len(budgets)} budgets"
        )
    shape = (config.num_hidden_layers, config.num_key_value_heads)
    for one in budgets:
        if one.shape != shape:
            origin = f" (made for {one.model})" if one.model else ""
            raise UserError(
                f"budgets are [layers, KV heads] {list(one.shape)}{origin}, the model is {list(shape)}; "
                "use budgets that were made for this model"
            )
    windowed = {"sliding_attention", "chunked_attention"} & set(getattr(config, "layer_types", None) or ())
    if windowed:
        raise UserError(
            f"layers of type {', '.join(sorted(windowed))} are not supported yet; every layer must see all tokens"
        )
