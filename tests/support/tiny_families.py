"""Tiny random models of every family that transformers has, made from nothing but its config class."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from baklava.models.load import auto_class

CLASSES: dict[str, str] = {**MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MULTIMODAL = sorted(set(CLASSES) - set(FAMILIES))  # models of text and images or sound alone
VOCABULARY = 60
MAX_PARAMETERS = 6_000_000

_LAYERS = (
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers"
)
_HEADS = (
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads"
)
_HIDDEN = "hidden_size d_model n_embd emb_dim"
_INNER = "intermediate_size n_inner ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size intermediate_size_mlp"
_POSITIONS = "max_position_embeddings n_positions max_seq_len context_length n_ctx"
_SPECIAL = "pad_token_id bos_token_id eos_token_id sep_token_id cls_token_id"
_HEAD_DIM = "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim kv_channels query_pre_attn_scalar"
_EXPERTS = "num_experts n_routed_experts num_local_experts moe_num_experts"
_EXPERT_INNER = (
    "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size"
)
_TOKENS = (
    "image_token_id image_token_index video_token_id audio_token_id boi_token_id eoi_token_id boi_token_index "
    "eoi_token_index boa_token_id eoa_token_id eoa_token_index vision_start_token_id vision_end_token_id"
)

# Settings by name, wherever a config has them.
SMALL: dict[str, Any] = {
    **dict.fromkeys(_LAYERS.split(), 4),
    **dict.fromkeys(_HEADS.split(), 4),
    **dict.fromkeys(_HIDDEN.split(), 32),
    **dict.fromkeys(_INNER.split(), 48),
    **dict.fromkeys(_POSITIONS.split(), 256),
    **dict.fromkeys(_SPECIAL.split(), 0),
    **dict.fromkeys(_HEAD_DIM.split(), 8),
    **dict.fromkeys(_EXPERTS.split(), 4),
    **dict.fromkeys(_EXPERT_INNER.split(), 16),
    **dict.fromkeys(_TOKENS.split(), VOCABULARY - 1),
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_key_value_heads": 2,
    "sliding_window": 16,
    "local_attention": 16,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_num_shared_experts": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "laurel_rank": 4,
    "rotary_dim": 4,
    "embedding_size": 16,
    "input_embedding_size": 16,
    "image_size": 16,
    "patch_size": 8,
    "depth": 1,
    "prefix_dense_intermediate_size": 48,
    "dense_intermediate_size": 48,
    "position_embedding_size": 16,
    "output_proj_dims": 32,
    "mm_embed_dim": 32,
    "mm_posemb_size": 16,
    "audio_embed_dim": 32,
    "global_head_dim": 8,
    "mlp_dim": 48,
    "output_channels": 16,
    "num_mel_bins": 16,
    "max_source_positions": 32,
    "num_blocks": 1,
    "out_hidden_size": 32,
    "embed_dim": 32,
    "layers": 4,
    "hidden_dim": 32,
    "dim_head": 8,
    "downsample_hidden_size": 16,
    "alignment_intermediate_size": 64,
    "projection_dim": 32,
    "projector_hidden_size": 32,
    "base_channels": 32,
    "latent_channels": 32,
    "num_embeddings": 64,
    "image_token_embed_dim": 32,
    "num_filters": 2,
    "ext_pw_out_channel": 16,
    "depthwise_separable_out_channel": 16,
    "nemo_conv_channels": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

_WITHOUT_WINDOW = ["mistral", "mixtral", "phi3", "phi4_multimodal", "phimoe", "starcoder2", "ministral3"]
_EVERY_OTHER_WINDOW = ["gemma3_text", "kolibri1", "ministral"]
_DECODERS_ON_DEMAND = ["bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"]
_DECODERS_ON_DEMAND += ["roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"]
_HYBRID = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_MULTIMODAL_ROPE = ["cosmos3_edge_text", "paddleocr_vl_text", "qwen2_5_omni_text", "qwen2_5_vl_text", "qwen2_vl_text"]
_MULTIMODAL_ROPE += ["glm4v_text", "glm_ocr_text", "hunyuan_vl_text"]
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_AS_DECODER = {"is_decoder": True}

# What a family needs besides: settings that only fit together, windows that leave something to budget.
MORE: dict[str, dict[str, Any]] = {
    **{family: {"sliding_window": None} for family in _WITHOUT_WINDOW},
    **dict.fromkeys(_EVERY_OTHER_WINDOW, _HYBRID),
    **dict.fromkeys(_DECODERS_ON_DEMAND, _AS_DECODER),
    "cohere_compass_text": {**_HYBRID, "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE}},
    **{family: {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}} for family in _MULTIMODAL_ROPE},
    "chameleon": {"vocabulary_map": {"<image>": VOCABULARY - 1}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense"] * 4},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [16, 16],
        "mlp_layer_types": ["dense"] * 4,
        "rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]},
    },
    "fun_asr_nano": {
        "adaptor_config": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 8, "num_hidden_layers": 1}
    },
    "glm4v_moe_text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 0]}},
    "granite4_vision": {
        "deepstack_layer_map": [],
        "downsample_rate": "1/2",
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 64, "num_attention_heads": 1},
    },
    "molmo2_adapter": {"vision_feature_layer": [-1, -2]},
    "molmo2_vision": {"image_size": [16, 16]},
    "muse_spark_audio": {"hidden_sizes": [8] * 4, "depths": [1] * 4},
    "vibevoice_acoustic_tokenizer_encoder": {"depths": [1] * 7},
    "ctrl": {"dff": 48},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "dots3_note": {"text_config": {}, "vision_config": {}, "audio_config": {}},
    "dots3_note_text": {"num_key_value_heads": 4},
    "ernie4_5_moe": {"moe_k": 2},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "lfm2_moe": {"layer_types": ["full_attention"] * 4},
    "mamba2": {"head_dim": 16},
    "roc_bert": {
        **_AS_DECODER,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_vocab_size": VOCABULARY,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xmod": {**_AS_DECODER, "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * 2},
}


# Their sizes only fit together; as they are by default, they are refused before a model is made.
BY_DEFAULT = ["florence2", "glm5_next", "inkling2", "nemo_speechlm", "nemotron_h_omni"]


def tiny_config(family: str, **more: Any) -> PreTrainedConfig:
    """A config of the family, every size that has a name in `SMALL` made small."""
    if family in BY_DEFAULT:
        return CONFIG_MAPPING[family]()
    return _small(CONFIG_MAPPING[family], {**MORE.get(family, {}), **more})


def _small(config_class: Any, more: dict[str, Any]) -> PreTrainedConfig:
    settings: dict[str, Any] = {}
    for name in config_class.__dataclass_fields__:
        if name in config_class.sub_configs and name not in more:
            part = _part(config_class, name)
            settings[name] = None if part is None else _small(part, MORE.get(part.model_type, {}))
        elif name in SMALL and name not in PreTrainedConfig.__dataclass_fields__:
            settings[name] = SMALL[name]
    return config_class(**{**settings, **more})


def _part(config_class: Any, name: str) -> Any:
    """The class of a nested config; where any would do, that of the default one."""
    given = config_class.sub_configs[name]
    if given is not AutoConfig:
        return given
    default = getattr(config_class(), name)
    return None if default is None else type(default)


def tiny_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model in float64 with random weights, large enough ones that attention is not flat."""
    config._experts_implementation = "eager"  # the others know no float64
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto_class(config).from_config(config).parameters())
    assert size <= MAX_PARAMETERS, f"{config.model_type}: {size} parameters; set more of its sizes"
    torch.manual_seed(0)
    model = auto_class(config).from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model
