"""KVzip keeps what kvpress 0.5.5 keeps, given the same words between the context and its repetition.

kvpress reads the words from a tokenizer; here it knows a few. The end of a chat template, which it adds, is empty.
Its environment has too old a transformers for our cache, so queries, keys and values come from a pass without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kvpress
import pytest
import torch
from kvpress.presses import kvzip_press
from recorded_attention import RECORDER, path_of
from tiny_models import random_model, random_tokens
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from baklava.eviction import KVzip
from baklava.eviction.base import LayerContext, raise_protected

INSTRUCTION, GO_ON = [5, 9, 3], [7, 2]
CONTEXT = random_tokens(100)[0].tolist()
CHUNK = 40  # three parts, the last of them shorter


class Words:
    """A tokenizer without a chat template."""

    chat_template = None

    @classmethod
    def from_pretrained(cls, path: str) -> Words:
        return cls()

    def encode(self, text: str, **_: Any) -> Tensor:
        tokens = GO_ON if "starting with" in text else INSTRUCTION if text.strip() else []
        return torch.tensor([tokens], dtype=torch.int64)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kvzip_press, "AutoTokenizer", Words)
    torch.set_default_dtype(torch.float64)  # kvpress makes its mask in the default
    yield
    torch.set_default_dtype(torch.float32)


def masked(model: PreTrainedModel, press: Any) -> Tensor:
    """Entries `[L, Hkv, S]` that kvpress takes away."""
    model.set_attn_implementation("sdpa")
    with torch.inference_mode(), press(model):
        model(torch.tensor([CONTEXT]), past_key_values=DynamicCache())
    masked = torch.zeros(2, 3, len(CONTEXT), dtype=torch.bool)
    for own, layer in zip(masked, model.model.layers, strict=True):
        _, heads, entries = layer.self_attn.masked_key_indices
        own[heads, entries] = True
    return masked


def scores(model: PreTrainedModel, policy: KVzip) -> Tensor:
    """Scores `[L, Hkv, S]` of our policy, part by part."""
    model.set_attn_implementation("recording")
    n, scores = len(CONTEXT), torch.zeros(2, 3, len(CONTEXT))
    for start in range(0, n, CHUNK):
        before = [*GO_ON, *CONTEXT[start - policy.overlap : start]] if start else INSTRUCTION
        part, entered = slice(start, min(start + CHUNK, n)), []
        RECORDER.layers = []
        hooks = [
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs: entered.append(kwargs["hidden_states"][:, n:]),  # noqa: B023
                with_kwargs=True,
            )
            for layer in model.model.layers
        ]
        with torch.inference_mode():
            model(torch.tensor([[*CONTEXT, *before, *CONTEXT[part]]]), use_cache=False)
        for hook in hooks:
            hook.remove()
        for index, (query, key, value, scaling) in enumerate(RECORDER.layers):
            path = path_of(model, index)
            context = LayerContext(key[:, :, :n], value[:, :, :n], scaling, None, index, model.config, path=path)
            repetition = key[:, :, n:], value[:, :, n:]
            scores[index, :, part] = policy.observe_repetition(
                query[:, :, n:], repetition, context, part, entered[index]
            )[0]
    return scores


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_kept_entries_are_those_of_kvpress(family: str, plus: bool, ratio: float) -> None:
    model = random_model(family, n_heads=6, n_kv_heads=3)
    press = kvpress.KVzipPress(compression_ratio=ratio, chunk_size=CHUNK, kvzip_plus_normalization=plus)
    expected = ~masked(model, press)
    policy = KVzip(chunk=CHUNK, weighed=plus)
    own = scores(model, policy)
    n_kept = int(expected.sum())
    budgets = torch.tensor([n_kept // 6 + (i < n_kept % 6) for i in range(6)]).view(2, 3)
    counts = policy.distribute_over_layers(list(own), list(own), budgets)
    order = raise_protected(own, policy, 0).argsort(dim=-1, descending=True)
    for layer in range(2):
        for head in range(3):
            kept = order[layer, head, : counts[layer, head]]
            assert set(kept.tolist()) == set(expected[layer, head].nonzero().flatten().tolist())
    assert len(set(counts.flatten().tolist())) > 1
