"""Small random models of every type of rotation that transformers has; two of them depend on the length of the text."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import CLASSES, HYBRID, VOCABULARY
from transformers import PhimoeConfig, PhimoeForCausalLM, PreTrainedModel

LIMIT = 32  # tokens up to which the two leave the rotation as it is
SHORT = [1.0 + 0.5 * i for i in range(4)]
LONG = [4 * one for one in SHORT]
THETA = {"rope_theta": 1e4}
ORIGINAL = {"original_max_position_embeddings": LIMIT}
STATIC: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, **ORIGINAL},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "proportional": {"partial_rotary_factor": 0.5},
}
BY_LENGTH: dict[str, dict[str, Any]] = {
    "dynamic": {"factor": 4.0},
    "longrope": {"short_factor": SHORT, "long_factor": LONG, **ORIGINAL},
}
ROPES = STATIC | BY_LENGTH


def rotating_model(rope: str, family: str = "llama", *, attention: str = "baklava") -> PreTrainedModel:
    """In float64. Of Gemma 3, the layers that see all tokens rotate so, not those with a window."""
    torch.manual_seed(0)
    parameters = {"rope_type": rope, **THETA, **ROPES[rope]}
    config_class, model_class, more = {**CLASSES, "phimoe": (PhimoeConfig, PhimoeForCausalLM, {})}[family]
    settings: dict[str, Any] = {**more}
    if family == "gemma3":
        parameters = {"full_attention": parameters, "sliding_attention": {"rope_type": "default", **THETA}}
        settings |= HYBRID
    if family == "phi3":
        settings |= ORIGINAL
    if family == "phimoe":
        parameters |= {"short_mscale": 1.2, "long_mscale": 1.5}
        settings |= {"num_local_experts": 2, "num_experts_per_tok": 1}
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        max_position_embeddings=LIMIT if rope == "dynamic" else 4 * LIMIT,
        rope_parameters=parameters,
        **({} if family in ("phi3", "phimoe") else {"head_dim": 8}),
        **{name: value for name, value in settings.items() if name != "head_dim"},
    )
    model = model_class(config).double().eval()
    if family == "phimoe":
        model.set_experts_implementation("eager")  # others know no float64
    model.set_attn_implementation(attention)
    return model
