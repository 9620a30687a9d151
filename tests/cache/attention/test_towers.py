"""Modules that are not causal, as in vision and audio encoders, attend as with transformers' own `sdpa`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PixtralVisionConfig,
    PixtralVisionModel,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    WhisperConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from baklava.cache.attention.dense import baklava_attention
from baklava.errors import UserError

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


class Encoder(nn.Module):
    """What attention functions ask of a module."""

    is_causal = False

    def __init__(self, group: int):
        super().__init__()
        self.num_key_value_groups = group


@given(
    n_kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    n_queries=st.integers(1, 9),
    n_keys=st.integers(1, 9),
    mask=st.sampled_from(["none", "boolean", "additive"]),
    bias=st.booleans(),
)
@settings(deadline=None)
def test_it_is_sdpa(n_kv_heads: int, group: int, n_queries: int, n_keys: int, mask: str, bias: bool) -> None:
    random = torch.Generator().manual_seed(n_queries * n_keys)
    query = torch.randn(2, n_kv_heads * group, n_queries, 8, generator=random)
    key, value = (torch.randn(2, n_kv_heads, n_keys, 8, generator=random) for _ in range(2))
    visible = torch.rand(2, 1, n_queries, n_keys, generator=random) < 0.7
    visible[..., 0] = True
    given = {"none": None, "boolean": visible, "additive": torch.where(visible, 0.0, -1e9)}[mask]
    more = {"position_bias": torch.randn(1, n_kv_heads * group, n_queries, n_keys, generator=random)} if bias else {}
    found, expected = (
        attention(Encoder(group), query, key, value, given, scaling=0.3, **more)[0]
        for attention in (baklava_attention, sdpa_attention_forward)
    )
    assert found.equal(expected)


def test_learnt_sinks_are_not_left_out() -> None:
    states = torch.randn(1, 2, 3, 8)
    with pytest.raises(UserError, match="learnt attention sinks"):
        baklava_attention(Encoder(1), states, states, states, None, s_aux=torch.zeros(2))


def tower(name: str) -> tuple[PreTrainedModel, torch.Tensor]:
    """An encoder, and something that it encodes."""
    image = torch.randn(1, 3, 32, 32)
    if name == "whisper":
        config = WhisperConfig(
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=48,
            num_mel_bins=8,
            max_source_positions=16,
        )
        return WhisperEncoder(config), torch.randn(1, 8, 32)
    classes: dict[str, Any] = {
        "clip": (CLIPVisionModel, CLIPVisionConfig),
        "siglip": (SiglipVisionModel, SiglipVisionConfig),
        "pixtral": (PixtralVisionModel, PixtralVisionConfig),
    }
    model_class, config_class = classes[name]
    return model_class(config_class(**VISION)), image


@pytest.mark.parametrize("name", ["clip", "siglip", "pixtral", "whisper"])
def test_an_encoder_gives_what_it_gives_with_sdpa(name: str) -> None:
    torch.manual_seed(0)
    model, data = tower(name)
    assert features(model, data, "baklava").equal(features(model, data, "sdpa"))


def test_the_encoder_of_a_multimodal_model_is_reached_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config={"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 99, "layer_types": ["full_attention"]},
        vision_config=VISION,
    )
    model = Gemma3ForConditionalGeneration(config)
    image = torch.randn(1, 3, 32, 32)
    expected = features(model.model.vision_tower, image, "sdpa")
    model.set_attn_implementation("baklava")
    assert model.model.vision_tower.config._attn_implementation == "baklava"
    assert features(model.model.vision_tower, image, "baklava").equal(expected)


@torch.inference_mode()
def features(model: PreTrainedModel, data: torch.Tensor, attention: str) -> torch.Tensor:
    model.eval().set_attn_implementation(attention)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return model(data).last_hidden_state
