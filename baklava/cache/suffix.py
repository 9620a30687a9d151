"""The tokens since the context: storage that grows, of rows that may have come together later."""

from __future__ import annotations

import torch
from torch import Tensor

from baklava.cache.ragged import writable
from baklava.errors import UserError

GROWTH = 64  # room is made for so many tokens at a time, or for a quarter of those at hand


class Suffix:
    """Keys and values `[B, Hkv, M, D]` of `length` tokens, room for more behind them.

    All rows end at the same slot. Of rows that joined longer ones, the first `padding` `[B]` slots are no tokens.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        self._keys = keys
        self._values = values
        self._padding: Tensor | None = None  # None: nowhere
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
        """Take in `[B, Hkv, Q, D]`."""
        end = self.length + keys.shape[2]
        if end > self._keys.shape[2]:  # grow in steps: a copy now and then, not one per token
            room = max(end, self.length + GROWTH, self.length * 5 // 4)
            self._keys, self._values = (_grown(one, room) for one in (self.keys, self.values))
        self._keys, self._values = writable(self._keys), writable(self._values)
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end

    def slots(self) -> Tensor:
        """How many slots `[B]` each row has, padding before it left out; int64 on the CPU."""
        return self.length - self._shown_padding().cpu()

    def visible(self, mask: Tensor | None, n_queries: int) -> Tensor | None:
        """`mask` `[B, 1, Q, M]` of the last `n_queries` tokens (None: all up to themselves) without padding."""
        if self._padding is None:
            return mask
        slot = torch.arange(self.length, device=self._keys.device)
        if mask is None:
            mask = slot <= slot[self.length - n_queries :, None]
        return mask & (slot >= self._padding[:, None])[:, None, None]

    def check_crop(self, n: int) -> None:
        """Raises `UserError` where a row has fewer than `n` tokens."""
        if n > (shortest := int(self.slots().min())):
            raise UserError(f"cannot crop {n} tokens: only {shortest} came after the compressed context")

    def crop(self, n: int) -> None:
        """Forget the last `n` tokens."""
        self.check_crop(n)
        self.length -= n

    def select_rows(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may occur more than once."""
        rows = rows.to(self._keys.device)
        self._keys, self._values = self._keys[rows], self._values[rows]
        self._pad(None if self._padding is None else self._padding[rows])

    def append_rows(self, other: Suffix) -> None:
        """Take in the rows of another suffix after the own ones."""
        length = max(self.length, other.length)
        padding = torch.cat([one._shown_padding() + (length - one.length) for one in (self, other)])
        self._keys = _stacked([self.keys, other.keys], length)
        self._values = _stacked([self.values, other.values], length)
        self.length = length
        self._pad(padding)

    def _shown_padding(self) -> Tensor:
        none = torch.zeros(self.n_rows, dtype=torch.int64, device=self._keys.device)
        return none if self._padding is None else self._padding

    def _pad(self, padding: Tensor | None) -> None:
        """Set the padding, of which slots that are padding in all rows are dropped."""
        if padding is not None and len(padding) and (common := int(padding.min())):
            self._keys, self._values = self._keys[:, :, common:], self._values[:, :, common:]
            self.length -= common
            padding = padding - common
        self._padding = padding if padding is not None and bool(padding.any()) else None


def _grown(tensor: Tensor, room: int) -> Tensor:
    grown = tensor.new_empty(*tensor.shape[:2], room, tensor.shape[3])
    grown[:, :, : tensor.shape[2]] = tensor
    return grown


def _stacked(tensors: list[Tensor], length: int) -> Tensor:
    """Rows `[B, Hkv, M, D]` of all, each ending at slot `length`, with room for more.

    Slots before are 0: attention gives them no weight, and no weight times what is not a number would not be one.
    """
    n_rows = sum(len(one) for one in tensors)
    stacked = tensors[0].new_empty(n_rows, tensors[0].shape[1], length + GROWTH, tensors[0].shape[3])
    row = 0
    for one in tensors:
        start = length - one.shape[2]
        stacked[row : row + len(one), :, :start] = 0
        stacked[row : row + len(one), :, start:length] = one
        row += len(one)
    return stacked
