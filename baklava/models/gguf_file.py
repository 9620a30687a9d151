"""Checks a model in a GGUF file, without importing torch or transformers: it must hold all that is read, and no more.

A setting or a tensor that nothing reads, of a scaled rotation or of experts for example, would be another model's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from baklava.errors import UserError
from baklava.models.gguf_header import BLOCK_TYPES, GgufHeader, read_gguf_header

SUFFIX = ".gguf"

# The modules in which transformers keeps the tensors of a layer, and those of the whole model.
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ENDS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
OUTPUT = "output.weight"  # missing where the embedding is used for it

# What the layers of an architecture have beyond these.
ARCHITECTURES = {
    "llama": {},
    "qwen2": {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"},
    "qwen3": {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"},
}

# Settings of an architecture (`llama.block_count`, ...).
_NEEDED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
)
_KNOWN = (
    *_NEEDED,
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "tensor_data_layout",
    "vocab_size",
)
# Known settings that change nothing as long as they have this value.
_NEUTRAL = {"rope.scaling.type": "none", "expert_count": 0, "expert_used_count": 0, "attention.causal": True}

# How texts are cut into words before a byte-level vocabulary: `smollm` as in `baklava.models.gguf`, others as in
# transformers.
SPLITS = (
    *("gpt-2", "smollm", "llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "tekken", "qwen2"),
    "deepseek-r1-qwen",
)

OTHERWISE = "use the model's safetensors files"


def is_gguf(path: Path) -> bool:
    return path.suffix == SUFFIX


def check_gguf(path: Path, key: str) -> int:
    """The number of positions of the model in a file. Raises `UserError` where the file cannot be used as a model.

    `key` is the setting that names the file.
    """
    if not path.is_file():
        raise UserError(f"{key}: no such file: {path}")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            f"{key}: {path.name} needs the package gguf, which is not installed: pip install 'baklava-kv[gguf]'"
        )
    header = read_gguf_header(path)
    if reason := _refusal(header):
        raise UserError(f"{key}: {path.name} cannot be used: {reason}")
    if path.stat().st_size < header.expected_bytes():
        raise UserError(
            f"{path}: {path.stat().st_size} bytes where its header says {header.expected_bytes()}: cut short or "
            "damaged; download or copy it again"
        )
    return int(model_settings(header)["context_length"])


def _refusal(header: GgufHeader) -> str | None:
    """Why a model would not be read, or be read as another one; None where nothing stands against it."""
    settings = header.settings
    architecture = settings.get("general.architecture")
    if int(settings.get("split.count", 1)) > 1:
        return "it is a part of a model; put the parts together with `llama-gguf-split --merge`"
    if architecture not in ARCHITECTURES:
        return f"it holds a model of type {architecture!r}; known: {', '.join(ARCHITECTURES)}; {OTHERWISE}"
    if unknown := sorted({tensor.type_id for tensor in header.tensors.values()} - set(BLOCK_TYPES)):
        names = ", ".join(block.name for block in BLOCK_TYPES.values())
        return f"its quantisation (ggml type {unknown[0]}) is unknown; known: {names}"
    return _setting_refusal(architecture, header) or _tensor_refusal(architecture, header) or _text_refusal(settings)


def _setting_refusal(architecture: str, header: GgufHeader) -> str | None:
    values = model_settings(header)
    for name in _NEEDED:
        if not isinstance(values.get(name), int | float) or not values[name] > 0:
            return f"{architecture}.{name} is missing, or no number"
    for name, value in values.items():
        if name not in _KNOWN and not (name in _NEUTRAL and value == _NEUTRAL[name]):
            return f"its {architecture}.{name} = {value} is not known here; {OTHERWISE}"
    if values.get("rope.dimension_count", head_dim(values)) != head_dim(values):
        return f"its heads are rotated in part, which is not known here; {OTHERWISE}"
    return None


def _tensor_refusal(architecture: str, header: GgufHeader) -> str | None:
    expected, found = set(tensor_names(header)) - {OUTPUT}, set(header.tensors) - {OUTPUT}
    if missing := sorted(expected - found):
        return f"it has no tensor {missing[0]}"
    if extra := sorted(found - expected):
        return f"its tensor {extra[0]} is none of a {architecture} model's; {OTHERWISE}"
    return None


def _text_refusal(settings: dict[str, Any]) -> str | None:
    kind, split = settings.get("tokenizer.ggml.model"), settings.get("tokenizer.ggml.pre")
    if kind not in ("gpt2", "llama"):
        return f"its tokenizer is of type {kind!r}; known: gpt2, llama; {OTHERWISE}"
    if kind == "gpt2" and split not in SPLITS:
        return f"its tokenizer.ggml.pre is {split!r}; known: {', '.join(SPLITS)}; {OTHERWISE}"
    return None


def model_settings(header: GgufHeader) -> dict[str, Any]:
    """The settings of the model's architecture, without its name before them."""
    prefix = f"{header.settings['general.architecture']}."
    items = header.settings.items()
    return {name.removeprefix(prefix): value for name, value in items if name.startswith(prefix)}


def tensor_names(header: GgufHeader) -> dict[str, str]:
    """For every tensor of the model its name in transformers."""
    layer = {f"{name}.weight": f"{module}.weight" for name, module in _LAYER.items()}
    layer |= ARCHITECTURES[header.settings["general.architecture"]]
    layers = range(model_settings(header)["block_count"])
    names = {f"blk.{i}.{name}": f"model.layers.{i}.{other}" for i in layers for name, other in layer.items()}
    return {**_ENDS, **names, OUTPUT: "lm_head.weight"}


def head_dim(values: dict[str, Any]) -> int:
    """The dimension of a head, from the settings of an architecture."""
    return int(values.get("attention.key_length") or values["embedding_length"] // values["attention.head_count"])
