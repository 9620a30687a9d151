"""The layout of ragged storage: where the entries of KV caches of different sizes lie, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# A KV cache is stored in as many blocks of the first length as fit, then of the second; its remainder is shorter.
# Blocks of all KV caches lie side by side, so that they are one batch of equal products, however uneven the budgets.
BLOCK_SIZES = (512, 64)


@dataclass(frozen=True)
class Blocks:
    """`P` equally long blocks of KV caches: entries `start` to `start + P * length` of the storage."""

    start: int
    length: int
    owners: Tensor  # [P], the KV cache that each block belongs to


@dataclass(frozen=True)
class Remainder:
    """The ends of the `P` KV caches that do not fill their last block, padded to the longest of them, `W` entries."""

    owners: Tensor  # [P], the KV cache that each belongs to
    index: Tensor  # [P, W], where the entries lie in storage
    hidden: Tensor  # [P, 1, W], true past the end of the KV cache


@dataclass(frozen=True)
class WorkItems:
    """Storage cut into `n` stretches of one KV cache each, for programs that run in parallel.

    The results of KV cache `c` have the indices `bounds[c]` to `bounds[c + 1]`.
    """

    table: Tensor  # int32 [n, 4]: first entry, number of entries, KV cache, index of the result
    bounds: Tensor  # int32 [C + 1]

    def __len__(self) -> int:
        return self.table.shape[0]


class RaggedLayout:
    """Where the entries of `C` KV caches lie in storage; `counts` `[C]` says how many each has (int64, on the CPU)."""

    def __init__(
        self,
        counts: Tensor,
        device: torch.device,
        blocks: Sequence[Blocks],
        starts: list[Tensor],
        ends: list[Tensor],
        n_entries: int,
    ):
        self.counts = counts
        self.device = device
        self.n_entries = n_entries
        self._blocks = blocks
        self._starts = starts  # `[C]` where the blocks of each length begin in storage, then where the remainder does
        self._ends = ends  # `[C]` the slots at which these end
        self._items: dict[int, WorkItems] = {}

    @classmethod
    def of(cls, counts: Tensor, device: torch.device, sizes: Sequence[int] = BLOCK_SIZES) -> RaggedLayout:
        """Lay out KV caches that have `counts` `[C]` entries, in blocks of `sizes` entries, the longest first."""
        left = counts
        start = 0
        blocks, starts, ends = [], [], []
        caches = torch.arange(len(counts))
        for length in sizes:
            n_blocks = left // length
            starts.append(start + length * before_each(n_blocks))
            ends.append(counts - left + length * n_blocks)
            blocks.append(Blocks(start, length, caches.repeat_interleave(n_blocks).to(device)))
            start += length * int(n_blocks.sum())
            left = left - length * n_blocks
        starts.append(start + before_each(left))
        return cls(counts, device, blocks, starts, [*ends, counts], start + int(left.sum()))

    @classmethod
    def concatenate(cls, layouts: Sequence[RaggedLayout]) -> RaggedLayout:
        """Lay out several storages one after another."""
        blocks: list[Blocks] = []
        starts: list[list[Tensor]] = []
        n_caches = n_entries = 0
        for layout in layouts:
            blocks += (Blocks(n_entries + old.start, old.length, n_caches + old.owners) for old in layout._blocks)
            starts.append([n_entries + start for start in layout._starts])
            n_caches += len(layout.counts)
            n_entries += layout.n_entries
        ends = zip(*(layout._ends for layout in layouts), strict=True)
        return cls(
            torch.cat([layout.counts for layout in layouts]),
            layouts[0].device,
            blocks,
            [torch.cat(parts) for parts in zip(*starts, strict=True)],
            [torch.cat(parts) for parts in ends],
            n_entries,
        )

    def sources(self, caches: Tensor, copy: RaggedLayout) -> Tensor:
        """Find where the entries of a copy of KV caches `[C']` lie here, in the order in which `copy` lays them out."""
        new, slots = slots_of(copy.counts.to(self.device))
        source = torch.empty_like(new)
        source[copy.positions(new, slots)] = self.positions(caches.to(self.device)[new], slots)
        return source

    def positions(self, caches: Tensor, slots: Tensor) -> Tensor:
        """Find where slots `[M]` of KV caches `[M]` lie in storage; the slots of a cache count from 0."""
        position = torch.empty_like(slots)
        begin = torch.zeros_like(slots)
        todo = torch.ones_like(slots, dtype=torch.bool)
        for starts, ends in zip(self._starts, self._ends, strict=True):
            start, end = starts.to(slots.device)[caches], ends.to(slots.device)[caches]
            here = todo & (slots < end)
            position = torch.where(here, start + slots - begin, position)
            todo &= ~here
            begin = end
        return position

    def blocks(self) -> Iterator[Blocks]:
        return (blocks for blocks in self._blocks if len(blocks.owners))

    @cached_property
    def remainder(self) -> Remainder | None:
        remaining = self.counts - self._ends[-2]
        owners = remaining.nonzero().squeeze(-1)
        if not len(owners):
            return None
        left, column = remaining[owners, None], torch.arange(int(remaining.max()))
        index = self._starts[-1][owners, None] + column.clamp(max=left - 1)  # [P, W]
        return Remainder(owners.to(self.device), index.to(self.device), (column >= left)[:, None].to(self.device))

    def work_items(self, max_length: int) -> WorkItems:
        """Cut all of storage into stretches of at most `max_length` entries, in storage order; remembers the result."""
        if max_length not in self._items:
            start, length, cache = self._segments()
            n_cuts = (length + max_length - 1) // max_length
            segment, nth = slots_of(n_cuts)
            begin, cache = nth * max_length, cache[segment]
            result = torch.empty_like(cache)
            result[cache.argsort(stable=True)] = torch.arange(len(cache))
            n_entries = (length[segment] - begin).clamp(max=max_length)
            table = torch.stack([start[segment] + begin, n_entries, cache, result], -1)
            n_items = cache.bincount(minlength=len(self.counts))
            bounds = torch.cat([torch.zeros(1, dtype=torch.int64), n_items.cumsum(0)])
            tensors = (tensor.to(torch.int32).to(self.device) for tensor in (table, bounds))
            self._items[max_length] = WorkItems(*tensors)
        return self._items[max_length]

    def _segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Start, length and KV cache of all that is contiguous: a cache's blocks of one length, or its remainder."""
        starts, ends = torch.stack(self._starts), torch.stack(self._ends)  # [kinds, C]
        lengths = ends.diff(dim=0, prepend=torch.zeros_like(ends[:1]))
        kind, cache = lengths.nonzero(as_tuple=True)
        order = starts[kind, cache].argsort()
        kind, cache = kind[order], cache[order]
        return starts[kind, cache], lengths[kind, cache], cache


def before_each(counts: Tensor) -> Tensor:
    """Count the entries that lie before those of each KV cache."""
    return counts.cumsum(0) - counts


def slots_of(counts: Tensor) -> tuple[Tensor, Tensor]:
    """List the KV cache and the slot of every entry, cache by cache: two `[N]` for `counts` `[C]`."""
    caches = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return caches, torch.arange(len(caches), device=counts.device) - before_each(counts)[caches]


def writable(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where it was made in inference mode and cannot be written to outside of it."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor
