"""The rotation of queries is undone, and averaged, as each supported model defines it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from baklava.decoder.rotary import SUPPORTED, rotary_of
from baklava.errors import UserError

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "pad_token_id": None,
    "max_position_embeddings": 64,
}
FACTORS = [1.0 + i for i in range(4)]
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "factor": 4.0,
        "short_factor": FACTORS,
        "long_factor": [2 * factor for factor in FACTORS],
        "original_max_position_embeddings": 16,
    },
}


def small_config(model_type: str, **more: Any) -> PreTrainedConfig:
    return CONFIG_MAPPING[model_type](**{**SMALL, **more})


@contextmanager
def watched(config: PreTrainedConfig) -> Iterator[tuple[PreTrainedModel, list[Tensor], list[Tensor]]]:
    """A random model, and per layer the queries before their rotation and as the attention gets them."""
    before: list[Tensor] = []
    after: list[Tensor] = []
    modeling: Any = import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    apply = modeling.apply_rotary_pos_emb

    def watching(query: Tensor, *args: Any, **kwargs: Any) -> Any:
        before.append(query)
        return apply(query, *args, **kwargs)

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        after.append(query)
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("watching", attention)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="watching").eval()
    modeling.apply_rotary_pos_emb = watching
    try:
        yield model, before, after
    finally:
        modeling.apply_rotary_pos_emb = apply


def check_undone(config: PreTrainedConfig, *, start: int, n: int) -> None:
    positions = torch.arange(start, start + n)
    with watched(config) as (model, before, after), torch.inference_mode():
        model(torch.randint(50, (2, n)), position_ids=positions.expand(2, -1), use_cache=False)
    assert len(before) == len(after) == 2
    for layer_index, (plain, rotated) in enumerate(zip(before, after, strict=True)):
        undone = rotary_of(config, layer_index).undo(rotated, positions)
        assert not torch.allclose(rotated[..., 1:, :], undone[..., 1:, :], atol=1e-3)
        # Where a model rotates a part of the dimensions, some pass it alone to the rotation.
        torch.testing.assert_close(undone[..., : plain.shape[-1]], plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_queries_come_back_as_they_were(model_type: str) -> None:
    check_undone(small_config(model_type), start=3, n=12)


@pytest.mark.parametrize("n", [12, 100])
@pytest.mark.parametrize("rope_type", SCALED)
def test_scaled_frequencies_are_known(rope_type: str, n: int) -> None:
    scaled = {"rope_type": rope_type, "rope_theta": 10000.0, **SCALED[rope_type]}
    check_undone(small_config("llama", rope_parameters=scaled), start=0, n=n)


@pytest.mark.parametrize("model_type", ["llama", "cohere", "phi", "glm4"])
def test_average_is_the_mean_over_rotations(model_type: str) -> None:
    rotary = rotary_of(small_config(model_type), 0)
    vectors = torch.randn(2, 4, 3, 8)
    positions = torch.arange(20, 29)
    each = [rotary.average(vectors, positions[i : i + 1]) for i in range(9)]
    torch.testing.assert_close(rotary.average(vectors, positions), torch.stack(each).mean(0))
    # One position is a rotation: undoing it gives the vectors back.
    torch.testing.assert_close(rotary.undo(each[0], positions[:1].expand(3)), vectors)


def test_model_type_without_a_test_is_refused() -> None:
    config = LlamaConfig()
    config.model_type = "mystery"
    with pytest.raises(UserError, match=r"'mystery'.*supported: .*llama"):
        rotary_of(config, 0)
