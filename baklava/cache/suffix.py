"""The suffix: tokens that come after the context, in storage that grows and that rows of other batches may join."""

from __future__ import annotations

import torch
from torch import Tensor

from baklava.cache.ragged_layout import writable
from baklava.errors import UserError

GROWTH = 64  # storage grows by this many tokens, or by a quarter of those it holds


class Suffix:
    """Keys and values `[B, Hkv, M, D]` of `length` tokens, with room for more behind them.

    All rows end at the same slot. A row that joined longer ones begins with padding: its first `_padding` `[B]` slots.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        self._keys = keys
        self._values = values
        self._padding: Tensor | None = None  # None: no row has padding
        self.length = keys.shape[2]

    @property
    def n_rows(self) -> int:
        return self._keys.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self._keys, self._values

    @property
    def keys(self) -> Tensor:
        return self._keys[:, :, : self.length]

    @property
    def values(self) -> Tensor:
        return self._values[:, :, : self.length]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append keys and values `[B, Hkv, Q, D]` of new tokens."""
        end = self.length + keys.shape[2]
        if end > self._keys.shape[2]:  # grow in steps: an occasional copy instead of one per token
            room = max(end, self.length + GROWTH, self.length * 5 // 4)
            self._keys, self._values = (_grow(tensor, room) for tensor in (self.keys, self.values))
        self._keys, self._values = writable(self._keys), writable(self._values)
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end

    def n_tokens(self) -> Tensor:
        """Count the tokens `[B]` of each row, without padding; int64 on the CPU."""
        return self.length - self._padding_per_row().cpu()

    def hide_padding(self, mask: Tensor | None, n_queries: int) -> Tensor | None:
        """Remove padding from what the last `n_queries` tokens see: `mask` `[B, 1, Q, M]`, None for causal."""
        if self._padding is None:
            return mask
        slot = torch.arange(self.length, device=self._keys.device)
        if mask is None:
            mask = slot <= slot[self.length - n_queries :, None]
        return mask & (slot >= self._padding[:, None])[:, None, None]

    def check_crop(self, n: int) -> None:
        """Raises `UserError` where a row has fewer than `n` tokens."""
        if n > (shortest := int(self.n_tokens().min())):
            raise UserError(f"cannot crop {n} tokens: only {shortest} came after the compressed context")

    def crop(self, n: int) -> None:
        """Remove the last `n` tokens."""
        self.check_crop(n)
        self.length -= n

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order; a row may occur more than once."""
        rows = rows.to(self._keys.device)
        self._keys, self._values = self._keys[rows], self._values[rows]
        self._set_padding(None if self._padding is None else self._padding[rows])

    def append_rows(self, other: Suffix) -> None:
        """Append the rows of another suffix after this one's."""
        length = max(self.length, other.length)
        padding = torch.cat([suffix._padding_per_row() + (length - suffix.length) for suffix in (self, other)])
        self._keys = _stack_rows([self.keys, other.keys], length)
        self._values = _stack_rows([self.values, other.values], length)
        self.length = length
        self._set_padding(padding)

    def _padding_per_row(self) -> Tensor:
        zeros = torch.zeros(self.n_rows, dtype=torch.int64, device=self._keys.device)
        return zeros if self._padding is None else self._padding

    def _set_padding(self, padding: Tensor | None) -> None:
        """Set the padding, and drop the slots that are padding in every row."""
        if padding is not None and len(padding) and (common := int(padding.min())):
            self._keys, self._values = self._keys[:, :, common:], self._values[:, :, common:]
            self.length -= common
            padding = padding - common
        self._padding = padding if padding is not None and bool(padding.any()) else None


def _grow(tensor: Tensor, room: int) -> Tensor:
    """Copy `[B, Hkv, M, D]` into a tensor with `room` slots."""
    grown = tensor.new_empty(*tensor.shape[:2], room, tensor.shape[3])
    grown[:, :, : tensor.shape[2]] = tensor
    return grown


def _stack_rows(tensors: list[Tensor], length: int) -> Tensor:
    """Stack the rows of tensors `[B, Hkv, M, D]` so that each ends at slot `length`, with room for more.

    Padding slots are zeroed: their attention weight is 0, but 0 * NaN is NaN.
    """
    n_rows = sum(len(tensor) for tensor in tensors)
    stacked = tensors[0].new_empty(n_rows, tensors[0].shape[1], length + GROWTH, tensors[0].shape[3])
    row = 0
    for tensor in tensors:
        start = length - tensor.shape[2]
        stacked[row : row + len(tensor), :, :start] = 0
        stacked[row : row + len(tensor), :, start:length] = tensor
        row += len(tensor)
    return stacked
