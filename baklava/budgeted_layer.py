"""One layer of a `BudgetedCache`: its context, compressed as soon as it is read, and the tokens since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from baklava.attention import attach
from baklava.compression import Compressed, RowSettings, compress
from baklava.context import AttendingLayer, ContextLayer
from baklava.errors import UserError
from baklava.ragged_attention import ragged_attention
from baklava.tail import Tail

Decoding = Literal["grow", "fixed"]


class BudgetedLayer(AttendingLayer):
    """One layer's entries: those of the context are compressed as soon as it is read; later ones are taken in.

    `decoding` "grow" appends later tokens; "fixed" lets them overwrite entries, the least wanted first.
    """

    def __init__(
        self, place: int, layer_index: int, config: PreTrainedConfig, settings: RowSettings, decoding: Decoding
    ):
        super().__init__()
        self._place = place
        self._layer_index = layer_index
        self._config = config
        self._settings = settings
        self._decoding = decoding
        self.is_croppable = decoding == "grow"
        self.reset()

    def reset(self) -> None:
        self.is_initialized = False
        self.seen = 0
        self.compressed: Compressed | None = None
        self._tail: Tail | None = None
        self.expect(None, None)

    def expect(self, length: int | None, padding: Tensor | None) -> None:
        """The context will come in chunks, `length` tokens in all, rows `[B]` with so much padding before them."""
        self._context: ContextLayer | None = ContextLayer(
            self._layer_index, self._config, self._settings.policies, length, padding
        )
        self._context_length = length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in keys and values `[B, Hkv, T, D]`; returns what the attention hands on to `attend`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._context is not None:
            self._settings.check_rows(key_states.shape[0])
            keys, values = self._context.update(key_states, value_states)
        else:
            keys, values = self._append(key_states, value_states)
        self.seen += key_states.shape[2]
        return attach(keys, self), values

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """Attention output `[B, Hq, Q, D]` of the tokens just taken in; compresses the context when it is complete."""
        if self._context is not None:
            output = self._context.attend(query, key, value, mask, scaling=scaling, softcap=softcap)
            if self._context_length in (None, self.seen):
                self.compress(self._context, torch.arange(query.shape[0]))
            return output
        assert self.compressed is not None
        if mask is not None:
            mask = mask[..., -key.shape[2] :]
        if self._tail is not None:
            mask = self._tail.visible(mask, query.shape[2])
        output = ragged_attention(
            query, self.compressed.entries, key, value, scaling=scaling, mask=mask, softcap=softcap
        )
        if self._decoding == "fixed":
            if mask is not None and not bool(mask[:, :, -1].all()):
                raise UserError('decoding "fixed" takes no padding after the context; use decoding="grow"')
            self.compressed.overwrite(key, value)
        return output

    def compress(self, context: ContextLayer, source: Tensor, *, share: bool = False) -> None:
        """Keep of the rows `source` `[B]` of a context what each row's policy and budgets say."""
        if not self.is_initialized:
            assert context.keys is not None and context.values is not None
            self.lazy_initialization(context.keys, context.values)
        self.compressed = compress(context, self._settings, self._place, source, share=share)
        self.seen = context.seen
        self._context = None

    def _append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        assert self.compressed is not None
        n_rows = self.compressed.counts.shape[0]
        if keys.shape[0] != n_rows:
            raise UserError(
                f"the cache holds {n_rows} rows and was given {keys.shape[0]}; "
                "make a new BudgetedCache for another batch size"
            )
        if self._decoding == "fixed":
            return keys, values
        if self._tail is None:
            self._tail = Tail(keys[:, :, :0], values[:, :, :0])
        self._tail.append(keys, values)
        return self._tail.keys, self._tail.values

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order; a row may occur more than once."""
        if not self.is_initialized:
            return
        if self.compressed is None:
            raise UserError("the rows of a cache cannot be rearranged while its context is being read")
        self.compressed = self.compressed.select_rows(rows)
        if self._tail is not None:
            self._tail.select_rows(rows)

    def append_rows(self, other: BudgetedLayer) -> None:
        """Take in the rows of another layer, which read their own context, after the own ones."""
        if self.compressed is None or other.compressed is None or self._tail is None or other._tail is None:
            raise UserError('rows join others once both have read on after their context, with decoding="grow"')
        self.compressed = Compressed.joined([self.compressed, other.compressed])
        self._tail.append_rows(other._tail)
        self.seen = max(self.seen, other.seen)

    def allocated_bytes(self) -> int:
        """Bytes of every tensor that holds keys or values, room for growth included."""
        tensors: list[Tensor | None] = [] if self._tail is None else [*self._tail.tensors]
        if self._context is not None:
            tensors += [self._context.keys, self._context.values]
        if self.compressed is not None:
            entries = self.compressed.entries
            tensors += [entries.keys, entries.values]
            tensors += [tensor for one in entries.shared for tensor in (one.keys, one.values)]
        return bytes_of(tensors)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens (a negative number, as in transformers); never into the compressed context."""
        n = abs(tokens_to_remove)
        if not n:
            return
        if self._decoding == "fixed":
            raise UserError('decoding "fixed" overwrites entries, so tokens cannot be taken back; use decoding="grow"')
        if self._tail is None:
            raise UserError(f"cannot crop {n} tokens: none came after the compressed context")
        self._tail.crop(n)
        self.seen -= n

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.compressed is not None:
            self.select_rows(torch.arange(self.compressed.counts.shape[0]).repeat_interleave(repeats))


def bytes_of(tensors: Sequence[Tensor | None]) -> int:
    """Bytes of the storages of tensors, one that is shared counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
