"""Packed entries: whole groups of a KV cache's entries, quantised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baklava.budgets.bits import EXACT, Packing
from baklava.cache.quantised import Quantised
from baklava.cache.ragged_layout import RaggedLayout

BLOCK_ENTRIES = 512  # that one product is over, where a KV cache has so many


@dataclass
class PackedEntries:
    """Groups of entries of those of `C` KV caches that share their bits; `layout` counts groups, not entries."""

    keys: Quantised
    values: Quantised
    layout: RaggedLayout
    packing: Packing

    @classmethod
    def of(
        cls, keys: Tensor, values: Tensor, layout: RaggedLayout, bits: tuple[int, int], packing: Packing
    ) -> PackedEntries:
        """Quantise entries `[P * G, D]` that lie in storage order."""
        grouped = (tensor.unflatten(0, (-1, packing.group)) for tensor in (keys, values))
        key_groups, value_groups = grouped
        span = min(packing.group, values.shape[-1])
        return cls(Quantised.of(key_groups, bits[0], 0), Quantised.of(value_groups, bits[1], span), layout, packing)

    @property
    def kind(self) -> tuple[int, int, Packing]:
        """Storages of one kind can be joined."""
        return self.keys.bits, self.values.bits, self.packing

    @property
    def counts(self) -> Tensor:
        """Entries `[C]` of each KV cache that are packed."""
        return self.layout.counts * self.packing.group

    @property
    def group_bytes(self) -> int:
        """Bytes of one group: codes, scales and zero points of keys and values."""
        return self.keys.group_bytes + self.values.group_bytes

    @property
    def dim(self) -> int:
        """The head dimension of the keys or the values, the greater of the two."""
        return max(self.keys.codes.shape[-1], self.values.codes.shape[-1])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.keys.tensors, *self.values.tensors)

    def empty(self, n_caches: int) -> PackedEntries:
        """No groups of so many KV caches, in storage of the same kind."""
        none = torch.empty(0, dtype=torch.int64, device=self.layout.device)
        layout = lay_out(torch.zeros(n_caches, dtype=torch.int64), self.layout.device, self.packing)
        return PackedEntries(self.keys.take(none), self.values.take(none), layout, self.packing)

    @classmethod
    def concatenate(cls, several: Sequence[PackedEntries]) -> PackedEntries:
        """Put the KV caches of several storages of one kind one after another."""
        return cls(
            Quantised.concatenate([one.keys for one in several]),
            Quantised.concatenate([one.values for one in several]),
            RaggedLayout.concatenate([one.layout for one in several]),
            several[0].packing,
        )

    def select(self, caches: Tensor) -> PackedEntries:
        """Copy these KV caches `[C']`, in this order; a cache may occur more than once."""
        layout = lay_out(self.layout.counts[caches.cpu()], self.layout.device, self.packing)
        source = self.layout.sources(caches, layout)
        return PackedEntries(self.keys.take(source), self.values.take(source), layout, self.packing)

    def write(self, caches: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Overwrite packed entries `[M]`, counted from the first of each KV cache's, with `[M, D]`."""
        size = self.packing.group
        groups = self.layout.positions(caches, slots // size)
        self.keys = self.keys.write(groups, slots % size, keys)
        self.values = self.values.write(groups, slots % size, values)

    def blocks(self) -> Iterator[tuple[Tensor, Quantised, Quantised]]:
        """Yield KV caches `[P]` and views of the keys and values of equally many groups of each, in their order."""
        for blocks in self.layout.blocks():
            groups = slice(blocks.start, blocks.start + len(blocks.owners) * blocks.length)
            yield blocks.owners, self.keys[groups], self.values[groups]


def lay_out(n_groups: Tensor, device: torch.device, packing: Packing) -> RaggedLayout:
    """Lay out KV caches of `n_groups` `[C]` groups each, in blocks of `BLOCK_ENTRIES` entries and single groups."""
    return RaggedLayout.of(n_groups, device, (max(1, BLOCK_ENTRIES // packing.group), 1))


def pack(
    keys: Tensor, values: Tensor, rows: Tensor, kept: Tensor, bits: Tensor, packing: Packing
) -> tuple[list[PackedEntries], Tensor]:
    """Quantise what can be of the entries `kept` `[C, T]` of contexts `[B, Hkv, T, D]`, in `bits` `[C, 2]`.

    KV cache `r * Hkv + h` comes from row `rows[r]`. Returns one storage per pair of bits, and a mask like `kept` of the
    entries that stay in the model's precision: sinks, the newest, those that fill no group, and all at 16 bits.
    """
    n_kv_heads = keys.shape[1]
    n_groups = packing.n_groups(kept.sum(-1).cpu())
    n_groups[(bits == EXACT).all(-1)] = 0
    if not bool(n_groups.any()):
        return [], kept
    slot = kept.cumsum(-1) - 1  # [C, T]
    end = packing.sinks + packing.group * n_groups.to(kept.device)
    inner = kept & (slot >= packing.sinks) & (slot < end[:, None])
    packed = []
    for pair in bits[n_groups > 0].unique(dim=0):
        own = torch.where((bits == pair).all(-1), n_groups, 0)
        layout = lay_out(own, keys.device, packing)
        caches, position = (inner & (own > 0).to(kept.device)[:, None]).nonzero(as_tuple=True)  # cache by cache
        nth = slot[caches, position] - packing.sinks
        where = layout.positions(caches, nth // packing.group) * packing.group + nth % packing.group
        source = torch.empty_like(where)
        source[where] = torch.arange(len(where), device=where.device)
        caches, position = caches[source], position[source]
        index = (rows[caches // n_kv_heads], caches % n_kv_heads, position)
        key_bits, value_bits = pair.tolist()
        packed.append(PackedEntries.of(keys[index], values[index], layout, (key_bits, value_bits), packing))
    return packed, kept & ~inner


def concatenate_packed(storages: Sequence[tuple[int, Sequence[PackedEntries]]]) -> list[PackedEntries]:
    """Put the KV caches of several storages one after another, each given as its KV caches and what they pack."""
    kinds = {packed.kind: packed for _, several in storages for packed in several}
    return [
        PackedEntries.concatenate(
            [next((one for one in several if one.kind == kind), like.empty(n_caches)) for n_caches, several in storages]
        )
        for kind, like in kinds.items()
    ]
