"""Has a model repeat contexts that it has read, teacher-forced, while policies watch what it looks at."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from baklava.cache.attended import AttendedCache, AttendingLayer
from baklava.cache.attention.dense import dense_attention
from baklava.cache.layers import build_layers, copy_window
from baklava.cache.prefill import ContextCache, ContextLayer, Repetition
from baklava.decoder.attention_path import hidden_states
from baklava.decoder.config import decoder_of, text_config
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy
from baklava.eviction.kvzip import MAX_LOSS, KVzip
from baklava.inference.batch import BatchState
from baklava.models.load import LoadedModel
from baklava.system.job_log import tell

N_LOSS = 128  # the last tokens of each part, on which the loss is measured


class RepeatingLayer(AttendingLayer):
    """One layer whose tokens attend to one row of a full context and to each other; `policy` scores by them."""

    def __init__(self, context: ContextLayer, row: int, policy: KVzip, part: slice, hidden: dict[int, Tensor]):
        super().__init__()
        self.group, self.index, self.context = context.context_of(row)
        self.policy, self.part, self.hidden = policy, part, hidden
        self.n_rows = context.n_rows if self.group.rows is None else len(self.group.rows)
        self.seen = context.seen

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        self.mark_attended()
        context, states = self.context, self.group.states
        scores = self.policy.observe_repetition(
            query, (key, value), context, self.part, self.hidden.get(context.layer_index, query.new_zeros(()))
        )
        if states.get(self.policy) is None:
            states[self.policy] = scores.new_zeros(self.n_rows, scores.shape[1], context.keys.shape[2])
        states[self.policy][self.index, :, self.part] = scores[0]
        keys, values = torch.cat([context.keys, key], 2), torch.cat([context.values, value], 2)
        return dense_attention(query, keys, values, scaling=scaling, softcap=softcap)


class RepeatingCache(AttendedCache):
    """One row of a prefilled context for one pass that repeats a part of it; the context stays as it is."""

    def __init__(
        self,
        config: PreTrainedConfig,
        context: ContextCache,
        row: int,
        policy: KVzip,
        part: slice,
        hidden: dict[int, Tensor],
    ):
        decoder, text = decoder_of(config), text_config(config)
        full: list[Any] = context.layers
        layers = build_layers(decoder, lambda _, i: RepeatingLayer(full[i], row, policy, part, hidden))
        for i, layer in enumerate(layers):
            if not isinstance(layer, RepeatingLayer):
                layers[i] = copy_window(full[i], torch.tensor([row]))
        super().__init__(text, decoder, layers)


@torch.inference_mode()
def repeat_contexts(
    model: LoadedModel, prefilled: BatchState, contexts: Sequence[Sequence[int]], policies: Sequence[EvictionPolicy]
) -> None:
    """Repeat each context for each of the policies that need it; leaves scores and losses in the prefilled cache.

    Raises `UserError` where context and repetition take more positions than the model has.
    """
    cache = prefilled.cache
    assert isinstance(cache, ContextCache)
    for policy in dict.fromkeys(policies):
        if not policy.repeats:
            continue
        assert isinstance(policy, KVzip)
        started = time.perf_counter()
        losses = [_repeat(model, prefilled, cache, row, tokens, policy) for row, tokens in enumerate(contexts)]
        cache.repetitions[policy] = Repetition(time.perf_counter() - started, losses)
        if max(losses) > MAX_LOSS:
            tell(
                f"model {model.name}: the repetition of a context for eviction policy kvzip has a loss of "
                f"{max(losses):.2f} per token; the model does not repeat it, so the policy's scores mean little"
            )


def _repeat(
    model: LoadedModel, prefilled: BatchState, cache: ContextCache, row: int, context: Sequence[int], policy: KVzip
) -> float:
    """Repeat one context part by part; the mean loss of the last tokens of each part."""
    losses = []
    for start in range(0, len(context), policy.chunk):
        part = slice(start, min(start + policy.chunk, len(context)))
        before = model.encode(policy.go_on) + list(context[max(0, start - policy.overlap) : start])
        tokens = [*(before if start else model.encode(policy.instruction)), *context[part]]
        if len(context) + len(tokens) > model.n_positions:
            raise UserError(
                f"model {model.name}: repeating {part.stop - start} of {len(context)} tokens takes "
                f"{len(context) + len(tokens)} positions, and it has {model.n_positions}; lower the chunk of eviction "
                "policy kvzip, or evaluate.length"
            )
        with _hidden_states(model, policy) as hidden:
            repeating = RepeatingCache(model.model.config, cache, row, policy, part, hidden)
            mask = None if prefilled.mask is None else prefilled.mask[row : row + 1]
            state = BatchState(repeating, prefilled.lengths[row : row + 1].clone(), mask, prefilled.rotated_for)
            n = min(N_LOSS, part.stop - start)
            logits = state.read(model, [tokens], logits_to_keep=n + 1)[0, :-1].float()
        targets = torch.tensor(tokens[-n:], device=logits.device)
        losses.append(float(torch.nn.functional.cross_entropy(logits, targets)))
    return sum(losses) / len(losses)


@contextmanager
def _hidden_states(model: LoadedModel, policy: KVzip) -> Iterator[dict[int, Tensor]]:
    """Within the block, what enters the attention of each layer, if the policy weighs by it."""
    entered: dict[int, Tensor] = {}

    def hook(layer: int) -> Any:
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered[layer] = hidden_states(args, kwargs)

        return before

    with ExitStack() as stack:
        for layer, path in model.attention_paths.items() if policy.weighed else ():
            stack.callback(path.attention.register_forward_pre_hook(hook(layer), with_kwargs=True).remove)
        yield entered
