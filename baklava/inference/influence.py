"""Influence: what a prompt would lose or gain, to first order, if one KV cache kept another share of its context.

One forward and backward pass of the continuation over a compressed context gives the gradient at every head's output.
With all keys and values of the context still there, so is the output that the head would have had with more entries or
fewer. The product of the gradient and that difference is the first-order change of the objective: for every KV cache
and every share at once, whatever their number. Where the entries are quantised, so is the output that they would give
in more bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from baklava.budgets import Budgets
from baklava.budgets.bits import EntrySize
from baklava.cache.attended import AttendedCache, AttendingLayer
from baklava.cache.attention.dense import soft_cap
from baklava.cache.attention.precision import at_least_float32
from baklava.cache.compress import compete_over_layers, rank_entries
from baklava.cache.layers import build_layers, copy_window
from baklava.cache.prefill import ContextCache, ContextLayer
from baklava.decoder.config import decoder_of, text_config
from baklava.eviction import EvictionPolicy
from baklava.inference.batch import BatchState, next_token_divergences
from baklava.inference.rounding import as_stored
from baklava.models.load import LoadedModel

# Shares at which influence is computed. Most KV caches keep little, and most is gained there.
LEVELS = (0.0, 0.004, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class InfluenceLayer(AttendingLayer):
    """One layer whose tokens attend to the `kept` entries `[Hkv, T]` of a full context, and pass gradients back.

    After a backward pass `influence` `[K, Hkv]` is the first-order change of what the gradient is of, if a KV cache
    kept the entries of one of the `levels` `[K, Hkv, T]` instead. With `bits` `[Hkv, 2]` the kept entries are quantised
    so, and `precision` `[2, W, Hkv]` is that change if the keys, or the values, had one of the `widths` instead.
    """

    def __init__(
        self,
        context: ContextLayer,
        kept: Tensor,
        levels: Tensor,
        bits: NDArray[np.int64] | None = None,
        widths: Sequence[int] = (),
    ):
        super().__init__()
        assert context.keys is not None and context.values is not None
        self.context_keys, self.context_values = context.keys[0], context.values[0]
        self.stored_keys = [as_stored(self.context_keys, kept, width, by_entry=False) for width in widths]
        self.stored_values = [as_stored(self.context_values, kept, width, by_entry=True) for width in widths]
        if bits is not None:
            of_keys, of_values = np.searchsorted(widths, bits).T
            self.context_keys = torch.stack([self.stored_keys[w][head] for head, w in enumerate(of_keys)])
            self.context_values = torch.stack([self.stored_values[w][head] for head, w in enumerate(of_values)])
        self.kept, self.levels = kept, levels
        self.seen = context.seen
        self.influence: Tensor | None = None
        self.precision: Tensor | None = None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        self.mark_attended()
        return _KeptAttention.apply(query, key, value, self, scaling, softcap)


class InfluenceCache(AttendedCache):
    """A prefilled context of one row, compressed as budgets say but kept in full, for one pass of its continuation.

    With `widths`, entries are in the bits of the budgets, and what these widths would change takes the place of levels.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        context: ContextCache,
        budgets: Budgets,
        policy: EvictionPolicy,
        widths: Sequence[int] = (),
    ):
        decoder, text = decoder_of(config), text_config(config)
        full: list[Any] = context.layers
        length = full[decoder.budgeted_layers[0]].seen
        row, budgeted = torch.zeros(1, dtype=torch.int64), [full[i] for i in decoder.budgeted_layers]
        size = EntrySize(dims=(decoder.head_dim, decoder.head_dim), itemsize=budgeted[0].keys.element_size())
        before = torch.from_numpy(budgets.entries(length, size))[:, None]
        current = compete_over_layers(budgeted, [policy], before, row)[:, 0]
        levels = () if widths else LEVELS
        at_levels = torch.tensor([round(level * length) for level in levels], dtype=torch.int64)

        def build(budget_index: int, layer: int) -> InfluenceLayer:
            n_kv_heads = current.shape[1]
            levels_of_all = at_levels[:, None].expand(-1, n_kv_heads)
            counts = torch.cat([current[budget_index][None], levels_of_all])
            own = torch.cat([before[budget_index], levels_of_all])
            distributed, rank, _ = rank_entries(
                full[layer], [policy] * len(counts), counts, torch.zeros(len(counts), dtype=torch.int64), own
            )
            # A level is one KV cache's own, whatever the others would win or lose.
            counts[:1] = distributed[:1]
            kept = rank < counts.to(rank.device)[:, :, None]
            bits = None if budgets.bits is None or not widths else budgets.bits[budget_index]
            return InfluenceLayer(full[layer], kept[0], kept[1:], bits, widths)

        layers = build_layers(decoder, build)
        for i, layer in enumerate(layers):
            if not isinstance(layer, InfluenceLayer):
                layers[i] = copy_window(full[i], torch.zeros(1, dtype=torch.int64))
        super().__init__(text, decoder, layers)

    def influence(self) -> NDArray[np.float64]:
        """The influence `[K, L, Hkv]` of every KV cache at every level, after a backward pass."""
        return self._stacked("influence")

    def precision(self) -> NDArray[np.float64]:
        """The influence `[2, W, L, Hkv]` of the widths of every KV cache's keys and values, after a backward pass."""
        return self._stacked("precision")

    def _stacked(self, name: str) -> NDArray[np.float64]:
        by_layer = [getattr(layer, name) for layer in self.layers if isinstance(layer, InfluenceLayer)]
        return np.stack([values.double().cpu().numpy() for values in by_layer if values is not None], -2)


