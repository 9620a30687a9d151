"""What a config says of a decoder: layers with budgets, sizes, and why some models are refused."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BartConfig,
    BertConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma3Config,
    Gemma3nTextConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GptOssConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3Config,
)

from baklava import BudgetedCache, Budgets
from baklava.cache.prefill import ContextCache
from baklava.decoder.config import UNSUPPORTED_KINDS, decoder_of
from baklava.errors import UserError
from baklava.models.shape import shape_of

KINDS = st.sampled_from(["full_attention", "sliding_attention"])


def with_kinds(kinds: list[str], **more: Any) -> PreTrainedConfig:
    return Qwen3Config(num_hidden_layers=len(kinds), layer_types=kinds, **more)


class TestLayers:
    @given(kinds=st.lists(KINDS, min_size=1, max_size=12), window=st.integers(1, 99))
    def test_those_that_see_all_tokens_have_budgets(self, kinds: list[str], window: int) -> None:
        config = with_kinds(kinds, sliding_window=window, use_sliding_window=True, max_position_embeddings=100)
        full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        if not full:
            with pytest.raises(UserError, match="every layer of this model has a sliding window"):
                decoder_of(config)
            return
        decoder = decoder_of(config)
        assert decoder.budgeted_layers == full
        assert [one for one in decoder.windows if one is not None] == [window] * (len(kinds) - len(full))

    @given(positions=st.integers(1, 1000), window=st.integers(1, 1000))
    def test_a_window_as_long_as_the_positions_never_bites(self, positions: int, window: int) -> None:
        config = Phi3Config(sliding_window=window, max_position_embeddings=positions, pad_token_id=None)
        if window >= positions:
            assert decoder_of(config).budgeted_layers == list(range(32))
        else:
            with pytest.raises(UserError, match="every layer of this model has a sliding window"):
                decoder_of(config)

    @pytest.mark.parametrize(("factor", "full"), [(2.0, True), (4.0, True), (8.0, False)])
    def test_a_scaled_rotation_reaches_further(self, factor: float, full: bool) -> None:
        rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": factor, "original_max_position_embeddings": 100}
        settings = {"sliding_window": 400, "use_sliding_window": True, "max_position_embeddings": 100}
        config = with_kinds(["full_attention", "sliding_attention"], rope_parameters=rope, **settings)
        assert decoder_of(config).budgeted_layers == ([0, 1] if full else [0])

    @pytest.mark.parametrize("kind", [*UNSUPPORTED_KINDS, "of_the_future"])
    def test_other_kinds_are_named(self, kind: str) -> None:
        config = with_kinds(["full_attention"] * 3)
        config.layer_types = ["full_attention", kind, "full_attention"]
        with pytest.raises(UserError, match=f"layers of type '{kind}'.* not supported; known: full_attention"):
            decoder_of(config)


class TestSizes:
    def test_of_a_config_in_a_text_config(self) -> None:
        text = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_size": 32}
        config = Gemma3Config(text_config=text)
        assert decoder_of(config) == decoder_of(config.text_config)
        assert (decoder_of(config).n_q_heads, decoder_of(config).n_kv_heads, decoder_of(config).head_dim) == (4, 2, 8)

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            (GPT2Config(n_head=4, n_embd=32, n_layer=3), (4, 4, 8)),  # names of its own, no KV heads
            (GPTBigCodeConfig(n_head=4, n_embd=32), (4, 1, 8)),
            (LlamaConfig(num_attention_heads=4, hidden_size=32), (4, 4, 8)),
            (Qwen3Config(num_attention_heads=4, num_key_value_heads=1, hidden_size=32, head_dim=24), (4, 1, 24)),
        ],
    )
    def test_heads_and_their_dimension(self, config: PreTrainedConfig, expected: tuple[int, int, int]) -> None:
        decoder = decoder_of(config)
        assert (decoder.n_q_heads, decoder.n_kv_heads, decoder.head_dim) == expected
        assert len(decoder.windows) == config.num_hidden_layers

    def test_those_of_layers_with_a_window_may_be_others(self) -> None:
        if not hasattr(getattr(transformers, "Gemma4TextConfig", None), "per_layer_config"):
            pytest.skip("this transformers has no Gemma 4 whose config tells layers apart")
        config = transformers.Gemma4TextConfig(
            num_kv_shared_layers=0, head_dim=16, global_head_dim=32, num_key_value_heads=4, num_global_key_value_heads=2
        )
        decoder, shape = decoder_of(config), shape_of(config, "m")
        found = {
            (layer.num_key_value_heads, layer.head_dim)
            for layer in map(config.per_layer_config.__getitem__, decoder.budgeted_layers)
        }
        assert found == {(decoder.n_kv_heads, decoder.head_dim)}
        assert decoder.head_dim == 32
        assert shape.window_numbers == 4 * 16


REFUSED: list[tuple[PreTrainedConfig, str]] = [
    (DeepseekV3Config(), "multi-head latent attention"),
    (Gemma3nTextConfig(), "KV caches shared between layers"),
    (GptOssConfig(), "learnt attention sinks"),
    (FalconConfig(), "code of its own"),
    (BertConfig(), "an encoder"),
    (BertConfig(is_decoder=True, add_cross_attention=True), "cross-attention"),
    (BartConfig(), "an encoder-decoder"),
    (BartConfig(is_encoder_decoder=False, is_decoder=True), "the decoder of an encoder-decoder"),
    (LlamaConfig(is_causal=False), "looks ahead"),
    (LlamaConfig(v_head_dim=16), "different dimensions"),
    (PreTrainedConfig(), "not a decoder's"),
]


@pytest.mark.parametrize(("config", "reason"), REFUSED)
def test_models_are_refused_by_their_config_alone(config: PreTrainedConfig, reason: str) -> None:
    """Wherever a config comes in."""
    budgets = Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=0.5)
    with pytest.raises(UserError, match=reason):
        BudgetedCache(config, budgets)
    with pytest.raises(UserError, match=reason):
        ContextCache(config, [])
    with pytest.raises(UserError, match=f"model m: .*{reason}"):
        shape_of(config, "m")
