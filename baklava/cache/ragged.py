"""Ragged storage of one layer: every KV cache with its own number of entries, and not one entry more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

# A KV cache is stored in as many pieces of the first length as fit, then of the second; what is left is shorter.
# Pieces of all KV caches lie side by side, so that they are one batch of equal products, however uneven the budgets.
BLOCK_SIZES = (512, 64)


@dataclass(frozen=True)
class Blocks:
    """`P` equally long pieces of KV caches: entries `start` to `start + P * length` of the storage."""

    start: int
    length: int
    owners: Tensor  # [P], the KV cache that each belongs to


@dataclass(frozen=True)
class Remainder:
    """What is left of the KV caches that do not end with a piece: entries `index` `[P, W]`, `hidden` past their end."""

    owners: Tensor  # [P]
    index: Tensor
    hidden: Tensor  # [P, 1, W]


@dataclass(frozen=True)
class WorkItems:
    """Storage cut into `n` stretches of one KV cache each, for programs that run side by side.

    The results of KV cache `c` belong at places `bounds[c]` to `bounds[c + 1]`.
    """

    table: Tensor  # int32 [n, 4]: first entry, number of entries, KV cache, place of the result
    bounds: Tensor  # int32 [C + 1]

    def __len__(self) -> int:
        return self.table.shape[0]


class RaggedLayout:
    """Where the entries of `C` KV caches lie in storage; `counts` `[C]` are their numbers (int64, on the CPU)."""

    def __init__(
        self,
        counts: Tensor,
        device: torch.device,
        pieces: Sequence[Blocks],
        starts: list[Tensor],
        ends: list[Tensor],
        n_entries: int,
    ):
        self.counts = counts
        self.device = device
        self.n_entries = n_entries
        self._pieces = pieces
        self._starts = starts  # `[C]` where the pieces of each length begin, then where what is left does
        self._ends = ends  # `[C]` the slots at which they end
        self._items: dict[int, WorkItems] = {}

    @classmethod
    def of(cls, counts: Tensor, device: torch.device) -> RaggedLayout:
        """For KV caches of so many entries."""
        left = counts
        start = 0
        pieces, starts, ends = [], [], []
        caches = torch.arange(len(counts))
        for length in BLOCK_SIZES:
            n_pieces = left // length
            starts.append(start + length * before_each(n_pieces))
            ends.append(counts - left + length * n_pieces)
            pieces.append(Blocks(start, length, caches.repeat_interleave(n_pieces).to(device)))
            start += length * int(n_pieces.sum())
            left = left - length * n_pieces
        starts.append(start + before_each(left))
        return cls(counts, device, pieces, starts, [*ends, counts], start + int(left.sum()))

    @classmethod
    def joined(cls, layouts: Sequence[RaggedLayout]) -> RaggedLayout:
        """Of storages one after another."""
        pieces: list[Blocks] = []
        starts: list[list[Tensor]] = []
        n_caches = n_entries = 0
        for one in layouts:
            pieces += (Blocks(n_entries + each.start, each.length, n_caches + each.owners) for each in one._pieces)
            starts.append([n_entries + each for each in one._starts])
            n_caches += len(one.counts)
            n_entries += one.n_entries
        ends = zip(*(one._ends for one in layouts), strict=True)
        return cls(
            torch.cat([one.counts for one in layouts]),
            layouts[0].device,
            pieces,
            [torch.cat(some) for some in zip(*starts, strict=True)],
            [torch.cat(some) for some in ends],
            n_entries,
        )

    def positions(self, caches: Tensor, slots: Tensor) -> Tensor:
        """Index in storage of slot `slots` `[M]` of KV cache `caches` `[M]`; slots of a cache count from 0."""
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

    def pieces(self) -> Iterator[Blocks]:
        return (one for one in self._pieces if len(one.owners))

    @cached_property
    def rest(self) -> Remainder | None:
        remaining = self.counts - self._ends[-2]
        owners = remaining.nonzero().squeeze(-1)
        if not len(owners):
            return None
        left, column = remaining[owners, None], torch.arange(int(remaining.max()))
        index = self._starts[-1][owners, None] + column.clamp(max=left - 1)  # [P, W]
        return Remainder(owners.to(self.device), index.to(self.device), (column >= left)[:, None].to(self.device))

    def work_items(self, most: int) -> WorkItems:
        """All of storage in stretches of at most `most` entries, in the order in which they lie; kept for next time."""
        if most not in self._items:
            start, length, cache = self._segments()
            n_cuts = (length + most - 1) // most
            segment, nth = slots_of(n_cuts)
            begin, cache = nth * most, cache[segment]
            place = torch.empty_like(cache)
            place[cache.argsort(stable=True)] = torch.arange(len(cache))
            table = torch.stack([start[segment] + begin, (length[segment] - begin).clamp(max=most), cache, place], -1)
            n_items = cache.bincount(minlength=len(self.counts))
            bounds = torch.cat([torch.zeros(1, dtype=torch.int64), n_items.cumsum(0)])
            self._items[most] = WorkItems(*(one.to(torch.int32).to(self.device) for one in (table, bounds)))
        return self._items[most]

    def _segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Start, length and KV cache of all that lies in one stretch: its pieces of one length, or its rest."""
        starts, ends = torch.stack(self._starts), torch.stack(self._ends)  # [kinds, C]
        lengths = ends.diff(dim=0, prepend=torch.zeros_like(ends[:1]))
        kind, cache = lengths.nonzero(as_tuple=True)
        order = starts[kind, cache].argsort()
        kind, cache = kind[order], cache[order]
        return starts[kind, cache], lengths[kind, cache], cache