def read_continuation(
    model: LoadedModel,
    prefilled: BatchState,
    budgets: Budgets,
    policy: EvictionPolicy,
    tokens: Sequence[int],
    n: int,
    widths: Sequence[int] = (),
) -> tuple[InfluenceCache, Tensor]:
    """Read tokens after the compressed context; returns the cache and the logits `[n, vocabulary]` of the last `n`."""
    context = prefilled.cache
    assert isinstance(context, ContextCache)
    cache = InfluenceCache(model.model.config, context, budgets, policy, widths)
    state = BatchState(cache, prefilled.lengths.clone(), None, prefilled.rotated_for)
    return cache, at_least_float32(state.read(model, [tokens], logits_to_keep=n)[0])


def measure_influence(
    model: LoadedModel,
    prefilled: BatchState,
    budgets: Budgets,
    policy: EvictionPolicy,
    question: Sequence[int],
    answer: Sequence[int],
    reference: Tensor | None = None,
    widths: Sequence[int] = (),
) -> NDArray[np.float64]:
    """First-order change `[K, L, Hkv]` of a prompt's objective, for every KV cache at each of the `LEVELS`.

    The objective is the divergence from `reference`, log-probabilities `[answer, vocabulary]`, or without one the loss.
    With rising `widths`, entries are quantised to the budgets' bits, and the change `[2, W, L, Hkv]` is that of a KV
    cache's keys, or values, in each.
    """
    with torch.enable_grad(), _gradients_from_embeddings(model):
        tokens = [*question, *answer][:-1]
        cache, logits = read_continuation(model, prefilled, budgets, policy, tokens, len(answer), widths)
        if reference is None:
            value = torch.nn.functional.cross_entropy(logits, torch.tensor(answer, device=logits.device))
        else:
            value = next_token_divergences(logits, reference).mean()
        value.backward()
    return cache.precision() if widths else cache.influence()


@contextmanager
def _gradients_from_embeddings(model: LoadedModel) -> Iterator[None]:
    """Begin gradients at the embeddings: the weights have none."""
    hook = model.model.get_input_embeddings().register_forward_hook(lambda *args: args[-1].requires_grad_(True))
    try:
        yield
    finally:
        hook.remove()


