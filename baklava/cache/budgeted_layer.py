"""One layer of a `BudgetedCache`: its context, compressed as soon as it is read, and the tokens after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from baklava.budgets import Decoding
from baklava.cache.attended import AttendingLayer
from baklava.cache.attention.dense import attach
from baklava.cache.attention.ragged_attention import ragged_attention
from baklava.cache.compress import compress, counts_of_layers
from baklava.cache.compressed_context import CompressedContext
from baklava.cache.generate_call import Prompt
from baklava.cache.padding import check_context
from baklava.cache.prefill import ContextLayer
from baklava.cache.row_settings import RowSettings
from baklava.cache.suffix import Suffix
from baklava.decoder.length_dependent_rope import RotationWatch
from baklava.errors import UserError


class BudgetedLayer(AttendingLayer):
    """One layer's entries: the context is compressed as soon as it is read, later tokens are added.

    With `decoding` "grow" later tokens are appended; with "fixed" they overwrite entries, the least important first.
    `budget_index` is the layer's index among those that have budgets, `layer_index` among all.
    """

    def __init__(
        self, budget_index: int, layer_index: int, config: PreTrainedConfig, settings: RowSettings, decoding: Decoding
    ):
        super().__init__()
        self._budget_index = budget_index
        self._layer_index = layer_index
        self._config = config
        self._settings = settings
        self._decoding = decoding
        self.is_croppable = decoding == "grow"
        # Of the last layer that has budgets, the others. None knows itself or a later one: without cycles the memory of
        # a cache that nobody holds any more is free at once.
        self.layers_before: Sequence[BudgetedLayer] | None = ()
        self.reset()

    def reset(self) -> None:
        self.is_initialized = False
        self.seen = 0
        self.awaits_attention = False
        self.compressed: CompressedContext | None = None
        self._suffix: Suffix | None = None
        self._rotation: RotationWatch | None = None
        self.expect(None, None)

    def expect(self, length: int | None, padding: Tensor | None) -> None:
        """Expect a context of `length` tokens, with `padding` `[B]` before its rows; None: it comes in one pass.

        It may come in chunks, and the tokens after it in the same pass as its last ones.
        """
        self._context: ContextLayer | None = ContextLayer(
            self._layer_index,
            self._config,
            self._settings.policies,
            length,
            padding,
            self._settings.path(self._layer_index),
        )
        self.context_length = length
        self._beyond: tuple[Tensor, Tensor] | None = None  # keys and values after the context in its last pass

    @property
    def n_rows(self) -> int:
        """Rows of the batch, 0 before the first pass."""
        if self.compressed is not None:
            return self.compressed.counts.shape[0]
        return 0 if self._context is None else self._context.n_rows

    def check(self, keys: Tensor, prompt: Prompt | None) -> None:
        """Raises `UserError` for a pass that does not fit what was read before, the budgets, or the policies."""
        n_rows, n_held = keys.shape[0], self.n_rows
        if self.compressed is None:
            self._settings.check_reading()
            if self._settings.needs_all_layers and prompt is not None and prompt.n_left < keys.shape[2]:
                raise UserError(
                    "where all layers compete (layer_...), a context is read before anything after it; assisted and "
                    "prompt lookup decoding read both in one pass, so call cache.prefill(model, ...) first"
                )
        if not n_held:
            self._settings.check_rows(n_rows, 1 if prompt is None else prompt.copies)
        elif n_rows != n_held:
            repeats = n_rows // n_held
            remedy = "make a new BudgetedCache for another batch size"
            if repeats * n_held == n_rows:
                remedy = f"for beams or several sequences of each row call cache.batch_repeat_interleave({repeats})"
            raise UserError(f"the cache holds {n_held} rows and was given {n_rows}; {remedy}")
        if self.is_initialized and keys.dtype != self.dtype:
            raise UserError(
                f"the cache holds {self.dtype} and was given {keys.dtype}; read the context with the model as it is now"
            )
        if self.compressed is not None and keys.requires_grad and self.compressed.ring.is_inference():
            raise UserError(
                "the context was read under torch.inference_mode(); read on under it, or under torch.no_grad()"
            )

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values `[B, Hkv, T, D]`; returns those that the attention function passes to `attend`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.mark_updated()
        if self._context is not None:
            n_new = key_states.shape[2]
            n = n_new if self.context_length is None else min(n_new, self.context_length - self.seen)
            if n < n_new:
                self._beyond = key_states[:, :, n:], value_states[:, :, n:]
            keys, values = self._context.update(key_states[:, :, :n], value_states[:, :, :n])
        else:
            keys, values = self._append(key_states, value_states)
        self.seen += key_states.shape[2]
        return attach(keys, self), attach(values, self)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """Compute the attention `[B, Hq, Q, D]` of the tokens just added; compresses a complete context."""
        self.mark_attended()
        if self._context is None:
            return self._attend_later(query, key, value, mask, scaling=scaling, softcap=softcap)
        n_beyond = 0 if self._beyond is None else self._beyond[0].shape[2]
        n = query.shape[2] - n_beyond
        context_mask = None if mask is None else mask[:, :, :n, : key.shape[2]]
        output = self._context.attend(query[:, :, :n], key, value, context_mask, scaling=scaling, softcap=softcap)
        if self.context_length in (None, self._context.seen):
            self._compress_read(torch.arange(query.shape[0]))
        if self._beyond is None:
            return output
        keys, values = self._append(*self._beyond)
        self._beyond = None
        self.seen += n_beyond
        later_mask = None if mask is None else mask[:, :, n:]
        later = self._attend_later(query[:, :, n:], keys, values, later_mask, scaling=scaling, softcap=softcap)
        return torch.cat([output, later], 2)

    def _attend_later(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """Attend with tokens after the context; keys and values are those of all of them, or the newest ("fixed")."""
        assert self.compressed is not None
        n_new = query.shape[2]
        if self._budget_index == 0:
            try:
                self._check_later(mask, n_new)
            except UserError:
                self._undo_append(n_new)
                raise
        if mask is not None:
            mask = mask[..., -key.shape[2] :]
        if self._suffix is not None:
            mask = self._suffix.hide_padding(mask, n_new)
        output = ragged_attention(
            query, self.compressed.entries, key, value, scaling=scaling, mask=mask, softcap=softcap
        )
        if self._decoding == "fixed":
            self.compressed.overwrite(key, value)
            self.compressed.rescore(query, scaling=scaling, softcap=softcap)
        return output

    def _check_later(self, mask: Tensor | None, n_new: int) -> None:
        """Raises `UserError` for later tokens of another rotation, or a mask that our attention cannot follow."""
        assert self.compressed is not None and self._rotation is not None
        lengths = self.compressed.lengths
        if self._suffix is None:
            n_later = torch.full_like(lengths, self.compressed.written + n_new)
        else:
            n_later = self._suffix.n_tokens()
        self._rotation.check(int((lengths + n_later).max()))
        check_context(mask, self.seen - lengths - n_later, n_later, self.seen)
        if self._decoding == "fixed" and mask is not None and not bool(mask[:, :, -1, -int(n_later[0]) :].all()):
            raise UserError('decoding "fixed" takes no padding after the context; use decoding="grow"')

    def _undo_append(self, n_new: int) -> None:
        """Remove the tokens of a pass that is refused."""
        self.seen -= n_new
        if self._suffix is not None:
            self._suffix.crop(n_new)

    def _compress_read(self, rows: Tensor) -> None:
        """Compress the context that has been read; where all layers compete, when it has been read by the last."""
        if not self._settings.needs_all_layers:
            context = self._context
            assert context is not None
            counts = self._settings.counts(self._budget_index, context.lengths(), self.dtype.itemsize)
            self.compress(context, counts, rows)
        elif self.layers_before is not None:
            layers = (*self.layers_before, self)
            contexts = [layer._context for layer in layers]
            full = [context for context in contexts if context is not None]
            for layer, context, counts in zip(layers, full, counts_of_layers(self._settings, full, rows), strict=True):
                layer.compress(context, counts, rows)

    def compress(self, context: ContextLayer, counts: Tensor, source: Tensor, *, share: bool = False) -> None:
        """Compress rows `source` `[B]` of a context to `counts` `[B, Hkv]` entries, as the policy of each row says."""
        if not self.is_initialized:
            assert context.keys is not None and context.values is not None
            self.lazy_initialization(context.keys, context.values)
        fixed = self._decoding == "fixed"
        self.compressed = compress(
            context, self._settings, self._budget_index, counts, source, share=share, overwritten=fixed
        )
        self.seen = context.seen
        self._rotation = context.rotation
        self._context = None

    def _append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._decoding == "fixed":
            return keys, values
        if self._suffix is None:
            self._suffix = Suffix(keys[:, :, :0], values[:, :, :0])
        self._suffix.append(keys, values)
        return self._suffix.keys, self._suffix.values

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order; a row may occur more than once."""
        if not self.is_initialized:
            return
        if self.compressed is None:
            raise UserError("the rows of a cache cannot be rearranged while its context is being read")
        self.compressed = self.compressed.select_rows(rows)
        if self._suffix is not None:
            self._suffix.select_rows(rows)

    def append_rows(self, other: BudgetedLayer) -> None:
        """Append the rows of another layer, which read their own contexts, after this one's."""
        if self.compressed is None or other.compressed is None or self._suffix is None or other._suffix is None:
            raise UserError('rows join others once both have read on after their context, with decoding="grow"')
        assert self._rotation is not None and other._rotation is not None
        if self._rotation.length != other._rotation.length:
            raise UserError("rows whose rotations are those of texts of other lengths cannot be decoded together")
        self.compressed = CompressedContext.concatenate([self.compressed, other.compressed])
        self._suffix.append_rows(other._suffix)
        self.seen = max(self.seen, other.seen)

    def allocated_bytes(self) -> int:
        """Count the bytes of every tensor that holds keys or values, room for growth included."""
        tensors: list[Tensor | None] = [] if self._suffix is None else [*self._suffix.tensors]
        if self._context is not None:
            tensors += [self._context.keys, self._context.values]
        if self.compressed is not None:
            tensors += self.compressed.entries.tensors
        return count_bytes(tensors)

    def check_crop(self, n: int) -> None:
        """Raises `UserError` if the last `n` tokens cannot be removed."""
        if n < 0:
            raise UserError(f"crop takes the number of tokens to remove as a negative number: use crop({-abs(n)})")
        if not n or not self.is_initialized:
            return
        if self._decoding == "fixed":
            raise UserError('decoding "fixed" overwrites entries, so tokens cannot be taken back; use decoding="grow"')
        if self._suffix is None:
            raise UserError(f"cannot crop {n} tokens: none came after the compressed context")
        self._suffix.check_crop(n)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, a negative number as in transformers; never any of the compressed context."""
        self.check_crop(-tokens_to_remove)
        if tokens_to_remove and self._suffix is not None:
            self._suffix.crop(-tokens_to_remove)
            self.seen += tokens_to_remove

    def check_recording(self) -> None:
        """Raises `UserError` if tokens could not be removed again, as assisted decoding needs."""
        if self._decoding == "fixed":
            raise UserError(
                'assisted and prompt lookup decoding take tokens back, which decoding "fixed" overwrites; '
                'use decoding="grow"'
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows; as with a tensor, a mask or negative indices work too."""
        self.select_rows(torch.arange(self.n_rows)[indices.cpu() if isinstance(indices, Tensor) else indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.select_rows(torch.arange(self.n_rows).repeat_interleave(repeats))


def check_decoding(decoding: str) -> None:
    if decoding not in get_args(Decoding):
        raise UserError(f"unknown decoding {decoding!r}; known: {', '.join(get_args(Decoding))}")


def count_bytes(tensors: Sequence[Tensor | None]) -> int:
    """Count the bytes of the storages of tensors, a shared storage once."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
