"""Small random models and a naive attention that masks what a budgeted cache must have dropped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 60
CLASSES: dict[str, Any] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
}


def random_model(
    family: str = "llama",
    *,
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    attention: str = "baklava",
    dtype: torch.dtype = torch.float64,
) -> PreTrainedModel:
    """A model with random weights, large enough ones that attention is not flat."""
    config_class, model_class, more = CLASSES[family]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        head_dim=8,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )
    model = model_class(config).to(dtype).eval()
    model.set_attn_implementation(attention)
    return model


def random_tokens(n: int, *, seed: int = 0, rows: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (rows, n), generator=torch.Generator().manual_seed(seed))


class NaiveAttention:
    """Full `T x T` attention; `dropped` `[L, Hkv, n_context]` entries are hidden from every later token."""

    def __init__(self) -> None:
        self.dropped: Tensor | None = None

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        length = query.shape[2]
        scores = query @ key.transpose(-1, -2) * scaling
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1).expand(query.shape[1], -1, -1).clone()
        if self.dropped is not None:
            gone = self.dropped[module.layer_idx].repeat_interleave(group, 0)  # [Hq, n_context]
            hidden[:, gone.shape[1] :, : gone.shape[1]] |= gone[:, None]
        output = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value
        return output.transpose(1, 2).contiguous(), None


NAIVE = NaiveAttention()
AttentionInterface.register("naive", NAIVE)
AttentionMaskInterface.register("naive", lambda **_: None)


def naive_logits(model: PreTrainedModel, ids: Tensor, dropped: Tensor | None = None) -> Tensor:
    """Logits `[1, T, vocab]` of one pass over `ids` with the dropped entries masked."""
    before = model.config._attn_implementation
    model.set_attn_implementation("naive")
    NAIVE.dropped = dropped
    try:
        with torch.inference_mode():
            return model(ids, use_cache=False).logits
    finally:
        NAIVE.dropped = None
        model.set_attn_implementation(before)
