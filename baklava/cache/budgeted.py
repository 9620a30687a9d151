"""`BudgetedCache`: a KV cache in which every (layer, KV head) keeps its own number of entries."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from baklava.budgets import Budgets
from baklava.cache.attended import AttendedCache
from baklava.cache.attention.dense import check_attention
from baklava.cache.budgeted_layer import BudgetedLayer, Decoding, bytes_of
from baklava.cache.compress import Compressed, RowSettings
from baklava.cache.generate_call import prompt_of
from baklava.cache.layers import append_window_rows, build_layers, copy_window
from baklava.cache.padding import padding_given
from baklava.cache.prefill import ContextCache, ContextLayer
from baklava.decoder.config import decoder_of, text_config
from baklava.decoder.length_dependent_rope import LONGROPE, fixed_rotation, switch_of
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy

_EVAL = "training with gradient checkpointing leaves caches out: call model.eval()"


class BudgetedCache(AttendedCache):
    """A `transformers` cache that keeps, of the context, as many entries of each KV cache as its budget says.

    The first tokens that it is given are the context (`prefill` reads one in chunks): each layer's are compressed
    before the next layer runs, so that the peak is the compressed cache and one full layer. Entries that are evicted
    are gone: storage is ragged. `get_seq_length()` is the number of tokens seen, so that positions stay true. What
    comes after the context (question, answer) is appended (`decoding` "grow") or overwrites the least wanted entries,
    so that no KV cache ever exceeds its budget ("fixed"; a step still sees all of itself).

    The model must use the attention `baklava`: `model.set_attn_implementation("baklava")`. `budgets` is one set for
    all batch rows, or one per row; its layers are those that see all tokens (sliding windows are small already and
    stay whole). `eviction` is the name of a policy, a policy, or one per row. Batches are padded on the left.

    Raises `UserError` (a `ValueError`) for budgets of another shape, an unknown policy, or a model whose attention
    is not set.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        budgets: Budgets | Sequence[Budgets],
        eviction: str | EvictionPolicy | Sequence[str | EvictionPolicy] = "streaming_llm",
        decoding: Decoding = "grow",
    ):
        decoder, text = decoder_of(config), text_config(config)
        if decoding not in get_args(Decoding):
            raise UserError(f"unknown decoding {decoding!r}; known: {', '.join(get_args(Decoding))}")
        settings = RowSettings.of(budgets, eviction)
        settings.check_shape((len(decoder.budgeted_layers), decoder.n_kv_heads))
        layers = build_layers(decoder, lambda budget_index, i: BudgetedLayer(budget_index, i, text, settings, decoding))
        super().__init__(text, decoder, layers)
        switch = switch_of(text)
        self._is_dropped_by_models = switch is not None and switch.kind == LONGROPE
        self._prefilling = False
        self._announced = 0  # tokens of a pass that has begun and has not reached the cache

    @classmethod
    def from_context(
        cls,
        config: PreTrainedConfig,
        context: ContextCache,
        budgets: Budgets | Sequence[Budgets],
        eviction: str | EvictionPolicy | Sequence[str | EvictionPolicy] = "streaming_llm",
        decoding: Decoding = "grow",
        *,
        contexts: Tensor | None = None,
        share: bool = False,
    ) -> BudgetedCache:
        """A cache compressed from contexts that were read before, one row per element of `budgets`.

        Row `b` comes from row `contexts[b]` of the context, from the only one where there is one, else from row `b`.
        The context stays as it is, and can be compressed again. It must have been watched by the same policies. With
        `share`, KV caches that a row keeps whole are not copied, and the context stays alive as long as the rows;
        decoding must be "grow".
        """
        if share and decoding != "grow":
            raise UserError(f'decoding {decoding!r} overwrites entries, which a shared context forbids; use "grow"')
        cache = cls(config, budgets, eviction, decoding)
        n_contexts = context.n_rows
        n_rows = n_contexts if isinstance(budgets, Budgets) else len(budgets)
        if contexts is None:
            contexts = torch.zeros(n_rows, dtype=torch.int64) if n_contexts == 1 else torch.arange(n_rows)
        if len(contexts) != n_rows or int(contexts.max()) >= n_contexts:
            raise UserError(f"{n_rows} rows cannot be made of the context rows {contexts.tolist()} of {n_contexts}")
        context.check_attended()
        layers: list[Any] = cache.layers
        shared: list[Any] = context.layers
        for i, full in enumerate(shared):
            layer = layers[i]
            if isinstance(layer, BudgetedLayer):
                assert isinstance(full, ContextLayer)
                layer.compress(full, contexts, share=share)
            else:
                layers[i] = copy_window(full, contexts)
        return cache

    def __bool__(self) -> bool:
        """False for models with LongRoPE.

        Where their rotation changes, `prepare_inputs_for_generation` replaces a cache (`if past_key_values and ...`) by
        one without budgets, and everything is read again. This one stays, and itself refuses to go on.
        """
        return not self._is_dropped_by_models

    @property
    def budgeted_layers(self) -> list[BudgetedLayer]:
        """The layers that see all tokens; `budgets` and `kept_entries` count only these."""
        return [layer for layer in self.layers if isinstance(layer, BudgetedLayer)]

    @torch.no_grad()
    def prefill(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None, *, chunk: int = 1024
    ) -> Tensor:
        """Read a context `[B, T]` in chunks and compress it; returns the logits of the last token `[B, vocabulary]`.

        Attention takes memory for `chunk * T` scores at most. Layers are compressed during the last chunk, so that
        every token of the context saw all before it: the entries kept are those of a single pass. Where the rotation
        depends on the length of the text, it is that of the context; see `fixed_rotation` for what is read on.
        """
        if self.get_seq_length():
            raise UserError("the cache holds a context already; call reset() or make a new one")
        if input_ids.ndim != 2:
            raise UserError(f"a context is token ids [batch, length], got {list(input_ids.shape)}")
        if chunk < 1 or input_ids.shape[1] < 1:
            raise UserError(f"chunk and context must be at least one token, got {chunk} and {input_ids.shape[1]}")
        padding = padding_given(attention_mask, input_ids.shape)
        self._expect(input_ids.shape[1], padding)
        self._prefilling = True
        try:
            with fixed_rotation(model, input_ids.shape[1] - (0 if padding is None else int(padding.min()))):
                return self._read(model, input_ids, attention_mask, padding, chunk)
        except BaseException:
            self.reset()  # part of a context is none
            raise
        finally:
            self._prefilling = False

    def _read(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        padding: Tensor | None,
        chunk: int,
    ) -> Tensor:
        length = input_ids.shape[1]
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            positions = torch.arange(length, device=input_ids.device)[None, part]
            if padding is not None:
                positions = (positions - padding[:, None].to(positions.device)).clamp(min=0)
            logits = model(
                input_ids[:, part],
                attention_mask=None if attention_mask is None else attention_mask[:, : part.stop],
                position_ids=positions,
                past_key_values=self,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        if self.get_seq_length() != length:
            raise UserError(f"the model read the context without its cache; {_EVAL}")
        return logits[:, -1]

    @torch.compiler.disable  # the layers' bookkeeping is Python's
    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if layer_idx == 0:
            check_attention(self._config)
            self._begin(key_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        if query_length < 1:
            raise UserError(
                f"the model was given no new tokens, and the cache has read {self.get_seq_length()}; give generate "
                "all tokens with at least one new one, or the new ones only with an attention_mask for all tokens"
            )
        if query_length == 1 < self._announced and not self.get_seq_length():
            raise UserError(f"the model read {self._announced} tokens without its cache; {_EVAL}")
        self._announced = query_length
        return super().get_mask_sizes(query_length, layer_idx)

    def _begin(self, keys: Tensor) -> None:
        """Look at the keys `[B, Hkv, T, D]` of a new pass before any layer takes it in."""
        layers: list[Any] = self.layers
        seen = self.get_seq_length()
        self._announced = 0
        if seen != layers[-1].get_seq_length():
            raise UserError("the last pass broke off between two layers; call reset() and read the context again")
        prompt = prompt_of(self, keys.shape[2])
        first = self.budgeted_layers[0]
        first.check(keys, 1 if prompt is None else prompt.copies)
        if first.compressed is not None or self._prefilling:
            return
        if not seen and prompt is not None and prompt.n_left != keys.shape[2]:
            shape = (keys.shape[0], prompt.n_left)
            self._expect(prompt.n_left, padding_given(prompt.mask, shape))
        elif not seen:
            self._expect(None, None)
        elif prompt is None or seen + prompt.n_left != first.context_length:
            raise UserError(f"only {seen} of {first.context_length} tokens of the context were read; call reset()")

    def _expect(self, length: int | None, padding: Tensor | None) -> None:
        for layer in self.budgeted_layers:
            layer.expect(length, padding)

    def activate_past_recording(self) -> None:
        for layer in self.budgeted_layers:
            layer.check_recording()
        super().activate_past_recording()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, whose number is negative as in transformers; never into the compressed context."""
        for layer in self.budgeted_layers:
            layer.check_crop(-tokens_to_remove)
        windows = [layer for layer in self.layers if isinstance(layer, DynamicSlidingWindowLayer)]
        if any(one.get_seq_length() >= one.sliding_window and not one.record_past for one in windows):
            if not tokens_to_remove:
                return
            raise UserError(
                "the sliding windows of this model have let go of the tokens before; to take tokens back, call "
                "cache.activate_past_recording() before they are read"
            )
        super().crop(tokens_to_remove)

    def kept_entries(self) -> Tensor:
        """Entries of the context that each KV cache keeps, int64 `[n_layers, batch, n_kv_heads]`."""
        return torch.stack([one.counts for one in self._compressed()])

    def row_bytes(self) -> Tensor:
        """Bytes that the compressed context takes, per batch row, int64 `[batch]`."""
        return torch.stack([one.counts.sum(-1) * one.entries.entry_bytes for one in self._compressed()]).sum(0)

    def _compressed(self) -> list[Compressed]:
        self.check_attended()
        compressed = [layer.compressed for layer in self.budgeted_layers]
        if any(one is None for one in compressed):
            raise UserError("the cache holds no compressed context; it has read none to its end")
        return [one for one in compressed if one is not None]

    def __deepcopy__(self, memo: dict[int, Any]) -> BudgetedCache:
        """A copy that goes with the same model, whose config says which attention it has."""
        memo[id(self._config)] = self._config
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def kv_bytes(self) -> int:
        """Bytes really allocated for keys and values: context, later tokens, their room for growth, sliding windows."""
        layers: list[Any] = self.layers
        return sum(
            layer.allocated_bytes() if isinstance(layer, BudgetedLayer) else bytes_of([layer.keys, layer.values])
            for layer in layers
        )

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.reorder_cache(rows)

    def append_rows(self, other: BudgetedCache) -> None:
        """Take in the rows of another cache after the own ones: from now on they are decoded together.

        Both have read on after their contexts, whose lengths may differ, with decoding "grow". A row that has seen
        fewer tokens has padding before it, which the attention mask must say.
        """
        layers: list[Any] = self.layers
        others: list[Any] = other.layers
        for layer, theirs in zip(layers, others, strict=True):
            if isinstance(layer, BudgetedLayer):
                layer.append_rows(theirs)
            else:
                append_window_rows(layer, theirs)
