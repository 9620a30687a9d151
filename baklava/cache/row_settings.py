"""What a batch's rows are compressed to: budgets, eviction policy and bits, one for all rows or one per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from baklava.budgets import COMPRESS_ABOVE, Budgets, Packing
from baklava.budgets.bits import EXACT, Bits, EntrySize, entries_within, is_packed, parse_bits
from baklava.cache.projections import Paths, check_paths, find_paths
from baklava.decoder.attention_path import AttentionPath
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy, policy_named
from baklava.eviction.kvzip import NEEDS_REPETITION


class RowSettings:
    """Budgets and eviction policy of every batch row: one for all rows, or one per row.

    A context of at most `compress_above` tokens is kept whole.
    """

    def __init__(self, budgets: Sequence[Budgets], policies: Sequence[EvictionPolicy], compress_above: int):
        if not budgets or len(policies) not in (1, len(budgets)):
            raise UserError(
                f"one eviction policy for all rows or one per row: got {len(policies)} for {len(budgets)} budgets"
            )
        self._budgets = budgets
        self.policies = policies
        self._compress_above = compress_above
        self._size = EntrySize()
        self._bits: Sequence[Bits] = ()
        self._paths: Paths | None = None
        self._entries: dict[tuple[int, int], NDArray[np.int64]] = {}

    @classmethod
    def of(
        cls,
        budgets: Budgets | Sequence[Budgets],
        eviction: str | EvictionPolicy | Sequence[str | EvictionPolicy],
        compress_above: int | None,
    ) -> RowSettings:
        """Take what a user gave: one for all rows, or one per row; policies may be names."""
        per_row: list[Any] = list(budgets) if isinstance(budgets, list | tuple) else [budgets]
        if wrong := [value for value in per_row if not isinstance(value, Budgets)]:
            raise UserError(f"budgets must be Budgets, or one per row, got {wrong[0]!r}; Budgets.load reads a file")
        chosen: list[Any] = list(eviction) if isinstance(eviction, list | tuple) else [eviction]
        policies = [policy_named(policy) if isinstance(policy, str) else policy for policy in chosen]
        if wrong := [policy for policy in policies if not isinstance(policy, EvictionPolicy)]:
            raise UserError(f"eviction must be the name of a policy, a policy, or one per row, got {wrong[0]!r}")
        if compress_above is None:
            compress_above = COMPRESS_ABOVE
        elif type(compress_above) is not int or compress_above < 0:
            raise UserError(f"compress_above is a number of tokens, 0 or more, got {compress_above!r}")
        return cls(per_row, policies, compress_above)

    def quantise(self, bits: Any, packing: Packing | None, *, shape: tuple[int, int], dim: int) -> None:
        """Store entries in so many bits, as `parse_bits` reads them for (layers, KV heads) and a head dimension.

        Without any, budgets say so themselves. Raises `UserError` for bits or a packing that cannot be.
        """
        if packing is not None and not isinstance(packing, Packing):
            raise UserError(
                f"packing must be a Packing of baklava.budgets, such as Packing(group=32), got {type(packing).__name__}"
            )
        self._size = EntrySize(dims=(dim, dim), packing=packing or Packing())
        if bits is not None and any(budgets.bits is not None for budgets in self._budgets):
            raise UserError("bits: the budgets say already in how many bits entries are stored; leave bits out")
        asked = parse_bits(EXACT if bits is None else bits, shape)
        self._bits = [asked if budgets.bits is None else budgets.bits for budgets in self._budgets]
        if any(is_packed(one).any() for one in self._bits):
            self._size.packing.check_dim(dim)

    @property
    def packing(self) -> Packing:
        return self._size.packing

    def bits(self, budget_index: int, lengths: Sequence[int]) -> Tensor | None:
        """Bits `[B * Hkv, 2]` of a layer's KV caches; None where none is quantised. Short contexts stay."""
        indices = [row * len(self._bits) // len(lengths) for row in range(len(lengths))]
        rows = [
            self._bits[index][budget_index] if length > self._compress_above else np.full_like(self._bits[0][0], EXACT)
            for index, length in zip(indices, lengths, strict=True)
        ]
        per_cache = np.concatenate(rows)
        return torch.from_numpy(per_cache) if is_packed(per_cache).any() else None

    def within_bytes(self, counts: Tensor, before: Tensor, lengths: Sequence[int], layer: int | None = None) -> Tensor:
        """Counts `[B, Hkv]` of a layer, or `[L, B, Hkv]`, as policies distribute those `before`, in the same bytes.

        Where budgets count bytes and a policy moved entries, a row's counts are scaled by one factor to the bytes of
        those before: the bytes of an entry differ, with its bits and with whether it fills a group.
        """
        if all(budgets.bits is None for budgets in self._budgets):
            return counts
        result = counts.clone()
        for row, length in enumerate(lengths):
            budgets = self._budgets_of(row * len(self._budgets) // len(lengths), length)
            if budgets.bits is None:
                continue
            bits = (budgets.bits if layer is None else budgets.bits[layer]).reshape(-1, 2)
            own, old = (some[..., row, :].flatten().numpy() for some in (counts, before))
            if (own == old).all():
                continue
            total = self.packing.cache_bytes(old, bits, self._size.dims, self._size.itemsize).sum()
            own = entries_within(own / length, bits, length, float(total), self._size)
            result[..., row, :] = torch.from_numpy(own).view(result[..., row, :].shape)
        return result

    def find_projections(self, model: PreTrainedModel) -> None:
        """Find the output projections of a model, if a policy needs them."""
        self._paths = self._paths or find_paths(model, self.policies)

    def check_reading(self) -> None:
        """Raises `UserError` if a policy needs a repetition, or output projections that were not found."""
        if any(policy.repeats for policy in self.policies):
            raise UserError(NEEDS_REPETITION)
        check_paths(self.policies, self._paths)

    @property
    def needs_all_layers(self) -> bool:
        """Whether a row's policy can cut no layer before all have been read."""
        return any(policy.needs_all_layers for policy in self.policies)

    def path(self, layer_index: int) -> AttentionPath | None:
        return None if self._paths is None else self._paths[layer_index]

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raises `UserError` for budgets of another shape than (layers that see all tokens, KV heads)."""
        for budgets in self._budgets:
            if budgets.shape != shape:
                origin = f" (made for {budgets.model})" if budgets.model else ""
                raise UserError(
                    f"budgets are [layers, KV heads] {list(budgets.shape)}{origin}, the model is {list(shape)}; "
                    "use budgets that were made for this model"
                )

    def check_rows(self, n_rows: int, copies: int = 1) -> None:
        """Raises `UserError` unless there are as many rows as budgets, or `copies` of each, one after another."""
        if len(self._budgets) > 1 and n_rows not in (len(self._budgets), copies * len(self._budgets)):
            raise UserError(f"budgets for {len(self._budgets)} rows, but the batch has {n_rows}")

    def policy(self, row: int, n_rows: int) -> EvictionPolicy:
        """Return the policy of a batch row out of `n_rows`."""
        return self.policies[row * len(self.policies) // n_rows]

    def counts(self, budget_index: int, lengths: Sequence[int], itemsize: int) -> Tensor:
        """Budgets `[B, Hkv]` of a layer in entries, for contexts of `lengths` tokens per row, in `itemsize` bytes."""
        self._size = replace(self._size, itemsize=itemsize)
        rows = []
        for row, length in enumerate(lengths):
            index = row * len(self._budgets) // len(lengths)
            if (index, length) not in self._entries:  # all layers ask for the same
                self._entries[index, length] = self._budgets_of(index, length).entries(length, self._size)
            rows.append(self._entries[index, length][budget_index])
        return torch.from_numpy(np.stack(rows))

    def _budgets_of(self, index: int, length: int) -> Budgets:
        """The budgets for a context of `length` tokens; a short one is kept whole."""
        budgets = self._budgets[index]
        if length > self._compress_above:
            return budgets
        return Budgets.uniform(n_layers=budgets.shape[0], n_kv_heads=budgets.shape[1], ratio=0.0)
