"""Small random models with every type of rotation in transformers; two types depend on the length of the text."""

from __future__ import annotations

from typing import Any

from tiny_models import CLASSES, HYBRID, build_random_model
from transformers import PhimoeConfig, PhimoeForCausalLM, PreTrainedModel

LIMIT = 32  # tokens; up to here, these two do not change the rotation
SHORT = [1.0 + 0.5 * i for i in range(4)]
LONG = [4 * factor for factor in SHORT]
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
    """Build a model in float64. In Gemma 3, this rotation is that of the layers without a window."""
    parameters = {"rope_type": rope, **THETA, **ROPES[rope]}
    config_class, model_class, settings = {**CLASSES, "phimoe": (PhimoeConfig, PhimoeForCausalLM, {})}[family]
    settings = {**settings}
    if family == "gemma3":
        parameters = {"full_attention": parameters, "sliding_attention": {"rope_type": "default", **THETA}}
        settings |= HYBRID
    if family == "phi3":
        settings |= ORIGINAL
    if family == "phimoe":
        parameters |= {"short_mscale": 1.2, "long_mscale": 1.5}
        settings |= {"num_local_experts": 2, "num_experts_per_tok": 1}
    if family not in ("phi3", "phimoe"):
        settings["head_dim"] = 8
    model = build_random_model(
        config_class,
        model_class,
        attention=attention,
        max_position_embeddings=LIMIT if rope == "dynamic" else 4 * LIMIT,
        rope_parameters=parameters,
        **settings,
    )
    if family == "phimoe":
        model.set_experts_implementation("eager")  # the others do not support float64
    return model
