"""Model types that cannot have budgets although no single setting of their configs shows it, and why.

`docs/families.md` lists all families; a test builds a model of each.
"""

from __future__ import annotations

OWN_ATTENTION = "their attention is code of its own, which the baklava attention cannot take the place of"
SINKS = "they have learnt attention sinks"
NO_CACHE = "they keep no KV cache"
IMAGE_FIRST = "they read no text without an image"
SPEECH = "they are several models that write text and speech; use the checkpoint of the one that writes the text"
RECURRENT = "they have a recurrent state instead of KV caches"
LEARNT_MASK = "their attention learns a mask of its own"
CROSS = "they have cross-attention"
POSITIONS = "they count positions from their padding token on"

REFUSED = {
    "big_bird": OWN_ATTENTION,
    "blip": IMAGE_FIRST,
    "blip-2": IMAGE_FIRST,
    "bloom": OWN_ATTENTION,
    "camembert": POSITIONS,
    "codegen": OWN_ATTENTION,
    "cpmant": OWN_ATTENTION,
    "data2vec-text": POSITIONS,
    "diffllama": "they split values between the cache and the attention",
    "diffusion_gemma": "they write by diffusion, not token after token",
    "doge": LEARNT_MASK,
    "falcon": OWN_ATTENTION,
    "flint": SINKS,
    "gemma4_assistant": "they read the KV caches of another model",
    "gemma4_unified_assistant": "they read the KV caches of another model",
    "git": OWN_ATTENTION,
    "gpt_neo": OWN_ATTENTION,
    "gpt_neox_japanese": OWN_ATTENTION,
    "gpt_oss": SINKS,
    "gptj": OWN_ATTENTION,
    "granite_swa": SINKS,
    "granitemoe_swa": SINKS,
    "idefics": IMAGE_FIRST,
    "instructblip": IMAGE_FIRST,
    "instructblipvideo": IMAGE_FIRST,
    "jetmoe": "they repeat keys between the cache and the attention",
    "megatron-bert": OWN_ATTENTION,
    "mimo_v2_flash": SINKS,
    "kosmos-2": IMAGE_FIRST,
    "kosmos-2.5": POSITIONS,
    "mllama_text_model": CROSS,
    "moshi": OWN_ATTENTION,
    "mpt": OWN_ATTENTION,
    "openai-gpt": NO_CACHE,
    "qwen2_5_omni": SPEECH,
    "qwen3_omni_moe": SPEECH,
    "reformer": NO_CACHE,
    "rembert": OWN_ATTENTION,
    "roberta": POSITIONS,
    "roberta-prelayernorm": POSITIONS,
    "roformer": OWN_ATTENTION,
    "rwkv": RECURRENT,
    "trocr": CROSS,
    "xglm": OWN_ATTENTION,
    "xlm": NO_CACHE,
    "xlm-roberta": POSITIONS,
    "xlm-roberta-xl": POSITIONS,
    "xlnet": NO_CACHE,
    "xlstm": RECURRENT,
    "xmod": POSITIONS,
}
