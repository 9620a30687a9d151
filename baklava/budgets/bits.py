"""Bits: how precisely a KV cache stores its entries, and the bytes that this takes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baklava.errors import UserError

WIDTHS = (2, 4, 8, 16)
EXACT = 16  # the model's own precision, whatever that is: nothing is quantised
SCALE_BYTES = 4  # of a float16 scale and a float16 zero point

Bits = NDArray[np.int64]  # [L, Hkv, 2], for keys and for values


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How quantised entries are stored, as in KIVI (arXiv 2402.02750).

    Keys have a scale and a zero point per channel for each `group` of neighbouring entries, values for each `group` of
    channels of one entry (all channels, where a head has fewer). The first `sinks` entries of a KV cache and the last
    `newest` stay in the model's precision, as do those that fill no group.
    """

    group: int = 32
    sinks: int = 4
    newest: int = 0

    def __post_init__(self) -> None:
        for name, low in ((field.name, 0) for field in fields(self)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise UserError(f"packing: {name} must be a whole number, 0 or more, got {value!r}")
        if self.group < 8 or self.group & (self.group - 1):
            raise UserError(f"packing: group must be a power of two of at least 8, got {self.group}")

    def n_groups(self, counts: Any) -> Any:
        """How many whole groups there are between sinks and newest of KV caches with `counts` entries."""
        return ((counts - self.sinks - self.newest) // self.group).clip(0)

    def whole_groups(self, counts: Any, length: Any) -> Any:
        """The most entries up to `counts`, of `length`: whole groups beside sinks and newest, or all there are."""
        some = counts.clip(max=self.sinks + self.newest) + self.group * self.n_groups(counts)
        return counts * (counts >= length) + some * (counts < length)

    def check_dim(self, dim: int) -> None:
        """Raises `UserError` for a head dimension that groups of channels do not divide."""
        if dim % min(self.group, dim):
            raise UserError(
                f"packing: group {self.group} does not divide the head dimension {dim}; "
                "choose a group that divides it, or bits=16"
            )

    def group_bytes(self, bits: ArrayLike, dims: tuple[int, int], itemsize: int) -> NDArray[np.int64]:
        """Bytes of one whole group at `bits` `[..., 2]`, for head dimensions of keys and values: codes and scales."""
        keys, values = np.moveaxis(np.asarray(bits), -1, 0)
        size, (dim, value_dim) = self.group, dims
        key_scales = SCALE_BYTES * dim
        value_scales = SCALE_BYTES * size * (value_dim // min(size, value_dim))
        exact = itemsize * size
        return np.where(keys == EXACT, exact * dim, size * dim * keys // 8 + key_scales) + np.where(
            values == EXACT, exact * value_dim, size * value_dim * values // 8 + value_scales
        )

    def cache_bytes(
        self, counts: NDArray[np.int64], bits: Bits, dims: tuple[int, int], itemsize: int
    ) -> NDArray[np.int64]:
        """Bytes of KV caches `[...]` with `counts` entries at `bits` `[..., 2]`, in a model of `itemsize` bytes."""
        n_groups = np.where(is_packed(bits), self.n_groups(counts), 0)
        exact = (counts - n_groups * self.group) * sum(dims) * itemsize
        return exact + n_groups * self.group_bytes(bits, dims, itemsize)


@dataclass(frozen=True, kw_only=True)
class EntrySize:
    """What an entry's bytes depend on beside its bits: head dimensions of keys and values, bytes of a number, packing.

    The default stands for any head dimension that the packing's group divides, in a model of 16 bits.
    """

    dims: tuple[int, int] = (128, 128)
    itemsize: int = 2
    packing: Packing = Packing()

    @property
    def n_bytes(self) -> int:
        """Bytes of an entry in the model's precision."""
        return sum(self.dims) * self.itemsize

    def relative(self, bits: Bits) -> NDArray[np.float64]:
        """Bytes of an entry `[...]` at `bits` `[..., 2]` in a whole group, as a fraction of the model's precision."""
        return self.packing.group_bytes(bits, self.dims, self.itemsize) / (self.packing.group * self.n_bytes)


def entries_within(
    shares: NDArray[np.float64], bits: Bits, n_entries: int, total: float, size: EntrySize
) -> NDArray[np.int64]:
    """Entries `[N]` of KV caches with `shares` `[N]` and `bits` `[N, 2]`, in proportion, within `total` bytes.

    A quantised KV cache keeps its sinks and newest and whole groups, or all `n_entries`. Less than one such step of it
    is left of the total: first all shares are scaled by one factor, then those grow that lack most of a step.
    """
    packing, packed = size.packing, is_packed(bits)

    def counts_at(factor: float) -> NDArray[np.int64]:
        counts = np.minimum(np.floor(factor * shares * n_entries + 1e-9).astype(np.int64), n_entries)
        return np.where(packed, packing.whole_groups(counts, n_entries), counts)

    def bytes_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return packing.cache_bytes(counts, bits, size.dims, size.itemsize)

    low, high = 0.0, 1.0 / max(shares[shares > 0].min(initial=1.0), 1e-6)
    if bytes_of(counts_at(high)).sum() <= total:
        return counts_at(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if bytes_of(counts_at(middle)).sum() <= total else (low, middle)
    counts = counts_at(low)
    left = total - bytes_of(counts).sum()
    edge = packing.sinks + packing.newest
    step = np.where(packed, np.where(counts < edge, edge - counts, packing.group), 1)
    grown = np.where(counts + step > n_entries, n_entries, counts + step) * (shares > 0)
    price = bytes_of(np.maximum(grown, counts)) - bytes_of(counts)
    for cache in np.argsort(-(low * shares * n_entries - counts) / step, kind="stable"):
        if 0 < price[cache] <= left:
            counts[cache] = grown[cache]
            left -= price[cache]
    return counts


def is_packed(bits: Bits) -> NDArray[np.bool_]:
    """Which KV caches `[...]` of `bits` `[..., 2]` are quantised, keys or values or both."""
    return (bits != EXACT).any(-1)


def parse_bits(bits: Any, shape: tuple[int, int]) -> Bits:
    """Bits `[L, Hkv, 2]` from one number, a pair for keys and values, or one or a pair per KV cache `[L, Hkv(, 2)]`.

    Raises `UserError` for another width than 2, 4, 8 and 16, and for another shape.
    """
    try:
        array = np.asarray(bits)
        got = f"{array.dtype} of shape {list(array.shape)}" if array.ndim else repr(bits)
    except ValueError:
        array, got = np.empty(0), "rows of unequal length"
    if array.dtype.kind not in "iu" or array.shape not in ((), (2,), shape, (*shape, 2)):
        raise UserError(
            f"bits must be 16, 8, 4 or 2, a pair of them for keys and values, or one or a pair per KV cache "
            f"{list(shape)}, got {got}"
        )
    if wrong := sorted(set(array.ravel().tolist()) - set(WIDTHS)):
        raise UserError(f"bits must be 16, 8, 4 or 2, got {wrong[0]}")
    per_cache = array[..., None] if array.shape in ((), shape) else array
    return np.broadcast_to(per_cache, (*shape, 2)).astype(np.int64)


def label_of(bits: Bits | None) -> str:
    """A short name of bits `[L, Hkv, 2]`, such as 16, 4, 4/2 (keys and values) or mixed."""
    widths = [(EXACT, EXACT)] if bits is None else np.unique(bits.reshape(-1, 2), axis=0).tolist()
    if len(widths) > 1:
        return "mixed"
    keys, values = widths[0]
    return str(keys) if keys == values else f"{keys}/{values}"