class _KeptAttention(torch.autograd.Function):
    """Attention of new tokens to kept entries of the context and to each other, one layer's weights held at a time."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: InfluenceLayer,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.layer, ctx.scaling, ctx.softcap = layer, scaling, softcap
        output = _Attended(query, key, value, layer, scaling, softcap).output()
        return output.flatten(0, 1)[None].to(query.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value = ctx.saved_tensors
        attended = _Attended(query, key, value, ctx.layer, ctx.scaling, ctx.softcap)
        grouped = at_least_float32(grad[0].unflatten(0, (key.shape[1], -1)))
        layer = ctx.layer
        if layer.stored_keys:
            output = attended.output()
            others = [(keys, layer.context_values) for keys in layer.stored_keys]
            others += [(layer.context_keys, values) for values in layer.stored_values]
            changes = [
                ((_Attended(query, key, value, layer, ctx.scaling, ctx.softcap, *other).output() - output) * grouped)
                for other in others
            ]
            layer.precision = torch.stack([change.sum((1, 2, 3)) for change in changes]).unflatten(0, (2, -1))
        at_query, at_key, at_value, ctx.layer.influence = attended.differentiate(grouped, ctx.layer.levels)
        grads = (at_query.flatten(0, 1)[None].to(query), at_key[None].to(key), at_value[None].to(value))
        return *grads, None, None, None


class _Attended:
    """New tokens `[group, Q]` of each KV head, what they see and with which scores; in float32 at least."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: InfluenceLayer,
        scaling: float,
        softcap: float | None,
        context_keys: Tensor | None = None,
        context_values: Tensor | None = None,
    ):
        context_keys = layer.context_keys if context_keys is None else context_keys
        context_values = layer.context_values if context_values is None else context_values
        self.query = at_least_float32(query[0].unflatten(0, (len(context_keys), -1)))  # [Hkv, group, Q, D]
        keys, values = key[0].to(context_keys), value[0].to(context_values)
        self.keys = at_least_float32(torch.cat([context_keys, keys], 1))[:, None]  # [Hkv, 1, T + Q, D]
        self.values = at_least_float32(torch.cat([context_values, values], 1))[:, None]
        self.scaling, self.softcap = scaling, softcap
        scores = self.query @ self.keys.transpose(-1, -2) * scaling  # [Hkv, group, Q, T + Q]
        self.scores = scores if softcap is None else soft_cap(scores, softcap)
        n_new = query.shape[2]
        self.n_context = self.keys.shape[2] - n_new
        causal = torch.ones(n_new, n_new, dtype=torch.bool, device=query.device).tril()
        self.causal = causal.expand(len(self.keys), 1, -1, -1)
        self.visible = torch.cat([layer.kept[:, None, None].expand(-1, 1, n_new, -1), self.causal], -1)

    @cached_property
    def weights(self) -> Tensor:
        return self.scores.masked_fill(~self.visible, -torch.inf).softmax(-1)

    def output(self) -> Tensor:
        return self.weights @ self.values

    def differentiate(self, grad: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of queries `[Hkv, group, Q, D]`, of new keys and values `[Hkv, Q, D]`, and influence `[K, Hkv]`.

        The influence is the first-order change if a KV head kept the entries of one of the `levels` `[K, Hkv, T]`.
        """
        n = self.n_context
        products = grad @ self.values.transpose(-1, -2)  # of the gradient and every value
        weighted = self.weights * products
        current = weighted.sum(-1, keepdim=True)
        at_scores = (weighted - self.weights * current).mul_(self.scaling)
        if self.softcap is not None:
            at_scores *= 1 - (self.scores / self.softcap) ** 2
        at_key = (at_scores[..., n:].transpose(-1, -2) @ self.query).sum(1)
        at_value = (self.weights[..., n:].transpose(-1, -2) @ grad).sum(1)
        return at_scores @ self.keys, at_key, at_value, self._influence(products, current, levels)

    def _influence(self, products: Tensor, current: Tensor, levels: Tensor) -> Tensor:
        n = self.n_context
        seen = self.scores.clone()
        seen[..., n:].masked_fill_(~self.causal, -torch.inf)
        new_alone = (seen[..., n:].softmax(-1) * products[..., n:]).sum(-1, keepdim=True)
        unnormalised = seen.sub_(seen.amax(-1, keepdim=True)).exp_()
        products = unnormalised * products
        masks = levels.to(unnormalised.dtype).permute(1, 2, 0)[:, None]  # [Hkv, 1, T, K]
        numerator = products[..., :n] @ masks + products[..., n:].sum(-1, keepdim=True)  # [Hkv, group, Q, K]
        denominator = unnormalised[..., :n] @ masks + unnormalised[..., n:].sum(-1, keepdim=True)
        # Where what has by far the highest score is not kept, the sums may vanish; new tokens then see each other.
        outputs = torch.where(denominator > 0, numerator / denominator, new_alone)
        return (outputs - current).sum((1, 2)).T
