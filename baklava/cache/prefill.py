"""Prefill: reads a context in full while eviction policies observe its queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from baklava.cache.attended import AttendedCache, AttendingLayer
from baklava.cache.attention.dense import attach, dense_attention
from baklava.cache.layers import build_layers
from baklava.cache.padding import padding_of_attention
from baklava.cache.projections import Paths, check_paths
from baklava.decoder.attention_path import AttentionPath
from baklava.decoder.config import decoder_of, text_config
from baklava.decoder.length_dependent_rope import RotationWatch
from baklava.eviction import EvictionPolicy
from baklava.eviction.base import LayerContext


@dataclass
class RowGroup:
    """Rows of a batch with equally much padding before them, and what each policy remembers of their queries."""

    rows: Tensor | None  # None: all rows
    padding: int
    states: dict[EvictionPolicy, Any] = field(default_factory=dict)

    def select(self, tensor: Tensor, *, skip: int) -> Tensor:
        """Select the group's rows of `[B, ..., n, D]`, without the first `skip` of the `n`."""
        return (tensor if self.rows is None else tensor[self.rows.to(tensor.device)])[..., skip:, :]

    def indices_of(self, rows: Tensor) -> Tensor:
        """Index of batch rows `[R]` in this group, -1 for rows of another group."""
        if self.rows is None:
            return rows
        matches = rows[:, None] == self.rows  # [R, G]
        return torch.where(matches.any(-1), matches.int().argmax(-1), -1)


class ScoredGroup(NamedTuple):
    """Scores `[rows, Hkv, T - padding]` by which KV caches compete, and by which each ranks its own entries."""

    group: RowGroup
    scores: Tensor
    order: Tensor


