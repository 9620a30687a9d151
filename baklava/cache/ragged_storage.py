"""Ragged storage of one layer: every KV cache has its own number of entries, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from baklava.budgets.bits import Packing
from baklava.cache.packed_entries import PackedEntries, concatenate_packed, pack
from baklava.cache.ragged_layout import Blocks, RaggedLayout, Remainder, slots_of, writable


@dataclass(frozen=True)
class SharedEntries:
    """Keys and values `[T, D]` of a context, for the KV caches `owners` `[P]` that keep all of them without a copy."""

    keys: Tensor
    values: Tensor
    owners: Tensor


class RaggedEntries:
    """Keys and values `[N, D]` of `C` KV caches, N the sum of their entries; `layout` says where each lies.

    A cache in `shared` has no entries here; it reads those of the context. Those in `packed` are quantised and lie
    between the first ones and the last ones of their KV cache.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        shared: Sequence[SharedEntries] = (),
        packed: Sequence[PackedEntries] = (),
    ):
        self.keys = keys
        self.values = values
        self.layout = layout
        self.shared = shared
        self.packed = packed

    @classmethod
    def gather(
        cls,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        kept: Tensor,
        *,
        share: bool = False,
        bits: Tensor | None = None,
        packing: Packing | None = None,
    ) -> RaggedEntries:
        """Gather the entries `kept` `[C, T]` of contexts `[B, Hkv, T, D]`, KV cache `r * Hkv + h` from row `rows[r]`.

        Entries stay in the order of the text. With `share`, KV caches that are fully kept are not copied. With `bits`
        `[C, 2]`, entries are quantised as `packing` says.
        """
        n_kv_heads = keys.shape[1]
        packed: list[PackedEntries] = []
        if bits is not None:
            packed, kept = pack(keys, values, rows, kept, bits, packing or Packing())
        shared: list[SharedEntries] = []
        if share:
            fully_kept = kept.all(-1)
            kept = kept & ~fully_kept[:, None]
            for row in rows.unique().tolist():
                for head in range(n_kv_heads):
                    owners = (fully_kept.view(-1, n_kv_heads)[:, head] & (rows == row)).nonzero().squeeze(-1)
                    if len(owners):
                        shared.append(SharedEntries(keys[row, head], values[row, head], owners * n_kv_heads + head))
        layout = RaggedLayout.of(kept.sum(-1).cpu(), keys.device)
        caches, position = kept.nonzero(as_tuple=True)  # cache by cache
        _, slots = slots_of(layout.counts.to(keys.device))
        source = torch.empty_like(position)
        source[layout.positions(caches, slots)] = torch.arange(len(position), device=keys.device)
        caches, position = caches[source], position[source]
        where = (rows[caches // n_kv_heads], caches % n_kv_heads, position)
        return cls(keys[where], values[where], layout, shared, packed)

    @classmethod
    def concatenate(cls, storages: Sequence[RaggedEntries]) -> RaggedEntries:
        """Put the KV caches of several storages one after another."""
        n_before = accumulate((len(storage.layout.counts) for storage in storages), initial=0)
        return cls(
            torch.cat([storage.keys for storage in storages]),
            torch.cat([storage.values for storage in storages]),
            RaggedLayout.concatenate([storage.layout for storage in storages]),
            [
                SharedEntries(shared.keys, shared.values, n + shared.owners)
                for n, storage in zip(n_before, storages, strict=False)
                for shared in storage.shared
            ],
            concatenate_packed([(len(storage.layout.counts), storage.packed) for storage in storages]),
        )

    def select(self, caches: Tensor) -> RaggedEntries:
        """Copy these KV caches `[C']`, in this order; a cache may occur more than once."""
        layout = RaggedLayout.of(self.layout.counts[caches.cpu()], self.keys.device)
        source, chosen = self.layout.sources(caches, layout), caches.to(self.keys.device)
        shared = [
            SharedEntries(entries.keys, entries.values, torch.isin(chosen, entries.owners).nonzero().squeeze(-1))
            for entries in self.shared
        ]
        keys, values = self.keys.index_select(0, source), self.values.index_select(0, source)
        shared = [entries for entries in shared if len(entries.owners)]
        return RaggedEntries(keys, values, layout, shared, [packed.select(caches) for packed in self.packed])

    @property
    def entry_bytes(self) -> int:
        """Bytes of the key and value of one entry."""
        return self.keys.shape[-1] * self.keys.element_size() + self.values.shape[-1] * self.values.element_size()

    def cache_bytes(self, counts: Tensor) -> Tensor:
        """Bytes `[C]` of KV caches that have `counts` `[C]` entries, packed and shared ones among them."""
        n_bytes = counts * self.entry_bytes
        for packed in self.packed:
            n_bytes = n_bytes + packed.layout.counts * packed.group_bytes - packed.counts * self.entry_bytes
        return n_bytes

    @property
    def tensors(self) -> list[Tensor]:
        """All that holds keys or values, the shared context among it."""
        shared = [tensor for entries in self.shared for tensor in (entries.keys, entries.values)]
        return [self.keys, self.values, *shared, *(tensor for packed in self.packed for tensor in packed.tensors)]

    def write(self, caches: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Overwrite slots `[M]` of KV caches `[M]` with keys and values `[M, D]`."""
        for packed in self.packed:
            first, n = packed.packing.sinks, packed.counts.to(slots.device)[caches]
            inner = (n > 0) & (slots >= first) & (slots < first + n)
            if bool(inner.any()):
                packed.write(caches[inner], slots[inner] - first, keys[inner], values[inner])
            slots = torch.where((n > 0) & (slots >= first + n), slots - n, slots)
            caches, slots, keys, values = (tensor[~inner] for tensor in (caches, slots, keys, values))
        where = self.layout.positions(caches, slots)
        self.keys, self.values = writable(self.keys), writable(self.values)
        self.keys[where] = keys
        self.values[where] = values

    def view_blocks(self, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """View the keys and values `[P, length, D]` of blocks, without a copy."""
        end = blocks.start + blocks.length * len(blocks.owners)
        shape = (len(blocks.owners), blocks.length, -1)
        return self.keys[blocks.start : end].view(shape), self.values[blocks.start : end].view(shape)

    def gather_remainder(self, remainder: Remainder) -> tuple[Tensor, Tensor]:
        """Copy the keys and values `[P, W, D]` of a remainder, hidden ones among them."""
        where = remainder.index.flatten()  # `index_select` copies entire rows, which `keys[remainder.index]` does not
        shape = (*remainder.index.shape, -1)
        return self.keys.index_select(0, where).view(shape), self.values.index_select(0, where).view(shape)
