"""Writes a model of a folder into a GGUF file, as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM

F32 = GGMLQuantizationType.F32
# Settings of the file, None where it shall have none.
Changed = dict[str, int | float | str | None]


def write_gguf(
    folder: Path,
    file: Path,
    *,
    kind: GGMLQuantizationType = F32,
    changed: Changed | None = None,
    tensors: dict[str, Any] | None = None,
) -> Path:
    """Write the model of a folder with its matrices as `kind`; then change settings, and add or drop tensors."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config, architecture = model.config, model.config.model_type
    writer = gguf.GGUFWriter(file, architecture)
    settings: dict[str, Any] = {
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 0,
    }
    if architecture == "qwen3":
        settings[f"{architecture}.attention.key_length"] = config.head_dim
    for name, value in {**settings, **(changed or {})}.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    _add_vocabulary(writer, folder)
    weights = {**_convert(model, architecture), **(tensors or {})}
    for name, weight in weights.items():
        if weight is not None:
            stored = kind if weight.ndim == 2 else F32
            writer.add_tensor(name, gguf.quantize(weight, stored), raw_dtype=stored)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return file


def _add_vocabulary(writer: gguf.GGUFWriter, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_chat_template("{% for m in messages %}<|endoftext|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}")


def _convert(model: Any, architecture: str) -> dict[str, Any]:
    """The weights by their names in such files, queries and keys of `llama` with the pairs of a rotation together."""
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    converted = {}
    for name, weight in model.state_dict().items():
        module, end = name.rsplit(".", 1)
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values: Any = weight.float().numpy()
        if architecture == "llama" and (part := module.rsplit(".", 1)[-1]) in heads:
            halves = values.reshape(heads[part], 2, -1, values.shape[1])
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        converted[f"{names.get_name(module)}.{end}"] = values
    return converted