class ContextLayer(AttendingLayer):
    """One layer's full keys and values `[B, Hkv, T, D]`, read in one pass or in chunks.

    With `length`, the length of the entire context, storage is allocated once instead of at every chunk. `padding`
    `[B]` counts the padding before each row's first token; without it, the mask of the first chunk shows it. `path` is
    for policies that need the output projection.
    """

    def __init__(
        self,
        layer_index: int,
        config: PreTrainedConfig,
        policies: Iterable[EvictionPolicy],
        length: int | None = None,
        padding: Tensor | None = None,
        path: AttentionPath | None = None,
    ):
        super().__init__()
        self._path = path
        self._layer_index = layer_index
        self._config = config
        self._policies = tuple(dict.fromkeys(policies))
        self._length = length
        self._padding = padding
        self._groups: list[RowGroup] = []
        self._scored: dict[EvictionPolicy, list[ScoredGroup]] = {}
        self._scaling = 1.0
        self._softcap: float | None = None
        self.rotation = RotationWatch(config)
        self.seen = 0
        self.observed = 0  # tokens whose queries the policies have observed

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append a chunk; returns all keys and values so far, for `attend`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.mark_updated()
        n_new = key_states.shape[2]
        if self._length is None:
            self.keys = key_states if self.keys is None else torch.cat([self.keys, key_states], 2)
            self.values = value_states if self.values is None else torch.cat([self.values, value_states], 2)
            keys, values = self.keys, self.values
        else:
            if self.keys is None or self.values is None:
                self.keys = key_states.new_empty(*key_states.shape[:2], self._length, key_states.shape[3])
                self.values = value_states.new_empty(*value_states.shape[:2], self._length, value_states.shape[3])
            end = self.seen + n_new
            self.keys[:, :, self.seen : end] = key_states
            self.values[:, :, self.seen : end] = value_states
            keys, values = self.keys[:, :, :end], self.values[:, :, :end]
        self.seen += n_new
        return attach(keys, self), attach(values, self)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """Compute the causal attention of a chunk `[B, Hq, Q, D]`, whose queries the policies observe."""
        self.mark_attended()
        if not self._groups:
            self._groups = _group_rows(padding_of_attention(mask) if self._padding is None else self._padding)
        self.rotation.check(self.seen - min(group.padding for group in self._groups))
        self._scaling, self._softcap = scaling, softcap
        self._scored.clear()
        for group in self._groups:
            n_padding = max(0, group.padding - self.observed)  # of this chunk
            queries = group.select(query, skip=n_padding)
            if queries.shape[2]:
                context = self._context(group, key, value)
                for policy in self._policies:
                    group.states[policy] = policy.observe(group.states.get(policy), queries, context)
        self.observed = self.seen
        return dense_attention(query, key, value, scaling=scaling, mask=mask, softcap=softcap)

    def _context(self, group: RowGroup, keys: Tensor, values: Tensor) -> LayerContext:
        return LayerContext(
            keys=group.select(keys, skip=group.padding),
            values=group.select(values, skip=group.padding),
            scaling=self._scaling,
            softcap=self._softcap,
            layer_index=self._layer_index,
            config=self._config,
            rotated_for=self.rotation.length,
            path=self._path,
        )

    def scores(self, policy: EvictionPolicy) -> list[ScoredGroup]:
        """Let a policy score the context, for each group of rows."""
        assert self.keys is not None and self.values is not None
        if policy in self._scored:
            return self._scored[policy]
        scored = []
        for group in self._groups:
            context = self._context(group, self.keys, self.values)
            scored.append(ScoredGroup(group, *policy.score_and_order(context, group.states.get(policy))))
        if policy.needs_all_layers:  # asked for twice: for the competition, and for each layer's ranks
            self._scored[policy] = scored
        return scored

    def context_of(self, row: int) -> tuple[RowGroup, int, LayerContext]:
        """The group of a batch row, its index there, and its context as that of a batch of one row."""
        assert self.keys is not None and self.values is not None
        for group in self._groups:
            if (index := int(group.indices_of(torch.tensor([row])))) >= 0:
                alone = slice(row, row + 1)
                context = self._context(RowGroup(None, group.padding), self.keys[alone], self.values[alone])
                return group, index, context
        raise IndexError(row)

    @property
    def n_rows(self) -> int:
        return 0 if self.keys is None else self.keys.shape[0]

    def lengths(self) -> list[int]:
        """Count the tokens of each row, without padding."""
        lengths = [self.seen] * self.n_rows
        for group in self._groups:
            for row in range(self.n_rows) if group.rows is None else group.rows.tolist():
                lengths[row] -= group.padding
        return lengths

    def reset(self) -> None:
        self.__init__(self._layer_index, self._config, self._policies, path=self._path)  # type: ignore[misc]


def _group_rows(padding: Tensor | None) -> list[RowGroup]:
    """Group rows by their padding."""
    if padding is None:
        return [RowGroup(None, 0)]
    if len(distinct := padding.unique().tolist()) == 1:
        return [RowGroup(None, distinct[0])]
    return [RowGroup((padding == n).nonzero().squeeze(-1), n) for n in distinct]


@dataclass(frozen=True)
class Repetition:
    """What a second reading of the contexts took, in seconds, and its loss per token for each batch row."""

    seconds: float
    losses: Sequence[float]


class ContextCache(AttendedCache):
    """A full cache whose eviction policies observe a context as it is read, to compress it in many ways later.

    See `BudgetedCache.from_context`. The model must use the attention `baklava`. To read a context in chunks, give its
    full `length` and the `padding` `[B]` before its rows. `paths`, by layer, are for policies that need the output
    projection (`find_paths`).
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        policies: Sequence[EvictionPolicy],
        length: int | None = None,
        padding: Tensor | None = None,
        paths: Paths | None = None,
    ):
        decoder, text = decoder_of(config), text_config(config)
        check_paths(policies, paths)
        self.repetitions: dict[EvictionPolicy, Repetition] = {}
        by_layer = paths or {}
        layers = build_layers(decoder, lambda _, i: ContextLayer(i, text, policies, length, padding, by_layer.get(i)))
        super().__init__(text, decoder, layers)

    @property
    def n_rows(self) -> int:
        layers: list[Any] = self.layers
        return layers[0].keys.shape[0]

    def kv_bytes(self) -> int:
        """Bytes of all keys and values."""
        layers: list[Any] = self.layers
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
