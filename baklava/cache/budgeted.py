"""`BudgetedCache`: a KV cache in which every (layer, KV head) keeps its own number of entries."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from baklava.budgets import Budgets, Decoding, Packing
from baklava.cache.attended import AttendedCache
from baklava.cache.attention.dense import check_attention
from baklava.cache.budgeted_layer import BudgetedLayer, check_decoding, count_bytes
from baklava.cache.compress import counts_of_layers
from baklava.cache.compressed_context import CompressedContext
from baklava.cache.generate_call import find_generate_prompt
from baklava.cache.layers import append_window_rows, build_layers, copy_window
from baklava.cache.padding import check_tokens, padding_of_tokens
from baklava.cache.prefill import ContextCache, ContextLayer
from baklava.cache.row_settings import RowSettings
from baklava.decoder.config import decoder_of, text_config
from baklava.decoder.length_dependent_rope import LONGROPE, fixed_rotation, switch_of
from baklava.decoder.releases import count_queries, crop_windows, read_crop, record_windows
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy

_EVAL = "training with gradient checkpointing leaves caches out: call model.eval()"


class BudgetedCache(AttendedCache):
    """A `transformers` cache in which every KV cache keeps as many entries of the context as its budget says.

    The first tokens that it is given are the context (`prefill` reads one in chunks). Each layer is compressed before
    the next layer runs, so that peak memory is the compressed cache and one full layer; only policies whose layers
    compete (`layer_...`) need all layers in full until the last has been read. Evicted entries are really gone: storage
    is ragged. `get_seq_length()` counts the tokens seen, so that positions stay true. Tokens after the context are
    appended (`decoding` "grow"), or overwrite the least important entries so that no KV cache ever exceeds its budget
    ("fixed"; the tokens of one step still see each other).

    The model must use the attention `baklava`: `model.set_attn_implementation("baklava")`. `budgets` is one set for
    all batch rows, or one per row; its layers are those that see all tokens (sliding windows are small already and
    are fully kept). `eviction` is the name of a policy, a policy, or one per row. Batches are padded on the left.
    `config` is the model's; or give the model itself, for policies that need its output projection.

    A row whose context has at most `compress_above` tokens, padding not counted, keeps all of them (None:
    `COMPRESS_ABOVE` of `baklava.budgets`; 0: every context is compressed). With `decoding` "fixed" later tokens
    overwrite those of a short context, too.

    `bits` quantises what is kept to 8, 4 or 2 bits a number: one width for all, a pair for keys and values, or one or a
    pair per KV cache `[L, Hkv(, 2)]`; 16 is the model's own precision, None: as the budgets say. `packing` says how.

    Raises `UserError` for budgets of another shape, unknown policies or bits, and models whose attention is not set.
    """

    def __init__(
        self,
        config: PreTrainedConfig | PreTrainedModel,
        budgets: Budgets | Sequence[Budgets],
        eviction: str | EvictionPolicy | Sequence[str | EvictionPolicy] = "streaming_llm",
        decoding: Decoding = "grow",
        compress_above: int | None = None,
        bits: Any = None,
        packing: Packing | None = None,
    ):
        model = config if isinstance(config, PreTrainedModel) else None
        config = config.config if isinstance(config, PreTrainedModel) else config
        decoder, text = decoder_of(config), text_config(config)
        check_decoding(decoding)
        settings = RowSettings.of(budgets, eviction, compress_above)
        settings.check_shape(shape := (len(decoder.budgeted_layers), decoder.n_kv_heads))
        settings.quantise(bits, packing, shape=shape, dim=decoder.head_dim)
        if model is not None:
            settings.find_projections(model)
        layers = build_layers(decoder, lambda budget_index, i: BudgetedLayer(budget_index, i, text, settings, decoding))
        super().__init__(text, decoder, layers)
        self._settings = settings
        *before, last = self.budgeted_layers
        for layer in before:
            layer.layers_before = None
        last.layers_before = before
        switch = switch_of(text)
        self._is_dropped_by_models = switch is not None and switch.kind == LONGROPE
        self._prefilling = False
        self._announced = 0  # tokens of a pass that has begun but not yet reached the cache

    @classmethod
    def from_context(
        cls,
        config: PreTrainedConfig,
        context: ContextCache,
        budgets: Budgets | Sequence[Budgets],
        eviction: str | EvictionPolicy | Sequence[str | EvictionPolicy] = "streaming_llm",
        decoding: Decoding = "grow",
        compress_above: int | None = None,
        *,
        contexts: Tensor | None = None,
        share: bool = False,
        **storage: Any,
    ) -> BudgetedCache:
        """Compress contexts that were read before into a cache with one row per element of `budgets`.

        Row `b` comes from row `contexts[b]` of the context; by default from its only row, or from row `b`. The context
        stays as it is, and can be compressed again. The same policies must have observed it. With `share`, KV caches
        that a row fully keeps are not copied, and the context stays in memory as long as the rows do; decoding must be
        "grow". `storage` is `bits` and `packing`, as for a new cache.
        """
        if share and decoding != "grow":
            raise UserError(f'decoding {decoding!r} overwrites entries, which a shared context forbids; use "grow"')
        cache = cls(config, budgets, eviction, decoding, compress_above, **storage)
        n_contexts = context.n_rows
        n_rows = n_contexts if isinstance(budgets, Budgets) else len(budgets)
        if contexts is None:
            contexts = torch.arange(n_rows) if n_contexts > 1 else torch.zeros(n_rows, dtype=torch.int64)
        if len(contexts) != n_rows or int(contexts.max()) >= n_contexts:
            raise UserError(f"{n_rows} rows cannot be made of the context rows {contexts.tolist()} of {n_contexts}")
        context.check_attended()
        layers: list[Any] = cache.layers
        budgeted = [full for full in context.layers if isinstance(full, ContextLayer)]
        counts = counts_of_layers(cache._settings, budgeted, contexts)
        for layer, full, own in zip(cache.budgeted_layers, budgeted, counts, strict=True):
            layer.compress(full, own, contexts, share=share)
        for i, window in enumerate(context.layers):
            if not isinstance(window, ContextLayer):
                layers[i] = copy_window(window, contexts)
        return cache

    def __bool__(self) -> bool:
        """Return false for models with LongRoPE.

        Where their rotation changes, `prepare_inputs_for_generation` replaces a cache (`if past_key_values and ...`) by
        one without budgets and reads everything again. A false cache stays, and itself refuses to continue.
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

        Attention needs memory for at most `chunk * T` scores. Layers are compressed during the last chunk, when every
        token of the context has seen all before it, so the kept entries are those of a single pass. Where the rotation
        depends on the length of the text, it is that of the context; see `fixed_rotation` for the tokens after it.
        """
        if self.get_seq_length():
            raise UserError("the cache holds a context already; call reset() or make a new one")
        check_tokens(input_ids, chunk)
        padding = padding_of_tokens(attention_mask, input_ids.shape)
        self._settings.find_projections(model)
        self._expect(input_ids.shape[1], padding)
        self._prefilling = True
        try:
            with fixed_rotation(model, input_ids.shape[1] - (0 if padding is None else int(padding.min()))):
                return self._read(model, input_ids, attention_mask, padding, chunk)
        except BaseException:
            self.reset()  # an incomplete context cannot be used
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
            tokens = slice(start, start + chunk)
            positions = torch.arange(length, device=input_ids.device)[None, tokens]
            if padding is not None:
                positions = (positions - padding[:, None].to(positions.device)).clamp(min=0)
            logits = model(
                input_ids[:, tokens],
                attention_mask=None if attention_mask is None else attention_mask[:, : tokens.stop],
                position_ids=positions,
                past_key_values=self,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        if self.get_seq_length() != length:
            raise UserError(f"the model read the context without its cache; {_EVAL}")
        return logits[:, -1]

    @torch.compiler.disable  # the layers keep their books in Python
    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if layer_idx == 0:
            check_attention(self._config)
            self._begin(key_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        n_new = count_queries(query_length)
        if n_new < 1:
            raise UserError(
                f"the model was given no new tokens, and the cache has read {self.get_seq_length()}; give generate "
                "all tokens with at least one new one, or the new ones only with an attention_mask for all tokens"
            )
        if n_new == 1 < self._announced and not self.get_seq_length():
            raise UserError(f"the model read {self._announced} tokens without its cache; {_EVAL}")
        self._announced = n_new
        return super().get_mask_sizes(query_length, layer_idx)

    def _begin(self, keys: Tensor) -> None:
        """Check the keys `[B, Hkv, T, D]` of a new pass, and find the context's length, before any layer is updated."""
        layers: list[Any] = self.layers
        seen = self.get_seq_length()
        self._announced = 0
        if seen != layers[-1].get_seq_length():
            raise UserError("the last pass broke off between two layers; call reset() and read the context again")
        prompt = find_generate_prompt(self, keys.shape[2])
        first = self.budgeted_layers[0]
        first.check(keys, prompt)
        if first.compressed is not None or self._prefilling:
            return
        if not seen and prompt is not None and prompt.n_left != keys.shape[2]:
            shape = (keys.shape[0], prompt.n_left)
            self._expect(prompt.n_left, padding_of_tokens(prompt.mask, shape))
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
        record_windows(self._windows())

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, a negative number as in transformers; never any of the compressed context."""
        tokens_to_remove = read_crop(tokens_to_remove, self.get_seq_length())
        for layer in self.budgeted_layers:
            layer.check_crop(-tokens_to_remove)
        crop_windows(self._windows(), -tokens_to_remove)
        for layer in self.budgeted_layers:
            layer.crop(tokens_to_remove)

    def _windows(self) -> list[DynamicSlidingWindowLayer]:
        return [layer for layer in self.layers if isinstance(layer, DynamicSlidingWindowLayer)]

    def kept_entries(self) -> Tensor:
        """Count the entries of the context that each KV cache keeps, int64 `[n_layers, batch, n_kv_heads]`."""
        return torch.stack([context.counts for context in self._compressed()])

    def row_bytes(self) -> Tensor:
        """Count the bytes of the compressed context, per batch row, int64 `[batch]`."""
        return torch.stack([context.row_bytes() for context in self._compressed()]).sum(0)

    def _compressed(self) -> list[CompressedContext]:
        self.check_attended()
        contexts = [layer.compressed for layer in self.budgeted_layers]
        if any(context is None for context in contexts):
            raise UserError("the cache holds no compressed context; it has read none to its end")
        return [context for context in contexts if context is not None]

    def __deepcopy__(self, memo: dict[int, Any]) -> BudgetedCache:
        """Copy the cache for the same model: the config, which says what attention the model has, stays shared."""
        memo[id(self._config)] = self._config
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def kv_bytes(self) -> int:
        """Count the bytes allocated for keys and values: context, later tokens and their room, sliding windows."""
        windows: list[Any] = [layer for layer in self.layers if not isinstance(layer, BudgetedLayer)]
        n_bytes = sum(layer.allocated_bytes() for layer in self.budgeted_layers)
        return n_bytes + sum(count_bytes([window.keys, window.values]) for window in windows)

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.reorder_cache(rows)

    def append_rows(self, other: BudgetedCache) -> None:
        """Append the rows of another cache after this one's, to decode them together from now on.

        Both must have read tokens after their contexts, whose lengths may differ, with decoding "grow". A row that has
        seen fewer tokens gets padding before it, which the attention mask must show.
        """
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            if isinstance(layer, BudgetedLayer) and isinstance(theirs, BudgetedLayer):
                layer.append_rows(theirs)
            else:
                append_window_rows(layer, theirs)