def before_each(counts: Tensor) -> Tensor:
    """How many entries lie before those of each KV cache."""
    return counts.cumsum(0) - counts


def slots_of(counts: Tensor) -> tuple[Tensor, Tensor]:
    """KV cache and slot of every entry, cache by cache: two `[N]` for `counts` `[C]`."""
    caches = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return caches, torch.arange(len(caches), device=counts.device) - before_each(counts)[caches]


def writable(tensor: Tensor) -> Tensor:
    """Itself, or a copy of a tensor that was made in inference mode and cannot be written to outside of it."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


@dataclass(frozen=True)
class Shared:
    """Keys and values `[T, D]` that lie in a context, for the KV caches `owners` `[P]` that keep all of them."""

    keys: Tensor
    values: Tensor
    owners: Tensor


class RaggedEntries:
    """Keys `[N, D]` and values `[N, D]` of `C` KV caches with `counts` `[C]` entries each, N their sum.

    A cache in `shared` has no entries here; it reads those of the context.
    """

    def __init__(self, keys: Tensor, values: Tensor, layout: RaggedLayout, shared: Sequence[Shared] = ()):
        self.keys = keys
        self.values = values
        self.layout = layout
        self.shared = shared

    @classmethod
    def gather(cls, keys: Tensor, values: Tensor, rows: Tensor, kept: Tensor, *, share: bool = False) -> RaggedEntries:
        """Of contexts `[B, Hkv, T, D]` the entries `kept` `[C, T]`, KV cache `r * Hkv + h` from row `rows[r]`.

        In the order of the text within each cache. With `share`, what a cache keeps whole is not copied.
        """
        n_kv_heads = keys.shape[1]
        shared: list[Shared] = []
        if share:
            whole = kept.all(-1)
            kept = kept & ~whole[:, None]
            for row in rows.unique().tolist():
                for head in range(n_kv_heads):
                    owners = (whole.view(-1, n_kv_heads)[:, head] & (rows == row)).nonzero().squeeze(-1)
                    if len(owners):
                        shared.append(Shared(keys[row, head], values[row, head], owners * n_kv_heads + head))
        layout = RaggedLayout.of(kept.sum(-1).cpu(), keys.device)
        caches, at = kept.nonzero(as_tuple=True)  # cache by cache
        _, slots = slots_of(layout.counts.to(keys.device))
        source = torch.empty_like(at)
        source[layout.positions(caches, slots)] = torch.arange(len(at), device=keys.device)
        caches, at = caches[source], at[source]
        where = (rows[caches // n_kv_heads], caches % n_kv_heads, at)
        return cls(keys[where], values[where], layout, shared)

    @classmethod
    def joined(cls, parts: Sequence[RaggedEntries]) -> RaggedEntries:
        """The KV caches of all parts, part after part."""
        before = accumulate((len(one.layout.counts) for one in parts), initial=0)
        return cls(
            torch.cat([one.keys for one in parts]),
            torch.cat([one.values for one in parts]),
            RaggedLayout.joined([one.layout for one in parts]),
            [
                Shared(each.keys, each.values, n + each.owners)
                for n, one in zip(before, parts, strict=False)
                for each in one.shared
            ],
        )

    def select(self, caches: Tensor) -> RaggedEntries:
        """These KV caches `[C']`, in this order; one may occur more than once."""
        layout = RaggedLayout.of(self.layout.counts[caches.cpu()], self.keys.device)
        new, slots = slots_of(layout.counts.to(self.keys.device))
        places = caches.to(self.keys.device)
        source = torch.empty_like(new)
        source[layout.positions(new, slots)] = self.layout.positions(places[new], slots)
        shared = [
            Shared(one.keys, one.values, torch.isin(places, one.owners).nonzero().squeeze(-1)) for one in self.shared
        ]
        keys, values = self.keys.index_select(0, source), self.values.index_select(0, source)
        return RaggedEntries(keys, values, layout, [one for one in shared if len(one.owners)])

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry's key and value."""
        return self.keys.shape[-1] * self.keys.element_size() + self.values.shape[-1] * self.values.element_size()

    def write(self, caches: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Overwrite slots `[M]` of KV caches `[M]` with keys and values `[M, D]`."""
        where = self.layout.positions(caches, slots)
        self.keys, self.values = writable(self.keys), writable(self.values)
        self.keys[where] = keys
        self.values[where] = values

    def of(self, pieces: Blocks) -> tuple[Tensor, Tensor]:
        """Keys and values `[P, length, D]` of pieces, without a copy."""
        end = pieces.start + pieces.length * len(pieces.owners)
        shape = (len(pieces.owners), pieces.length, -1)
        return self.keys[pieces.start : end].view(shape), self.values[pieces.start : end].view(shape)

    def gathered(self, rest: Remainder) -> tuple[Tensor, Tensor]:
        """A copy `[P, W, D]` of the keys and values of what is left of KV caches, hidden ones among them."""
        where = rest.index.flatten()  # whole rows at once, which `keys[rest.index]` does not copy
        shape = (*rest.index.shape, -1)
        return self.keys.index_select(0, where).view(shape), self.values.index_select(0, where).view(shape)
