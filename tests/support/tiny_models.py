"""Small random models, and a naive attention that masks what a budgeted cache must have removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 60
# In these, every other layer has a sliding window; of two layers, one is budgeted.
WINDOWED = ("gemma2", "gemma3")
HYBRID = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
CLASSES: dict[str, Any] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "phi3": (Phi3Config, Phi3ForCausalLM, {"pad_token_id": None, "sliding_window": None}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {**HYBRID, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {**HYBRID, "query_pre_attn_scalar": 8}),
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
    """Build a model of a family with random weights."""
    config_class, model_class, settings = CLASSES[family]
    if family != "phi3":
        settings = {"head_dim": 8, **settings}
    sizes = {"num_hidden_layers": n_layers, "num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads}
    return build_random_model(config_class, model_class, attention=attention, dtype=dtype, **sizes, **settings)


def build_random_model(
    config_class: Any,
    model_class: Any,
    *,
    attention: str = "baklava",
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> PreTrainedModel:
    """Build a model with random weights, which are large enough that attention is not flat."""
    torch.manual_seed(0)
    model = model_class(config_class(**{**SIZES, **settings})).to(dtype).eval()
    model.set_attn_implementation(attention)
    return model


def random_tokens(n: int, *, seed: int = 0, rows: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (rows, n), generator=torch.Generator().manual_seed(seed))


class NaiveAttention:
    """Full `T x T` attention; besides the future, `hidden` `[L, Hkv, T, T]` marks what a query must not see."""

    def __init__(self) -> None:
        self.hidden: Tensor | None = None

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        length = query.shape[2]
        scores = query @ key.transpose(-1, -2) * scaling
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1).expand(query.shape[1], -1, -1)
        if self.hidden is not None:
            hidden = hidden | self.hidden[module.layer_idx].repeat_interleave(group, 0)
        output = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value
        return output.transpose(1, 2).contiguous(), None


NAIVE = NaiveAttention()
AttentionInterface.register("naive", NAIVE)
AttentionMaskInterface.register("naive", lambda **_: None)


def naive_logits(model: PreTrainedModel, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Logits `[B, T, vocab]` of one pass over `ids`, with `hidden` entries masked besides the future."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("naive")
    NAIVE.hidden = hidden
    try:
        with torch.inference_mode():
            return model(ids, use_cache=False).logits
    finally:
        NAIVE.hidden = None
        model.set_attn_implementation(implementation)


def hidden_after(kept: Tensor, length: int) -> Tensor:
    """Mask `[L, Hkv, length, length]` that hides the context from later tokens but for `kept` `[L, Hkv, n_context]`."""
    n_context = kept.shape[-1]
    hidden = torch.zeros(*kept.shape[:2], length, length, dtype=torch.bool)
    hidden[..., n_context:, :n_context] = ~kept[:, :, None]
    return hidden
